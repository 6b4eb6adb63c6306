"""The corpus on disk: parquet shards, a journal, and the order of its rows."""

"""The evidence bundle: files, schema, commitments, signatures."""

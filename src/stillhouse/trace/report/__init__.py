"""The evidence report: one HTML page from ``evidence.json``."""

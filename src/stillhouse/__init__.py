"""Stillhouse: distil a large language model into a small one that you own."""

__version__ = "0.2.0"

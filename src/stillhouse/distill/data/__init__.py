"""Tokenised documents and batches."""

"""Choosing the exchanges to keep: filters, duplicates, refusals, rejection sampling."""

"""Choose which exchanges are kept: filters, duplicates, refusals, rejection sampling."""

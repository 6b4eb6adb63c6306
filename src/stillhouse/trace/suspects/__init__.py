"""Suspects: models under suspicion, with weights on this machine or behind an API."""

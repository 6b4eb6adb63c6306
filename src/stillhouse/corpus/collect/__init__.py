"""Collecting answers from a teacher: parallel requests, budget, failures, resuming."""

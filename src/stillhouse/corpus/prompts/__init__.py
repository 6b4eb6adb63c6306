"""Prompts from files, packages and generators; the held-out split; context."""

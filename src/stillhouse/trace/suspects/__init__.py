"""Access to a suspect: weights on this machine, or an API."""

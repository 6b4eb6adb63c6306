"""Handlers of the server's endpoints, one file each, and what they share; app.py lists their routes."""

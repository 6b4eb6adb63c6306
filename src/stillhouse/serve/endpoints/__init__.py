"""Handlers of the server's endpoints, one file each; app.py lists their routes."""

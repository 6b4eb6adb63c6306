"""The command ``still``: one file for each verb, which parses, calls one room, and prints.

Importing this package imports nothing heavy: torch, transformers, pyarrow and
matplotlib wait until a verb needs them.
"""

from stillhouse.cli.app import app, entry, main

__all__ = ["app", "entry", "main"]

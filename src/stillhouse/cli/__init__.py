"""The command ``still``: one file for each verb, which parses options, calls one package and prints.

Importing this package imports nothing heavy: each verb imports torch, transformers,
pyarrow and matplotlib when it needs them.
"""

from stillhouse.cli.app import app, entry, main

__all__ = ["app", "entry", "main"]

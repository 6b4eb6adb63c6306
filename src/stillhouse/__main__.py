"""``python -m stillhouse`` is ``still``."""

from .cli import entry

entry()

"""``python -m stillhouse`` is ``still``."""

from stillhouse.cli import entry

entry()

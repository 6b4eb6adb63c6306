"""``python -m stillhouse`` is ``still``."""

import sys

from .cli import main

sys.exit(main())

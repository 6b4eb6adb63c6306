"""``python -m stillhouse.cli`` is ``still``."""

import sys

from .app import main

sys.exit(main())

"""``python -m stillhouse.cli`` is ``still``."""

import sys

from stillhouse.cli.app import main

sys.exit(main())

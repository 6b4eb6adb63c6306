"""``python -m stillhouse.cli`` runs the command ``still``."""

import sys

from stillhouse.cli.app import main

sys.exit(main())

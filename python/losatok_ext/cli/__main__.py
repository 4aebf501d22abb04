"""``python -m losatok_ext.cli`` is the ``losatok`` command."""

import sys

from losatok_ext.cli import main

sys.exit(main())

"""``python -m paring.cli``, the same as the ``paring`` command."""

import sys

from paring.cli.main import main

sys.exit(main())

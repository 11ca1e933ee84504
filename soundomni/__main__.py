"""`python -m soundomni`, for launchers such as torchrun."""

import sys

from soundomni.cli.main import main

sys.exit(main())

"""`python -m benchmarks.gpu`: see plan.py."""

import sys

from benchmarks.gpu.plan import main

if __name__ == "__main__":
    sys.exit(main())

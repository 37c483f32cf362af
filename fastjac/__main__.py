"""`python -m fastjac ...` is the command `fastjac ...`."""

import sys

from fastjac.cli import main

if __name__ == "__main__":
    sys.exit(main())

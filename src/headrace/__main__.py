"""`python -m headrace` and the command `headrace`."""

from __future__ import annotations

import sys

from headrace.console.cli import main

if __name__ == "__main__":
    sys.exit(main())

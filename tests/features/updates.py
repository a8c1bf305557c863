"""A program for test_updater.py: `python updates.py FOLDER` counts until nothing is left; HEADRACE_FAULT may end it."""

from __future__ import annotations

import sys
from pathlib import Path

from features.counting import Bench

if __name__ == "__main__":
    bench = Bench(Path(sys.argv[1]))
    bench.update()
    bench.close()

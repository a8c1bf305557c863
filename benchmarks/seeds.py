"""Plays the demo in many worlds, and says how often a verdict promoted and an interval held the truth.

python benchmarks/seeds.py 1-20
python benchmarks/seeds.py 1-20 --personalisation 0
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds", help="the first and the last, such as 1-20")
    parser.add_argument("--personalisation", type=float)
    given = parser.parse_args()
    first, _, last = given.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    played = [found for seed in seeds if (found := play(seed, given.personalisation)) is not None]
    promoted, held = (sum(map(judge, played)) for judge in (is_promoted, holds))
    seconds = sorted(one["seconds_to_verdict"] for one in played) or [0.0]
    pages = max((one["pages"] for one in played), default=0)
    print(
        f"{len(played)} of {len(seeds)} demos gave a verdict: {promoted} promoted, {held} intervals hold the truth, "
        f"verdict after {seconds[len(seconds) // 2]:.0f} s, the median, {seconds[-1]:.0f} s at most; "
        f"{pages:,} pages at most"
    )


def play(seed: int, personalisation: float | None) -> dict[str, Any] | None:
    """Returns what a demo came to, and prints it; None if it came to no verdict."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="headrace-seeds-") as folder:
        command = [sys.executable, "-m", "headrace", "demo", "--once", "--json", "--seed", str(seed)]
        command += ["--dir", str(Path(folder) / "demo")]
        command += [] if personalisation is None else ["--personalisation", str(personalisation)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        print(f"{seed:>3}  no verdict, exit code {done.returncode}: {done.stderr.strip()[-200:]}", flush=True)
        return None
    found: dict[str, Any] = json.loads(lines[0])
    verdict = found["verdict"]
    low, high = verdict["lift_interval"] or (float("nan"),) * 2
    visitors = " and ".join(str(verdict[arm]["visitors"]) for arm in ("control", "treatment"))
    lift = float("nan") if verdict["lift"] is None else verdict["lift"]
    failed = [name for name, is_passed in found["checks"].items() if not is_passed]
    print(
        f"{seed:>3}  {verdict['outcome']:<9}  planned {verdict['planned']:>4}, were {visitors:>13}  "
        f"lift {lift:+.3f} [{low:+.3f}, {high:+.3f}]  truth {found['truth']['lift']:+.3f}"
        f"{'' if holds(found) else ' OUTSIDE'}  {found['seconds_to_verdict']:.0f} s, {found['pages']:,} pages  "
        f"load {load:.1f}  {'; '.join(failed)}",
        flush=True,
    )
    return found


def is_promoted(found: dict[str, Any]) -> bool:
    return bool(found["champion"])


def holds(found: dict[str, Any]) -> bool:
    """Returns whether the interval holds the true lift."""
    interval = found["verdict"]["lift_interval"]
    return interval is not None and interval[0] <= found["truth"]["lift"] <= interval[1]


if __name__ == "__main__":
    main()

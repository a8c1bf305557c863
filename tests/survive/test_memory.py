"""Memory stays flat under load."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from running import project_toml, running

LOAD = Path(__file__).parents[2] / "benchmarks" / "load.py"
PAGE_MB = 4096 / 1e6


def rss_mb(pids: dict[str, int]) -> float:
    """Returns the resident memory of all workers."""
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids.values()) * PAGE_MB


def watch_memory(folder: Path, seconds: float, *, warm_seconds: float) -> tuple[float, float]:
    """Returns the workers' memory after warming up and the largest seen after that."""
    with running(folder, "collector", toml=project_toml(workers=2)) as up:
        command = [sys.executable, str(LOAD), str(up.address[1]), "64", "20", str(seconds)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as load:
            started_at = time.monotonic()
            warm = largest = 0.0
            while load.poll() is None:
                now = rss_mb(up.pids)
                warm = now if time.monotonic() - started_at < warm_seconds else warm
                largest = max(largest, now) if time.monotonic() - started_at >= warm_seconds else 0.0
                time.sleep(0.25)
        assert load.returncode == 0
    return warm, largest


@pytest.mark.slow
@pytest.mark.soak
def test_memory_is_bounded_under_load(tmp_path):
    warm, largest = watch_memory(tmp_path, 8.0, warm_seconds=3.0)
    assert 0 < largest < 400
    assert largest < 1.5 * warm


@pytest.mark.soak
def test_memory_is_flat_over_ten_minutes_of_load(tmp_path):
    warm, largest = watch_memory(tmp_path, 600.0, warm_seconds=60.0)
    print(f"after 60 s {warm:.0f} MB, at most {largest:.0f} MB in the nine minutes after")
    assert largest < 1.15 * warm

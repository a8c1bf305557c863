"""The cost of the page Live: a collector under load without and with viewers, in turns, in one run.

`live_viewers.py VIEWERS SECONDS RUNS` prints JSON; `live_viewers.py watch URL VIEWERS SECONDS` is the viewers' process.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from running import Running

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
sys.path.insert(0, str(HERE))


async def watch(url: str, viewers: int, seconds: float) -> dict[str, float]:
    """Returns how many samples each viewer got at least, and how many bytes all of them."""
    found = await asyncio.gather(*[_watch_one(url, seconds) for _ in range(viewers)])
    return {"least": min(frames for frames, _ in found), "bytes": sum(size for _, size in found)}


async def _watch_one(url: str, seconds: float) -> tuple[int, int]:
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(f"GET /live/stream HTTP/1.1\r\nhost: {address.netloc}\r\n\r\n".encode())
    frames = size = 0
    try:
        async with asyncio.timeout(seconds):
            while data := await reader.read(1 << 16):
                frames += data.count(b"data: ")
                size += len(data)
    except TimeoutError:
        pass
    writer.close()
    return frames, size


def measure(viewers: int, seconds: float, runs: int) -> dict[str, float]:
    """Returns the events a second without and with viewers, in turns, and what viewers alone cost."""
    from run import cpu_seconds, load, pin

    from running import running
    from streamline import make_project

    found: dict[str, list[float]] = {name: [] for name in ("rate", "rate_viewed", "cost", "cost_viewed", "samples")}
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        folder = make_project(Path(name), clock="real://")
        with running(folder, "collector", "endpoint", "console") as up:
            pin(up.process.pid, 0)
            load(up.address[1], 32, 20, 2.0, cpu=1)
            idle = [_rest(up, count, seconds) for count in (0, viewers)]
            for _ in range(runs):
                for count, end in ((0, ""), (viewers, "_viewed")):
                    watcher = _start(up.urls["console"], count, seconds + 1.0)
                    time.sleep(0.5)
                    before = cpu_seconds(up.process.pid)
                    seen = load(up.address[1], 32, 20, seconds, cpu=1)
                    assert not seen["refused"], seen
                    found[f"rate{end}"].append(seen["events"] / seen["seconds"])
                    found[f"cost{end}"].append((cpu_seconds(up.process.pid) - before) / seen["events"] * 1e6)
                    told = json.loads(watcher.communicate()[0])
                    found["samples"] += [told["least"]] if count else []
    ratios = [two / one for one, two in zip(found["rate"], found["rate_viewed"], strict=True)]
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {**medians, "ratio": statistics.median(ratios), "worst": min(ratios), "runs": runs,
            "idle": idle[0], "idle_viewed": idle[1]}  # fmt: skip


def _rest(up: Running, viewers: int, seconds: float) -> float:
    """Returns the processor time a second that the doors take while nothing comes in."""
    from run import cpu_seconds

    watcher = _start(up.urls["console"], viewers, seconds + 1.0)
    time.sleep(0.5)
    before, began_at = cpu_seconds(up.process.pid), time.monotonic()
    time.sleep(seconds)
    spent = (cpu_seconds(up.process.pid) - before) / (time.monotonic() - began_at)
    watcher.communicate()
    return spent


def _start(url: str, viewers: int, seconds: float) -> subprocess.Popen[bytes]:
    """Starts the viewers beside the load, on its processor; with none the same process does nothing."""
    words = [sys.executable, str(HERE / "live_viewers.py"), "watch", url, str(viewers), str(seconds)]
    return subprocess.Popen(["taskset", "-c", "1", *words], stdout=subprocess.PIPE)


if __name__ == "__main__":
    if sys.argv[1] == "watch":
        url, count, seconds = sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
        print(json.dumps(asyncio.run(watch(url, count, seconds)) if count else {"least": 0, "bytes": 0}))
    else:
        print(json.dumps(measure(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))))

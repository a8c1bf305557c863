"""`headrace demo` as a process that is watched while it plays: how many processes it has, and what they weigh."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from running import is_alive, wait_until

_LOOK_SECONDS = 0.3


@dataclass
class Play:
    """A demo that runs; it is killed with the block if it has not ended by then."""

    folder: Path
    options: tuple[str, ...] = ()
    seen: set[int] = field(default_factory=set)
    """Every process that it ever had."""
    most_processes: int = 0
    most_bytes: int = 0
    """The largest sum of what its processes share proportionally (PSS)."""

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._out, self._errors = (self.folder.with_suffix(end) for end in (".out", ".err"))
        words = ["demo", "--no-browser", "--dir", str(self.folder), *self.options]
        with self._out.open("wb") as out, self._errors.open("wb") as errors:
            self.process = subprocess.Popen([sys.executable, "-m", "headrace", *words], stdout=out, stderr=errors)
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watcher.join()
        self.process.kill()
        self.process.wait()

    @property
    def out(self) -> str:
        """What it has printed."""
        return self._out.read_text()

    @property
    def errors(self) -> str:
        """What it has said on stderr."""
        return self._errors.read_text()

    @property
    def summary(self) -> dict[str, Any]:
        """What it has printed with --json."""
        assert self.out, self.errors[-4000:]
        found: dict[str, Any] = json.loads(self.out)
        return found

    @property
    def urls(self) -> dict[str, str]:
        """The addresses of its doors, once it has them."""
        states = [json.loads(path.read_text()) for path in sorted((self.folder / ".headrace" / "run").glob("*.json"))]
        return {state["role"]: state["url"] for state in states if state["url"]}

    def wait(self, seconds: float) -> int:
        """Returns its exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not within {seconds:g} s:\n{self.out}\n{self.errors[-4000:]}") from None

    def interrupt(self, seconds: float) -> int:
        """Presses Ctrl-C, and returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.wait(seconds)

    def wait_gone(self) -> None:
        """Returns once no process of it is left, which takes a second at most."""
        wait_until(lambda: not any(map(is_alive, self.seen)), seconds=1.0, what=f"{self.seen} are gone")

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            weights = {pid: weigh(pid) for pid in find_family(self.process.pid)}
            self.seen |= weights.keys()
            self.most_processes = max(self.most_processes, sum(weight > 0 for weight in weights.values()))
            self.most_bytes = max(self.most_bytes, sum(weights.values()))


def find_family(pid: int) -> list[int]:
    """Returns a process and all that descend from it."""
    children = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = path.read_text().rpartition(")")[2].split()[1]
            children[int(parent)].append(int(path.parent.name))
    found = [pid]
    for one in found:
        found += children[one]
    return found


def weigh(pid: int) -> int:
    """Returns the bytes of a process, what it shares counted in part; 0 once it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0

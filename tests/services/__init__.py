"""Real services that tests start: found, fetched or skipped by name."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

REQUIRED = "HEADRACE_TEST_SERVICES"

# The programs that each service needs; tests/services/debian.txt lists the packages for CI.
PROGRAMS = {
    "kafka": ("java", "mvn"),
    "hdfs": ("java", "mvn"),
    "spark": ("java", "mvn"),
    "kcat": ("kcat",),
    "chromium": ("chromium", "chromedriver"),
    "node": ("node", "npm"),
}


def cache_folder(name: str) -> Path:
    """Returns the folder in which fetched parts of a service stay for the next run."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "headrace-tests" / name


@contextlib.contextmanager
def fetching() -> Iterator[None]:
    """Holds the cache for this process: whoever else would fetch waits."""
    folder = cache_folder("")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def need(service: str) -> None:
    """Skips the test unless the programs of `service` are here; fails where services are required."""
    for program in PROGRAMS[service]:
        if shutil.which(program) is None:
            refuse(service, f"no program {program!r} on the PATH")


def refuse(service: str, reason: str) -> None:
    """Skips the test for lack of a service, or fails where services are required."""
    text = f"needs {service}: {reason}"
    if os.environ.get(REQUIRED) == "required":
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


def free_ports(count: int) -> list[int]:
    """Returns ports of the loopback address at which nobody listens."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports

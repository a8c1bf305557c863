"""A full disk, and thousands of commits: the stream goes on by itself, exactly, and stays quick."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from running import running, wait_until
from survive.account import check_account
from survive.stream import make_project, wait_caught_up

pytestmark = pytest.mark.slow

# What stands on the small disk: the topic file, the lake, or the folder in which the settler remembers.
PLACES = ("topics", "lake", "memory")


def place(folder: Path, disk: Path, small: str) -> Path:
    """Returns the folder of a project, one part of which stands on the small disk."""
    where = {name: folder for name in PLACES} | {small: disk}
    project = folder / "p"
    make_project(project, topics=f"sqlite:///{where['topics']}/topics", tables=f"file:///{where['lake']}/lake")
    (where["memory"] / "headrace").mkdir()
    (project / ".headrace").symlink_to(where["memory"] / "headrace")
    return project


def fill(disk: Path) -> None:
    """Leaves no byte free."""
    for size in (65_536, 512):
        with contextlib.suppress(OSError), (disk / f"ballast-{size}").open("wb", buffering=0) as ballast:
            while ballast.write(bytes(size)):
                pass


def make_room(disk: Path) -> None:
    for path in disk.glob("ballast-*"):
        path.unlink()


def post(up, first: int, count: int, acknowledged: set[str]) -> int:
    """Posts events large enough to need room; returns how many were refused."""
    refused = 0
    for number in range(first, first + count):
        properties = {"text": f"{number}" * 300}
        event = {"anonymousId": f"v{number % 5}", "messageId": f"m{number}", "event": "E", "properties": properties}
        if up.post("/v1/track", event).status == 200:
            acknowledged.add(f"m{number}")
        else:
            refused += 1
    return refused


@pytest.mark.parametrize("small", PLACES)
def test_a_full_disk_stops_the_stream_until_there_is_room(tmp_path, disk, small):
    folder = place(tmp_path, disk, small)
    acknowledged: set[str] = set()
    with running(folder) as up:
        assert post(up, 0, 50, acknowledged) == 0
        wait_caught_up(folder)
        fill(disk)
        # Until it says so: topics and databases have some room of their own inside their files.
        number = 50
        deadline = time.monotonic() + 30
        while not is_told(up, small):
            assert time.monotonic() < deadline, up.log.read_text()[-3000:]
            post(up, number, 20, acknowledged)
            number += 20
        time.sleep(1)  # the disk stays full for a while, and nothing waits for that
        assert up.process.poll() is None
        make_room(disk)
        wait_until(lambda: post(up, number, 1, acknowledged) == 0, seconds=20, what="the door takes events again")
        wait_caught_up(folder, seconds=30)
    account = check_account(folder, acknowledged)
    assert account.settled >= len(acknowledged) > 50


def is_told(up, small: str) -> bool:
    if small == "topics":
        return "the disk is full" in up.get("/ready").body.decode()
    return "headrace.sink" in up.log.read_text() if small == "lake" else "headrace.settler" in up.log.read_text()

"""Power loss: only what was fsynced is on the disk, and everything acknowledged is among it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import services
from headrace.topics import open_topic
from running import project_toml, running, wait_until

pytestmark = pytest.mark.slow

# Prints each value after its append returned, then dies as if the power failed.
_APPENDER = """
import os, sys
from headrace.base import sqlite
from headrace.topics import Record, open_topic
folder, without_fsync = sys.argv[1], sys.argv[2] == "without"
if without_fsync:
    connect = sqlite.connect
    def careless(path, **options):
        connection = connect(path, **options)
        if not options:
            connection.execute("pragma synchronous = normal")
        return connection
    import headrace.topics.sqlite_store
    headrace.topics.sqlite_store.connect = careless
clicks = open_topic(f"sqlite:///{folder}", "clicks", create=True)
for number in range(200):
    clicks.append([Record(b"ann", b"%d" % number)])
    os.write(1, b"%d\\n" % number)
os.kill(os.getpid(), 9)
"""


def build_shim(folder: Path) -> Path:
    """Compiles the shim that knows what was fsynced."""
    if shutil.which("gcc") is None or not sys.platform.startswith("linux"):
        services.refuse("gcc", "no C compiler on this machine")
    shim = folder / "power.so"
    source = Path(__file__).with_name("power.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", shim, source, "-ldl"], check=True)
    return shim


def lose_power(tmp_path: Path, *, fsync: str) -> tuple[list[int], list[int]]:
    """Returns what was acknowledged and what a disk that lost power holds."""
    root, disk = tmp_path / "root", tmp_path / "disk"
    root.mkdir()
    disk.mkdir()
    env = {**os.environ, "LD_PRELOAD": str(build_shim(tmp_path)), "POWER_ROOT": str(root), "POWER_DISK": str(disk)}
    ran = subprocess.run(
        [sys.executable, "-c", _APPENDER, str(root), fsync], env=env, stdout=subprocess.PIPE, check=False
    )
    assert ran.returncode == -9
    acknowledged = [int(line) for line in ran.stdout.split()]
    if not (disk / "topics.db").exists():
        return acknowledged, []
    topic = open_topic(f"sqlite:///{disk}", "clicks", create=True)
    stored = [int(message.value) for message in topic.read()]
    topic.topics.close()
    return acknowledged, stored


def test_power_loss_keeps_everything_acknowledged(tmp_path):
    acknowledged, stored = lose_power(tmp_path, fsync="with")
    assert acknowledged == list(range(200))
    assert stored[: len(acknowledged)] == acknowledged


def test_without_fsync_the_power_test_finds_the_loss(tmp_path):
    acknowledged, stored = lose_power(tmp_path, fsync="without")
    assert len(acknowledged) == 200
    assert len(stored) < len(acknowledged)


def test_disk_full_is_told_and_service_resumes(tmp_path, disk):
    (tmp_path / "p").mkdir()
    toml = project_toml(topics=f"sqlite:///{disk}/topics", workers=2)
    with running(tmp_path / "p", toml=toml) as up:
        acknowledged = fill_up(up, disk)
        wait_until(lambda: "the disk is full" in up.get("/ready").body.decode(), seconds=3)
        (disk / "ballast").unlink()
        wait_until(lambda: up.post("/v1/track", {"anonymousId": "ann", "messageId": "after"}).status == 200)
        stored = {one["value"]["messageId"] for one in up.read()}
        assert acknowledged | {"after"} <= stored


def test_a_project_whose_whole_disk_is_full_goes_on_once_there_is_room(disk):
    (disk / "p").mkdir()
    with running(disk / "p", toml=project_toml(clock="world://?rate=60")) as up:
        acknowledged = fill_up(up, disk)
        with contextlib.suppress(OSError), (disk / "crumbs").open("wb", buffering=0) as crumbs:
            while crumbs.write(bytes(512)):
                pass
        first = up.pids["doors"]
        os.kill(first, signal.SIGKILL)
        # Two world's times are due to be noted, and the new worker is.
        time.sleep(2.5)
        assert up.process.poll() is None, up.log.read_text()
        for name in ("ballast", "crumbs"):
            (disk / name).unlink()
        wait_until(lambda: up.pids.get("doors", first) != first, seconds=20)
        wait_until(lambda: up.post("/v1/track", {"anonymousId": "ann", "messageId": "after"}).status == 200)
        assert acknowledged | {"after"} <= {one["value"]["messageId"] for one in up.read()}
        assert up.stop() == 0
        # What the dead process held is free for a moment: it was full twice at most, and each time is told once.
        assert up.log.read_text().count("trying on") <= 2


def fill_up(up, disk: Path) -> set[str]:
    """Posts until the full disk has refused three times in a row; returns what was acknowledged."""
    acknowledged: set[str] = set()
    for number in range(20):
        assert _post(up, number, acknowledged).status == 200
    with contextlib.suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
        while ballast.write(bytes(65_536)):
            pass
    refused, number = 0, 20
    deadline = time.monotonic() + 30
    while refused < 3:
        assert time.monotonic() < deadline, "the disk did not fill up"
        started_at = time.monotonic()
        answer = _post(up, number, acknowledged)
        number += 1
        # The log may still have room of its own inside its file.
        refused = 0 if answer.status == 200 else refused + 1
        if answer.status != 200:
            assert answer.status in (429, 503)
            assert int(answer.headers["retry-after"]) >= 1
            assert time.monotonic() - started_at < 1.5
    return acknowledged


def _post(up, number: int, acknowledged: set[str]):
    event = {"anonymousId": f"v{number % 5}", "messageId": f"m{number}", "text": os.urandom(10_000).hex()}
    answer = up.post("/v1/track", event)
    if answer.status == 200:
        acknowledged.add(f"m{number}")
    return answer

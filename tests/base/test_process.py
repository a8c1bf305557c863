"""Children are started anew when they die, and none outlives its parent by more than a second."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headrace.base.process import find_user
from running import freeze, is_alive, wait_until

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


class Family:
    """A supervisor in a process of its own, and the log that it and its children write."""

    def __init__(self, folder, *names):
        self.log = folder / "log"
        self.log.touch()
        self.errors = folder / "errors"
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "family.py"), str(self.log), *names],
                stderr=errors,
                env={**os.environ, "PYTHONPATH": str(HERE)},
            )

    def said(self, name=""):
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return [(said, int(pid), float(at)) for said, pid, at in lines if said.startswith(name)]

    def wait_for(self, name, count=1):
        return wait_until(lambda: found if len(found := self.said(name)) >= count else None, what=f"{name} says so")

    def everybody(self):
        return {pid for _, pid, _ in self.said()}

    def alive(self):
        return {pid for pid in self.everybody() if is_alive(pid)}


@pytest.fixture
def family(tmp_path):
    with contextlib.ExitStack() as stack:

        def start(*names):
            made = Family(tmp_path, *names)
            stack.callback(end, made)
            return made

        yield start


def end(made):
    for pid in made.alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    made.process.kill()
    made.process.wait()


def assert_gone(made, since):
    """All are gone within a second of `since`."""
    everybody = made.everybody()
    while made.alive():
        assert time.monotonic() - since < 1.0, f"still there: {made.alive()} of {everybody}"
        made.process.poll()
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_every_descendant_is_gone_within_a_second(family, number):
    made = family("quiet", "deaf", "hashing", "querying", "parent")
    made.wait_for("all-ready")
    for grandchild in ("deaf-grandchild", "hashing-grandchild"):
        made.wait_for(grandchild)
    assert len(made.alive()) == 8
    since = time.monotonic()
    made.process.send_signal(number)
    assert_gone(made, since)
    made.process.wait()
    assert bool(made.said("left")) == bool(made.said("stopped")) == (number != signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_frozen_child_goes_too(family, number):
    made = family("quiet", "deaf")
    made.wait_for("all-ready")
    for _, pid, _ in made.said("quiet") + made.said("deaf"):
        freeze(pid)
    since = time.monotonic()
    made.process.send_signal(number)
    assert_gone(made, since)


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.15])
def test_a_child_that_is_just_being_born_goes_too(family, delay):
    made = family("quiet", "deaf", "hashing")
    made.wait_for("supervisor")
    wait_until(lambda: children(made.process.pid))
    time.sleep(delay)
    born = children(made.process.pid)
    since = time.monotonic()
    made.process.kill()
    wait_until(lambda: not any(is_alive(pid) for pid in born), seconds=1.0)
    assert_gone(made, since)


def children(pid):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def test_grandchildren_go_with_a_killed_child_and_it_is_started_anew(family):
    made = family("parent")
    for name in ("deaf-grandchild", "hashing-grandchild"):
        made.wait_for(name)
    first = {pid for said, pid, _ in made.said() if said != "supervisor"} - {made.process.pid}
    os.kill(made.said("parent")[0][1], signal.SIGKILL)
    wait_until(lambda: not any(is_alive(pid) for pid in first), seconds=1.0)
    made.wait_for("hashing-grandchild", 2)
    assert made.process.poll() is None


def test_a_child_that_dies_is_started_anew_after_growing_pauses(family):
    made = family("dying", "quiet")
    starts = [at for _, _, at in made.wait_for("dying", 5)]
    gaps = [second - first for first, second in itertools.pairwise(starts)]
    # Each gap is the start of Python plus a pause of 0.1, 0.2, 0.4, 0.8 s.
    for gap, pause in zip(gaps, (0.1, 0.2, 0.4, 0.8), strict=False):
        assert pause <= gap < pause + 1.0
    assert len(made.said("quiet")) == 1, "the others are left alone"
    errors = made.errors.read_text()
    for pause in ("0.1 s", "0.2 s", "0.4 s"):
        assert f"dying ended with 3, starting it again in {pause}" in errors
    assert not made.said("all-ready")


def test_a_killed_child_is_back_and_ready_again(family):
    made = family("quiet")
    (_, first, _), *_ = made.wait_for("quiet")
    os.kill(first, signal.SIGKILL)
    second = made.wait_for("quiet", 2)[1][1]
    assert second != first
    assert is_alive(second)


def test_ready_is_told_once_everybody_is_and_who_comes_after_begins_after(family):
    made = family("quiet-after-late", "late")
    told = made.wait_for("all-ready")[0][2]
    assert told >= made.said("quiet-after-late")[0][2] >= made.said("ready")[0][2]


def test_a_child_may_open_as_many_files_as_the_machine_allows(family):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        made = family("quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    child = made.wait_for("quiet")[0][1]
    assert resource.prlimit(made.process.pid, resource.RLIMIT_NOFILE) == (256, hard)
    assert resource.prlimit(child, resource.RLIMIT_NOFILE) == (hard, hard)


def test_children_leave_no_zombies(family):
    made = family("dying", "quiet")
    made.wait_for("dying", 3)
    states = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in children(made.process.pid)]
    assert states.count("Z") <= 1, "a child that just ended may not be buried yet"


def test_a_user_without_a_name_is_known_by_number(monkeypatch):
    def find_nobody(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", find_nobody)
    assert find_user() == str(os.getuid())
    monkeypatch.setenv("USER", "ann")
    assert find_user() == "ann"

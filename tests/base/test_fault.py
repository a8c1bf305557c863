"""Crash points are switched on by HEADRACE_FAULT and by nothing else."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.base import fault
from headrace.base.errors import CallError, UnknownNameError
from running import wait_until

POINT = re.compile(r'fault\.point\("([^"]+)"\)')

PASS = """
import sys
from headrace.base import fault
for number in range(1, 4):
    try:
        fault.point("topics.written")
        fault.point("topics.synced")
    except fault.FaultError as error:
        print("raised", error, flush=True)
    print(number, flush=True)
"""


def start(value):
    return subprocess.Popen(
        [sys.executable, "-c", PASS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, fault.VARIABLE: value},
    )


def run(value):
    process = start(value)
    out, error = process.communicate(timeout=20)
    return process.returncode, out.split(), error


def test_nothing_happens_unless_asked():
    assert run("") == (0, ["1", "2", "3"], "")
    assert run("collect.parsed=kill") == (0, ["1", "2", "3"], "")


def test_kill_at_the_second_passage_leaves_its_mark(tmp_path):
    mark = tmp_path / "mark"
    assert run(f"topics.written=kill@2:{mark}")[:2] == (-signal.SIGKILL, ["1"])
    assert mark.read_text().split()[0] == "topics.written"


def test_raise_happens_once_and_the_process_goes_on():
    assert run("topics.synced=raise@2,topics.written=raise@3")[:2] == (
        0,
        ["1", "raised", "topics.synced", "2", "raised", "topics.written", "3"],
    )


def test_stop_freezes_the_process_until_it_is_continued(tmp_path):
    mark = tmp_path / "mark"
    process = start(f"topics.written=stop@1:{mark}")
    pid = process.pid
    wait_until(lambda: mark.exists() and os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT))
    assert mark.read_text() == f"topics.written {pid}\n"
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=20)[0].split() == ["1", "2", "3"]


def test_an_unknown_point_names_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        fault.parse("topics.writen=kill")
    assert str(caught.value) == (
        f"no crash point 'topics.writen'. Did you mean topics.written?  known: {', '.join(sorted(fault.POINTS))}"
    )


@pytest.mark.parametrize("text", ["topics.written", "topics.written=explode", "topics.written=kill@soon"])
def test_a_fault_that_cannot_be_read_says_how_to_write_one(text):
    with pytest.raises(CallError) as caught:
        fault.parse(text)
    assert str(caught.value) == (
        f"HEADRACE_FAULT={text!r}: write POINT=ACTION@COUNT:MARK, ACTION one of kill, stop, raise"
    )


def test_every_point_is_passed_somewhere():
    package = Path(fault.__file__).parent.parent
    passed = [found for path in package.rglob("*.py") for found in POINT.findall(path.read_text())]
    assert sorted(passed) == sorted(fault.POINTS)

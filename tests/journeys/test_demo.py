"""The demo: what it shows is true, and it says so when it is not."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

import pytest

from headrace.console import demo
from headrace.console.roles import write_project
from headrace.project import open_project


def run_demo(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headrace", "demo", "--seconds", "2", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
def test_demo_proves_that_what_it_counts_is_in_the_topic(tmp_path):
    done = run_demo("--json", "--dir", str(tmp_path / "kept"))
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["lost"] == 0
    assert summary["acknowledged"] == summary["in_topic"] > 500
    assert summary["longest_pause_seconds"] > 0, "the collector was not killed"
    with open_project(tmp_path / "kept") as project:
        stored = sum(bound.end for bound in project.topic("clicks").bounds())
    assert stored == summary["acknowledged"] + summary["repeats"]


@pytest.mark.slow
def test_demo_ends_with_the_next_commands():
    done = run_demo()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:6]] == ["world", "collector", "acknowledged", "topic", "failed", "fault"]
    assert lines[-2].startswith("try           headrace demo --dir")


def test_demo_refuses_a_project_that_it_did_not_make(tmp_path):
    write_project(tmp_path, port=0)
    done = run_demo("--dir", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith(f"CallError: {str(tmp_path)!r} holds a project that the demo did not make: its clock")
    assert not (tmp_path / ".headrace").exists()


@pytest.mark.slow
def test_demo_goes_through_with_two_workers(tmp_path):
    write_project(tmp_path, port=0, clock="world://?rate=3600")
    toml = tmp_path / "headrace.toml"
    toml.write_text(toml.read_text().replace("workers = 1", "workers = 2"))
    done = run_demo("--json", "--dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["lost"] == 0


def test_demo_fails_when_something_acknowledged_is_missing(tmp_path, capsys):
    counts = demo._Counts(acknowledged={"a", "b"}, stored={"a"}, read=1)
    given = argparse.Namespace(json=False, dir=None)
    assert demo._conclude(counts, given, tmp_path) == 1
    assert "2 events acknowledged ≠ 1 of them in the topic, 1 lost" in capsys.readouterr().out


def test_demo_fails_when_nothing_was_acknowledged(tmp_path, capsys):
    given = argparse.Namespace(json=True, dir=None)
    assert demo._conclude(demo._Counts(), given, tmp_path) == 1
    assert json.loads(capsys.readouterr().out)["acknowledged"] == 0


@pytest.mark.slow
def test_demo_leaves_no_process_when_it_is_killed(tmp_path):
    command = [sys.executable, "-m", "headrace", "demo", "--seconds", "30", "--json", "--dir", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    from running import is_alive, wait_until

    def pids() -> list[int]:
        path = tmp_path / ".headrace/run/collector.json"
        if not path.exists():
            return []
        state = json.loads(path.read_text())
        return [state["supervisor"], *state["pids"].values()] if state["pids"] else []

    found = wait_until(pids, seconds=20)
    os.kill(process.pid, 9)
    process.wait()
    wait_until(lambda: not any(is_alive(pid) for pid in found), seconds=1.0)

"""The demo: what it shows is true, and it says so when it is not."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from headrace.console import demo
from headrace.console.crowd import Crowd
from headrace.console.proof import Proof
from headrace.console.roles import write_project
from headrace.project import open_project


def run_demo(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headrace", "demo", "--seconds", "2", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


@pytest.mark.slow
def test_demo_proves_that_what_it_counts_is_in_the_topic(tmp_path):
    done = run_demo("--json", "--dir", str(tmp_path / "kept"))
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["exactly_once"] is True
    assert summary["lost"] == summary["doubled"] == 0
    assert summary["acknowledged"] > 500
    assert summary["failed"] > 0, "nobody was faulty"
    assert summary["longest_pause_seconds"] > 0, "the collector was not killed"
    with open_project(tmp_path / "kept") as project:
        stored = sum(bound.end for bound in project.topic("clicks").bounds())
        rows = project.query("select count(*) as rows from events").table().to_pylist()[0]["rows"]
    assert stored == summary["clicks"] == summary["settled"] + summary["failed"] + summary["repeats"]
    assert rows == summary["rows"] == summary["settled"]


@pytest.mark.slow
def test_demo_ends_with_the_next_commands():
    done = run_demo()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    firsts = [line.split()[0] for line in lines if line[:1].isalpha()]
    assert firsts[:8] == ["world", "collector", "acknowledged", "refused", "settled", "lake", "fault", "proof"]
    assert any(line.endswith("rows in the lake ✓ exactly once") for line in lines)
    assert "the most clicked" in lines
    assert lines[-2].startswith("try           headrace demo --dir")


def test_demo_refuses_a_project_that_it_did_not_make(tmp_path):
    write_project(tmp_path, ports=(0, 0, 0))
    done = run_demo("--dir", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith(f"CallError: {str(tmp_path)!r} holds a project that the demo did not make: its clock")
    assert not (tmp_path / ".headrace").exists()


@pytest.mark.slow
def test_demo_goes_through_with_two_workers(tmp_path):
    write_project(tmp_path, ports=(0, 0, 0), clock="world://?rate=3600")
    toml = tmp_path / "headrace.toml"
    toml.write_text(toml.read_text().replace("workers = 1", "workers = 2"))
    done = run_demo("--json", "--dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["exactly_once"] is True


WHOLE = Proof(acknowledged=9, clicks=12, settled=8, failed=1, repeats=3, rows=8, lost=0, doubled=0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"lost": 1}, "9 acknowledged ≠ settled or failed, 1 lost"),
        ({"rows": 7}, "7 rows in the lake ✗ NOT exactly once"),
        ({"doubled": 1, "rows": 9}, "✗ NOT exactly once"),
        ({"repeats": 2}, "✗ NOT exactly once"),
        ({"acknowledged": 0}, "✗ NOT exactly once"),
    ],
)
def test_demo_fails_when_the_count_does_not_hold(capsys, change, told):
    given = argparse.Namespace(json=False)
    assert demo._conclude(Crowd(), WHOLE, given) == 0
    assert "✓ exactly once" in capsys.readouterr().out
    assert demo._conclude(Crowd(), replace(WHOLE, **change), given) == 1
    assert told in capsys.readouterr().out


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

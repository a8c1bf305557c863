"""`headrace verify` as its user calls it: the whole loop in made-up worlds, and every refusal."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from headrace.base.clock import begin_stepped
from headrace.console.init import write_project
from headrace.console.verify import BEGIN_US, Asked, _play_all, _tell_broken, make_market
from headrace.events.world import HOUR, MINUTE
from headrace.project import open_project
from headrace.verify.case import Case
from headrace.verify.checks import CHECKS, check
from headrace.verify.play import Script, play
from headrace.verify.report import Line
from headrace.verify.worlds import World, join_lines
from running import call
from services.cluster import cluster_of


def verify(*options, seconds=280):
    command = [sys.executable, "-m", "headrace", "verify", "--json", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_check_holds_in_a_whole_world():
    done = verify("--worlds", "1", "--seed", "101", "--visitors", "600")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    lines = [one for one in told if one["kind"] == "line"]
    assert [one for one in lines if one["state"] != "holds"] == [], done.stderr
    assert [one["name"] for one in lines] == [one.name for one in CHECKS]
    (world,) = (one for one in told if one["kind"] == "world")
    assert world["seed"] == 101
    assert world["pages"] > 1_000
    assert world["events"] > 7_000
    assert world["outcome"] is not None, "nobody was tested"
    assert (told[-1]["kind"], told[-1]["holds"], told[-1]["kept"]) == ("report", True, None)
    assert done.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_check_holds_in_five_worlds_whose_trial_asks_no_gate(tmp_path):
    """Five whole ones would take two minutes: here the trial begins after three hours, and lasts six."""
    script = Script(portion_us=10 * MINUTE, forced_us=6 * HOUR)
    asked = [
        Asked(seed=seed, folder=str(tmp_path / f"world-{seed}"), visitors=250, script=script)
        for seed in range(201, 206)
    ]
    worlds, broken = _play_all(asked, processes=2, keeps=False, is_quiet=True)
    assert broken == {}
    lines = join_lines(worlds)
    assert [line for line in lines if line.state != "holds"] == []
    assert len(lines) == len(CHECKS) + 3
    assert [one.seed for one in worlds] == [201, 202, 203, 204, 205]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--worlds", "0"), "--worlds 0: must be 1 to 10,000"),
        (("--visitors", "9"), "--visitors 9: must be 200 to 1,000,000"),
        (("--personalisation", "-1"), "--personalisation -1: must be 0 to 10"),
        (("--processes", "0"), "--processes 0: must be 1 to 256"),
    ],
)
def test_a_wrong_option_is_refused(tmp_path, options, said):
    code, _, error = call("verify", *options, cwd=tmp_path)
    assert code == 2
    assert said in error


def test_worlds_go_into_an_empty_folder_only(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("mine")
    code, _, error = call("verify", "--dir", "kept", cwd=tmp_path)
    assert code == 2
    assert "'kept' is not empty; choose another folder" in error
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["file"]
    code, _, error = call("verify", "--dir", "kept/file", cwd=tmp_path)
    assert code == 2
    assert "cannot make the folder 'kept/file'" in error


def play_or_break(asked, *, keeps):
    """Returns a world that was not played; the second one breaks."""
    if asked.seed == 2:
        raise OSError("no space left")
    return World(seed=asked.seed, lines=(), pages=int(keeps), events=0, seconds=0.0)


def test_a_world_that_breaks_costs_no_other_one(monkeypatch):
    monkeypatch.setattr("headrace.console.verify.play_world", play_or_break)
    asked = [Asked(seed=seed, folder="") for seed in (1, 2, 3)]
    found, broken = _play_all(asked, processes=1, keeps=False, is_quiet=True)
    assert [one.seed for one in found] == [1, 3]
    (line,) = _tell_broken(broken, 3)
    assert (line.state, line.text, line.witness) == (
        "fails",
        "1 of 3 worlds were not",
        "seed 2: OSError: no space left",
    )
    with pytest.raises(OSError, match="no space"):
        _play_all(asked[1:2], processes=1, keeps=False, is_quiet=True)


@pytest.mark.parametrize("state", ["holds", "fails"])
def test_the_project_of_a_world_that_fails_is_kept(tmp_path, monkeypatch, state):
    def play_all(asked, **_):
        (one,) = asked
        line = Line(name="every page is logged", room="endpoints", state=state, text="1 page")
        if state == "fails":
            Path(one.folder).mkdir()
        return [World(seed=one.seed, lines=(line,), pages=1, events=0, seconds=0.0)], {}

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("headrace.console.verify._play_all", play_all)
    code, out, _ = call("verify", "--worlds", "1", "--seed", "7")
    kept = [path.name for folder in tmp_path.iterdir() for path in folder.iterdir()]
    assert (code, kept) == ((1, ["world-7"]) if state == "fails" else (0, []))
    assert ("the project of what fails in" in out) == (state == "fails")
    assert (list(tmp_path.iterdir()) == []) == (state == "holds")


@pytest.mark.soak
@pytest.mark.service("kafka")
@pytest.mark.service("hdfs")
def test_every_check_holds_on_kafka_and_hdfs(tmp_path, kafka, hdfs):
    folder = tmp_path / "world"
    write_project(folder, ports=(0, 0, 0), clock="stepped://")
    asked = Asked(seed=5, folder="", visitors=250, script=Script(portion_us=30 * MINUTE, forced_us=6 * HOUR))
    with cluster_of(kafka, hdfs) as cluster:
        toml = folder / "headrace.toml"
        laptop, _, rest = toml.read_text().partition("[profile.cluster]")
        moved = laptop.replace("sqlite:///.headrace/topics", cluster.topics)
        toml.write_text(moved.replace("file:///.headrace/lake", cluster.tables) + "[profile.cluster]" + rest)
        begin_stepped(folder, BEGIN_US)
        market = make_market(asked)
        with open_project(folder) as project:
            played = play(project, market, asked.script)
            lines = check(Case(project, market, played.record, played.verdict))
    assert [line for line in lines if line.state != "holds"] == []

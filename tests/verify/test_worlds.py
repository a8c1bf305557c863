"""`headrace verify` as its user calls it: the whole loop in five worlds, and every refusal."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from headrace.base.clock import begin_stepped
from headrace.console.init import write_project
from headrace.console.verify import BEGIN_US, Asked, make_market
from headrace.events.world import HOUR, MINUTE
from headrace.project import open_project
from headrace.verify.case import Case
from headrace.verify.checks import CHECKS, check
from headrace.verify.play import Script, play
from running import call
from services.cluster import cluster_of


def verify(*options, seconds=280):
    command = [sys.executable, "-m", "headrace", "verify", "--json", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_check_holds_in_five_worlds():
    done = verify("--worlds", "5", "--seed", "101", "--visitors", "600")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    lines = [one for one in told if one["kind"] == "line"]
    assert [one for one in lines if one["state"] != "holds"] == [], done.stderr
    assert [one["name"] for one in lines][: len(CHECKS)] == [one.name for one in CHECKS]
    worlds = [one for one in told if one["kind"] == "world"]
    assert [one["seed"] for one in worlds] == [101, 102, 103, 104, 105]
    assert all(one["pages"] > 1_000 and one["events"] > 7_000 for one in worlds)
    assert sum(one["outcome"] is not None for one in worlds) >= 3, "hardly anybody was tested"
    assert told[-1]["kind"] == "report"
    assert told[-1]["holds"] is True
    assert done.returncode == 0


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

"""The checks' own parts: the hash written down once more, reports, and what many worlds say together."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import growthbook
import msgspec
import pytest

from headrace.experiments.assign import assign
from headrace.verify.check_trial import hash_arm
from headrace.verify.checks import CHECKS
from headrace.verify.report import Line, Report, read_report, write_report
from headrace.verify.worlds import World, join_lines

LINES = tuple(Line(name=one.name, room=one.room, state="holds", text="3 events") for one in CHECKS)
OTHER = """
import json, sys
from headrace.experiments.assign import assign
print(json.dumps([assign("exp", name, (0.5, 0.5)) for name in json.load(sys.stdin)]))
"""


def test_arms_are_those_of_growthbooks_sdk_in_every_process():
    chance = random.Random(7)
    names = [f"{chance.getrandbits(64):x}" for _ in range(3_000)] + ["zoë", "用户", ""]
    told = [int(growthbook.core.gbhash("exp", name, 2) >= 0.5) for name in names]
    assert [hash_arm("exp", name) for name in names] == told
    assert [assign("exp", name, (0.5, 0.5)) for name in names] == told
    done = subprocess.run(
        [sys.executable, "-c", OTHER], input=json.dumps(names), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == told


def test_a_report_comes_back_as_it_was_written(tmp_path):
    assert read_report(tmp_path) is None
    report = Report(made_us=7, seed=1, worlds=1, seconds=2.5, lines=LINES)
    write_report(tmp_path, report)
    assert read_report(tmp_path) == report
    assert report.holds


def worlds(count, **changes):
    """Returns worlds whose verdicts are as far from the truth as chance has it."""
    chance, made = random.Random(11), []
    for seed in range(1, count + 1):
        error = chance.gauss(0, 1)
        known = {"difference": 0.02 + 0.005 * error, "error": 0.005, "true_difference": 0.02, "true_lift": 0.5}
        inside = {"is_inside": abs(error) < 1.96, "is_promoted": True, "outcome": "better"}
        made.append(World(seed=seed, lines=LINES, pages=9, events=9, seconds=1.0, **{**known, **inside, **changes}))
    return made


def named(lines):
    return {line.name: line for line in lines}


def test_one_world_says_what_its_lines_say():
    assert join_lines(worlds(1)) == list(LINES)


def test_a_line_that_fails_in_one_world_of_many_names_its_seed():
    made = worlds(3)
    wrong = msgspec.structs.replace(LINES[2], state="fails", text="2 events", witness="event m-7")
    made[1] = msgspec.structs.replace(made[1], lines=(*LINES[:2], wrong, *LINES[3:]))
    lines = join_lines(made)
    assert [line.name for line in lines if line.state == "fails"] == [LINES[2].name]
    assert lines[2].witness == "seed 2: event m-7"
    assert lines[2].text.startswith("fails in 1 of 3 worlds; in seed 2: 2 events")


MANY = [
    "95 % intervals hold the truth as often as they say",
    "verdicts err to both sides alike",
    "what is promoted is better in truth",
]


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({}, []),
        ({"is_inside": False}, MANY[:1]),
        ({"true_difference": 0.03}, MANY[1:2]),
        ({"true_lift": -0.1}, MANY[2:]),
    ],
)
def test_many_worlds_tell_when_verdicts_lie(changes, failing):
    lines = named(join_lines(worlds(60, **changes)))
    assert [name for name in MANY if lines[name].state == "fails"] == failing


def test_few_verdicts_say_nothing_of_how_often_they_hold():
    assert [line.name for line in join_lines(worlds(4))] == [line.name for line in LINES]
    assert join_lines(worlds(6, is_inside=None, error=None)) == join_lines(worlds(6))[: len(LINES)]

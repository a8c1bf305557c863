"""What the watcher makes of real topics and a real registry: it reads them, and leaves no trace."""

from __future__ import annotations

import subprocess
import sys
from itertools import chain

import msgspec

from headrace.base.clock import machine_us
from headrace.events.decision import DECISIONS
from headrace.events.settled import EVENTS
from headrace.experiments.experiment import ARMS, encode_trial
from headrace.learn import make_entry
from headrace.lookout import Lookout, late_us_of
from headrace.project import open_project
from headrace.rehearse import make_trial
from headrace.topics import Record
from headrace.watch.alert import Now
from streamline import BEGAN_US, HOUR, append, clicked, decided, make_project

HEAVY = """
import sys, headrace.work
heavy = {"numba", "pyarrow", "deltalake", "duckdb", "scipy", "pandas"}
print(sorted({name.partition(".")[0] for name in sys.modules} & heavy))
"""


class _Bundle:
    hash = "00"


def look(project):
    lookout = Lookout(project)
    now = Now(machine_us(), BEGAN_US, 0)
    found = lookout.look(now)
    while not lookout.is_level:
        found = lookout.look(now)
    return {(one.kind, one.subject): one for one in found if one.is_clear}


def start_trial(project, name="taste-home", **more):
    trial = make_trial(7, (_Bundle(), _Bundle()), BEGAN_US)
    trial = msgspec.structs.replace(trial, id=f"{name}-1", experiment=name, page=name, **more)
    project.registry.write(make_entry(project, "trial", name, encode_trial(trial)))
    return {"trial": trial.id, "experiment": name}


def test_a_healthy_project_is_silent_and_sees_no_reader(tmp_path):
    make_project(tmp_path)
    with open_project(tmp_path) as project:
        pages = [decided(f"v-{n}", ["item-1"], at_us=BEGAN_US) for n in range(300)]
        append(project, events=[clicked(f"v-{n}", "item-1", at_us=BEGAN_US) for n in range(600)], decisions=pages)
        # Somebody has written there by hand: it is no row, and the sinks pass it over.
        for name, value in ((EVENTS, b'{"type":"track"}'), (EVENTS, b"[" * 5_000), (DECISIONS, b"hello")):
            project.topic(name).append([Record(b"", value)])
        assert look(project) == {}
        assert (project.topics.groups(EVENTS), project.topics.groups(DECISIONS)) == ([], [])


def test_a_trial_whose_visitors_fall_into_one_arm_is_told(tmp_path):
    make_project(tmp_path)
    with open_project(tmp_path) as project:
        trial, other = start_trial(project), start_trial(project, "other")
        arms = ["control"] * 160 + ["treatment"] * 40
        pages = [
            decided(f"v-{n}", ["item-1"], at_us=BEGAN_US, arm=arm, **trial) for n, arm in enumerate(arms) for _ in "ab"
        ]
        robots = [decided(f"b-{n}", ["item-1"], at_us=BEGAN_US, arm="treatment", bot=True, **trial) for n in range(120)]
        # A page whose trial is well is asked for by turns.
        others = [decided(f"v-{n}", ["item-1"], at_us=BEGAN_US, arm=ARMS[n % 2], **other) for n in range(len(pages))]
        append(project, decisions=[*chain.from_iterable(zip(pages, others, strict=True)), *robots])
        (found,) = look(project).values()
        assert (found.kind, found.subject) == ("srm", "taste-home-1")
        assert found.text.startswith(
            "the visitors of trial taste-home-1 do not fit its weights: control 160 (100 expected), treatment 40 (100"
        )


def test_a_trial_that_was_not_read_from_its_beginning_is_not_judged(tmp_path, monkeypatch):
    make_project(tmp_path)
    monkeypatch.setattr("headrace.lookout._MOST_DECISIONS", 600)
    with open_project(tmp_path) as project:
        # Whoever comes back most is among the newest: an arm that is liked has more visitors there.
        old = start_trial(project)
        append(
            project, decisions=[decided(f"v-{n}", ["item-1"], at_us=BEGAN_US, arm="control", **old) for n in range(900)]
        )
        ends = tuple(bound.end for bound in project.topics.bounds(DECISIONS))
        new = start_trial(project, "other", positions={DECISIONS: ends})
        append(
            project, decisions=[decided(f"v-{n}", ["item-1"], at_us=BEGAN_US, arm="control", **new) for n in range(200)]
        )
        assert list(look(project)) == [("srm", "other-1")]


def test_late_events_count_from_the_first_page_on(tmp_path):
    make_project(tmp_path)
    with open_project(tmp_path) as project:
        late_us = late_us_of(project.clock)
        assert late_us == HOUR
        past = [clicked(f"v-{n}", "item-1", at_us=BEGAN_US - 2 * HOUR, received_us=BEGAN_US - 1) for n in range(400)]
        append(project, events=past, decisions=[decided("v-1", ["item-1"], at_us=BEGAN_US)])
        assert look(project) == {}
        late = [clicked(f"w-{n}", "item-1", at_us=BEGAN_US - 2 * HOUR, received_us=BEGAN_US) for n in range(400)]
        append(project, events=late)
        assert list(look(project)) == [("lateness", "events")]


def test_the_process_of_the_watcher_stays_light():
    done = subprocess.run([sys.executable, "-c", HEAVY], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

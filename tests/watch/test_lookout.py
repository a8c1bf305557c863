"""What the watcher makes of real topics and a real registry: it reads them, and leaves no trace."""

from __future__ import annotations

import subprocess
import sys

import msgspec

from headrace.base.clock import machine_us
from headrace.events.decision import DECISIONS
from headrace.events.settled import EVENTS
from headrace.experiments.experiment import encode_trial
from headrace.learn import make_entry
from headrace.lookout import Lookout, late_us_of
from headrace.project import open_project
from headrace.rehearse import make_trial
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
    now = Now(machine_us(), BEGAN_US)
    while (found := lookout.look(now)) is None:
        pass
    return {(one.kind, one.subject): one for one in found if one.is_clear}


def start_trial(project):
    trial = make_trial(7, (_Bundle(), _Bundle()), BEGAN_US)
    trial = msgspec.structs.replace(trial, id="taste-home-1", experiment="taste-home")
    project.registry.write(make_entry(project, "trial", "taste-home", encode_trial(trial)))


def test_a_healthy_project_is_silent_and_sees_no_reader(tmp_path):
    make_project(tmp_path)
    with open_project(tmp_path) as project:
        pages = [decided(f"v-{n}", ["item-1"], at_us=BEGAN_US) for n in range(300)]
        append(project, events=[clicked(f"v-{n}", "item-1", at_us=BEGAN_US) for n in range(600)], decisions=pages)
        assert look(project) == {}
        assert (project.topics.groups(EVENTS), project.topics.groups(DECISIONS)) == ([], [])


def test_a_trial_whose_visitors_fall_into_one_arm_is_told(tmp_path):
    make_project(tmp_path)
    with open_project(tmp_path) as project:
        start_trial(project)
        trial = {"trial": "taste-home-1", "experiment": "taste-home"}
        arms = ["control"] * 160 + ["treatment"] * 40
        pages = [
            decided(f"v-{n}", ["item-1"], at_us=BEGAN_US, arm=arm, **trial) for n, arm in enumerate(arms) for _ in "ab"
        ]
        robots = [decided(f"b-{n}", ["item-1"], at_us=BEGAN_US, arm="treatment", bot=True, **trial) for n in range(120)]
        append(project, decisions=[*pages, *robots])
        (found,) = look(project).values()
        assert (found.kind, found.subject) == ("srm", "taste-home-1")
        assert found.text.startswith(
            "the visitors of trial taste-home-1 do not fit its weights: control 160 (100 expected), treatment 40 (100"
        )


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

"""The role `runner` as a real process: trainings are killed and crash, it is killed itself, and the runs are done."""

import os
import shutil
import signal
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest

from experiments.test_promotion import NAME, PAGE, logged, meet  # noqa: F401 - a fixture
from headrace import loop
from headrace.project import open_project
from headrace.work import find_pipeline, run_pipeline
from running import is_alive, running, wait_until
from streamline import BEGAN_US, DAY, HOUR, SECOND, clicked, make_project, write

pytestmark = pytest.mark.slow

SLOW = '''
import os, pathlib, time
from dataclasses import dataclass

HERE = pathlib.Path(__file__).parent

@dataclass(frozen=True)
class Slow:
    """Popularity that waits until it may go on, and crashes if it must."""

    base: object
    name: str = "slow"
    inputs = ("events",)
    features = ()

    @property
    def clicks(self):
        return self.base.clicks

    def fit(self, lake):
        if (HERE / "crash").exists():
            (HERE / "crash").unlink()
            raise ZeroDivisionError("no clicks to divide by")
        (HERE / "fitting").write_text(str(os.getpid()))
        print("fitting slowly")
        while not (HERE / "go").exists():
            time.sleep(0.01)
        return self.base.fit(lake)

nightly = Pipeline("nightly", every="1d", steps=(tastes, Slow(popular)))
project = Project("streamline", pages=(home,), experiments=(trial,), pipelines=(nightly,))
'''


def declare(folder, text):
    """Changes what the project declares at its end."""
    source = folder / "project.py"
    before = source.read_text().replace("Page, Project", "Page, Pipeline, Project")
    source.write_text(before[: before.index("project = Project(")] + text)


def runs(project):
    return project.runner.history.runs("nightly")


def step_clock(folder, us):
    """Lets the project's time stand at an instant, for all its processes."""
    with (folder / ".headrace" / "clock.stepped").open("r+b") as file:
        file.write(struct.pack("<q", us))


def _fitting(folder, *, other_than=0):
    """Returns the process that fits, once there is one."""

    def found():
        path = folder / "fitting"
        pid = int(path.read_text() or 0) if path.exists() else 0
        return pid if pid not in (0, other_than) and is_alive(pid) else 0

    return wait_until(found, what="a step fits", seconds=20)


def test_training_that_is_killed_half_way_is_told_and_tried_again(tmp_path):
    folder = make_project(tmp_path)
    declare(folder, SLOW.replace("steps=(tastes, Slow(popular))", "steps=(Slow(popular),)"))
    with open_project(folder) as project, ThreadPoolExecutor(1) as pool:
        write(project, events=[clicked("ann", f"item-{n}", at_us=BEGAN_US - HOUR, category="x") for n in range(4)])
        told = []
        running_now = pool.submit(run_pipeline, project, find_pipeline(project, "nightly"), told=told.append)
        os.kill(_fitting(folder), signal.SIGKILL)
        (folder / "go").touch()
        run = running_now.result(20)
        assert (run.state, run.steps[0].attempts) == ("done", 2)
        assert [one.hash for one in project.registry.bundles()] == list(run.steps[0].outputs)
    assert told[1].startswith(
        "slow: FailedError: the process of nightly.slow was killed by SIGKILL, as the kernel does"
    )
    assert told[1].endswith(f"its log is {folder}/.headrace/log/nightly.slow.log; trying again in 1 s")


@pytest.mark.soak
def test_trainings_that_are_killed_or_crash_are_told_and_done_in_the_end(tmp_path):
    folder = make_project(tmp_path)
    declare(folder, SLOW)
    step_clock(folder, BEGAN_US - HOUR)
    with open_project(folder) as project:
        write(project, events=[clicked("ann", f"item-{n}", at_us=BEGAN_US - HOUR, category="x") for n in range(4)])
        (folder / "crash").touch()
        project.runner.history.first_us("nightly", BEGAN_US - HOUR)
        with running(folder, "runner") as up:
            wait_until(lambda: "runner" in up.pids, what="the runner runs")
            step_clock(folder, BEGAN_US + SECOND)
            killed = _fitting(folder)
            (run,) = runs(project)
            assert (run.due_us, run.state, run.steps[0].state, run.steps[1].attempts) == (
                BEGAN_US,
                "running",
                "done",
                2,
            )
            os.kill(killed, signal.SIGKILL)
            wait_until(lambda: runs(project)[0].steps[1].state == "failed", what="the kill is told")
            assert "was killed by SIGKILL, as the kernel does where memory runs out" in runs(project)[0].steps[1].error
            # The third attempt is killed with its runner, which dies while it fits.
            last = _fitting(folder, other_than=killed)
            os.kill(up.pids["runner"], signal.SIGKILL)
            wait_until(lambda: not is_alive(last), what="no training outlives its runner")
            again = _fitting(folder, other_than=last)
            (folder / "go").touch()
            wait_until(lambda: runs(project)[0].state == "done", what="the run is done", seconds=20)
            (run,) = runs(project)
            assert (run.resumed, [step.state for step in run.steps]) == (1, ["done", "done"])
            assert {one.hash for one in project.registry.bundles()} == {step.outputs[0] for step in run.steps}
            wait_until(lambda: not is_alive(again), what="the training ends")
    log = (folder / ".headrace" / "log" / "nightly.slow.log").read_text()
    assert "ZeroDivisionError: no clicks to divide by" in log
    assert "fitting slowly" in log


THEN = """
nightly = Pipeline("nightly", every="1d", steps=(tastes,), then=trial)
project = Project("streamline", pages=(home,), experiments=(trial,), pipelines=(nightly,))
"""


@pytest.mark.soak
def test_runner_takes_what_it_fits_to_a_champion(folder):
    declare(folder, THEN)
    with open_project(folder) as project, running(folder, "runner"):
        project.runner.history.first_us("nightly", project.clock.now_us())
        write(
            project, events=[clicked("ann", f"item-{n}", at_us=project.clock.now_us(), category="x") for n in range(9)]
        )
        step_clock(folder, BEGAN_US + DAY + SECOND)
        wait_until(lambda: project.registry.newest("trial"), seconds=30, what="the trial begins")
        trial = meet(project, rates=(0.1, 0.3))
        champion = wait_until(lambda: loop.find_champion(project, PAGE), seconds=30, what="there is a champion")
        assert (champion.bundle, champion.trial) == (trial.treatment, f"{NAME}-1")
        told = wait_until(
            lambda: len(project.runner.history.notes("nightly")) > 1 and project.runner.history.notes("nightly")
        )
        assert "serves home from now on" in told[0].text
        assert f"trial {NAME}-1 tests {trial.treatment[:12]}" in told[1].text
    assert not (folder / ".headrace" / "run" / "promoter.failure").exists()


@pytest.fixture
def folder(logged, tmp_path):  # noqa: F811 - the fixture above
    shutil.copytree(logged, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.sock"))
    return tmp_path

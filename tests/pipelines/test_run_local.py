"""Pipelines run by callables: in order, tried again, gone on with, and told by a history that only grows."""

import contextlib
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from headrace.base.errors import CallError, FormatError, StopError, UnavailableError, UrlError
from headrace.base.urls import Url
from headrace.pipelines import Pipeline, StoppedError, Tools, open_runner

DAY = 86_400_000_000
BEGAN_US = 20_000 * DAY + 5 * 3_600_000_000

KILLED = """import os, signal, sys
sys.path.insert(0, sys.argv[2])
from pipelines.test_run_local import NIGHTLY, open_at, tools
with open_at(sys.argv[1]) as runner:
    actions = {"popular": lambda: ["p1"], "ranker": lambda: os.kill(os.getpid(), signal.SIGKILL)}
    runner.run(NIGHTLY, actions, tools(), due_us=DUE)
"""


@dataclass(frozen=True)
class Step:
    name: str
    inputs: tuple[str, ...] = ("events",)


NIGHTLY = Pipeline("nightly", every="1d", steps=(Step("popular"), Step("ranker", ("events", "popular"))))


@contextlib.contextmanager
def open_at(folder):
    with contextlib.closing(open_runner(Url.parse("local://", root=folder))) as runner:
        yield runner


@pytest.fixture
def runner(tmp_path):
    with open_at(tmp_path) as one:
        yield one


def tools(pauses=None, told=None, now_us=BEGAN_US):
    return Tools(
        lambda: now_us, (pauses if pauses is not None else []).append, (told if told is not None else []).append
    )


def failing(*errors, outputs=("b1",)):
    """Returns an action that raises these errors one after the other, and then works."""
    left = list(errors)

    def act():
        if left:
            raise left.pop(0)
        return outputs

    return act


def test_steps_run_in_order_and_tell_what_they_took_and_gave(runner):
    told = []
    actions = {"ranker": lambda: ("r1", "r2"), "popular": lambda: ("p1",)}
    run = runner.run(NIGHTLY, actions, tools(told=told), due_us=BEGAN_US)
    assert (run.number, run.state, run.due_us, run.began_us, run.error) == (1, "done", BEGAN_US, BEGAN_US, "")
    assert [(one.name, one.state, one.attempts, one.inputs, one.outputs) for one in run.steps] == [
        ("popular", "done", 1, ("events",), ("p1",)), ("ranker", "done", 1, ("events", "popular"), ("r1", "r2")),
    ]  # fmt: skip
    assert told == ["popular: attempt 1", "popular: done: p1", "ranker: attempt 1", "ranker: done: r1, r2"]
    assert runner.history.count_done("nightly") == 1


def test_step_that_fails_is_tried_again_ever_later(runner):
    pauses = []
    actions = {"popular": failing(UnavailableError("lags"), StopError("crashed")), "ranker": failing()}
    run = runner.run(NIGHTLY, actions, tools(pauses))
    assert (run.state, run.steps[0].attempts, run.steps[0].error, pauses) == ("done", 3, "", [1.0, 2.0])


def test_run_fails_with_its_step_and_leaves_out_what_follows(runner):
    pauses = []
    actions = {"popular": failing(*[UnavailableError("lags")] * 3), "ranker": failing()}
    run = runner.run(NIGHTLY, actions, tools(pauses))
    assert (run.state, run.error, len(pauses)) == ("failed", "step 'popular': UnavailableError: lags", 2)
    assert [(one.name, one.state, one.attempts) for one in run.steps] == [("popular", "failed", 3)]
    # What cannot become right is not tried again.
    run = runner.run(NIGHTLY, {"popular": failing(CallError("no table")), "ranker": failing()}, tools(pauses))
    assert (run.number, run.state, run.steps[0].attempts, len(pauses)) == (2, "failed", 1, 2)


def test_run_that_was_killed_is_broken_off_and_goes_on_at_its_first_step_not_done(tmp_path):
    code = KILLED.replace("DUE", str(BEGAN_US))
    tests = str(Path(__file__).parents[1])
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path), tests], check=False, timeout=30).returncode == -9
    with open_at(tmp_path) as runner:
        (run,) = runner.history.runs("nightly")
        assert (run.state, runner.broken_off(NIGHTLY), run.ended_us) == ("broken off", True, None)
        assert [(one.name, one.state) for one in run.steps] == [("popular", "done"), ("ranker", "broken off")]
        asked = []
        actions = {"popular": lambda: asked.append("popular") or (), "ranker": lambda: ("r1",)}
        run = runner.run(NIGHTLY, actions, tools())
        assert (run.number, run.state, run.due_us, run.resumed, asked) == (1, "done", BEGAN_US, 1, [])
        assert [one.outputs for one in run.steps] == [("p1",), ("r1",)]


def test_run_that_is_told_to_stop_goes_on_later_unless_a_new_one_is_due(runner):
    actions = {"popular": failing(), "ranker": failing(StoppedError("told to stop"))}
    with pytest.raises(StoppedError):
        runner.run(NIGHTLY, actions, tools(), due_us=BEGAN_US)
    assert runner.broken_off(NIGHTLY)
    run = runner.run(NIGHTLY, {"popular": failing(), "ranker": failing()}, tools(), due_us=BEGAN_US + DAY)
    assert (run.number, run.state, run.steps[0].attempts) == (2, "done", 1)
    assert [one.state for one in runner.history.runs("nightly")] == ["done", "broken off"]


def test_runs_are_due_at_multiples_of_every_and_those_missed_run_once(runner):
    # Seen at five in the morning: the next midnight is the first one.
    assert (runner.due_us(NIGHTLY, BEGAN_US), runner.next_us(NIGHTLY, BEGAN_US)) == (None, 20_001 * DAY)
    assert runner.due_us(NIGHTLY, 20_001 * DAY - 1) is None
    assert runner.due_us(NIGHTLY, 20_001 * DAY) == 20_001 * DAY
    assert runner.due_us(NIGHTLY, 20_004 * DAY + 7) == 20_004 * DAY
    actions = {"popular": failing(), "ranker": failing()}
    runner.run(NIGHTLY, actions, tools(), due_us=20_004 * DAY)
    assert runner.due_us(NIGHTLY, 20_004 * DAY + 8) is None
    # However often somebody asks for more.
    for _ in range(30):
        runner.run(NIGHTLY, actions, tools())
    assert runner.due_us(NIGHTLY, 20_005 * DAY - 1) is None
    assert runner.due_us(NIGHTLY, 20_005 * DAY) == 20_005 * DAY
    # A clock that went back brings nothing forth.
    assert runner.due_us(NIGHTLY, 20_001 * DAY) is None


def test_pipeline_runs_once_at_a_time(runner, tmp_path):
    with open_at(tmp_path) as other:

        def act():
            assert (other.history.is_held("nightly"), other.history.runs("nightly")[0].state) == (True, "running")
            assert other.history.runs("nightly")[0].steps[0].state == "running"
            with pytest.raises(CallError, match="pipeline 'nightly' runs already"):
                other.run(NIGHTLY, {}, tools())
            return ()

        assert runner.run(NIGHTLY, {"popular": act, "ranker": failing()}, tools()).state == "done"
        assert not other.history.is_held("nightly")


def test_notes_are_kept_once_while_only_their_numbers_change(runner):
    for text in ("7 visitors came", "1,203 visitors came", "trial ranked-1 runs", "9 visitors came"):
        runner.history.note("nightly", text, BEGAN_US)
    assert [note.text for note in runner.history.notes("nightly")] == [
        "9 visitors came", "trial ranked-1 runs", "7 visitors came",
    ]  # fmt: skip
    assert runner.history.notes("weekly") == []


def test_history_that_is_damaged_or_of_a_newer_headrace_is_refused(tmp_path):
    path = tmp_path / ".headrace" / "runs.db"
    with open_at(tmp_path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("pragma user_version = 9")
    with pytest.raises(FormatError, match="has format 9, this Headrace reads formats up to 1"), open_at(tmp_path):
        pass
    for end in ("", "-wal", "-shm"):
        Path(f"{path}{end}").unlink(missing_ok=True)
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(FormatError, match="cannot be read"), open_at(tmp_path):
        pass


def test_runner_takes_no_place_and_no_options(tmp_path):
    for text in ("local://here", "local:///file.db"):
        with pytest.raises(UrlError, match="write local://, with nothing behind it"):
            open_runner(Url.parse(text, root=tmp_path))
    with pytest.raises(CallError, match="has no option 'retries'"):
        open_runner(Url.parse("local://?retries=2", root=tmp_path))
    assert not (tmp_path / ".headrace").exists()

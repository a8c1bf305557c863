"""Runs pipelines on this machine: one step after the other, each by a callable that it is given, with a history."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import msgspec

from headrace.base.errors import CallError, HeadraceError, UrlError
from headrace.base.urls import Url
from headrace.pipelines.history import BEGUN, DONE, FAILED, RESUMED, STARTED, History, Run, Value
from headrace.pipelines.pipeline import Pipeline, Step

_FILE = ".headrace/runs.db"
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0

Action = Callable[[], Sequence[str]]
"""Does the work of a step, and returns the names of what it has put out; raises a HeadraceError if it fails."""


class StoppedError(HeadraceError):
    """Whoever runs the pipeline was told to stop; the run goes on where it was."""


class _NoOptions(msgspec.Struct):
    pass


@dataclass(frozen=True)
class Tools:
    """What a run is done with: the project's clock, how to wait between attempts, and whom to tell of progress."""

    now_us: Callable[[], int]
    pause: Callable[[float], None] = time.sleep
    told: Callable[[str], None] = lambda _: None


class LocalRunner:
    """The runner of `local://`, whose history stands in the project's folder."""

    def __init__(self, history: History) -> None:
        self.history = history

    @classmethod
    def from_url(cls, url: Url) -> Self:
        """Returns the runner of a URL."""
        url.read_options(_NoOptions)
        if url.address or url.path:
            raise UrlError(f"runner {str(url)!r}: write local://, with nothing behind it")
        return cls(History((url.root / _FILE).absolute()))

    def due_us(self, pipeline: Pipeline, now_us: int) -> int | None:
        """Returns since when a run is due by its clock; of several that were missed the newest.

        A pipeline is first due at the first multiple of `every` after it was seen.
        """
        every_us = pipeline.every_us
        last_us = self.history.last_due_us(pipeline.name)
        if last_us is None:
            last_us = self.history.first_us(pipeline.name, now_us)
        newest_us = now_us // every_us * every_us
        return newest_us if newest_us > last_us else None

    def next_us(self, pipeline: Pipeline, now_us: int) -> int:
        """Returns when the next run is due; an instant that has passed if one is due now."""
        due_us = self.due_us(pipeline, now_us)
        return due_us if due_us is not None else (now_us // pipeline.every_us + 1) * pipeline.every_us

    def broken_off(self, pipeline: Pipeline) -> bool:
        """Returns whether the newest run was killed in the middle."""
        return any(run.state == "broken off" for run in self.history.runs(pipeline.name, limit=1))

    def run(self, pipeline: Pipeline, actions: Mapping[str, Action], tools: Tools, *, due_us: int | None = None) -> Run:
        """Returns the run of a pipeline, done or failed; raises CallError if another process runs it.

        A run that was broken off goes on at its first step that was not done, unless a new one is due.
        """
        with self.history.hold(pipeline.name):
            number, done = self._begin(pipeline, due_us, tools.now_us())
            error = ""
            for step in pipeline.steps:
                if step.name in done:
                    continue
                error = self._run_step(pipeline, step, actions[step.name], tools, run=number)
                if error:
                    error = f"step {step.name!r}: {error}"
                    break
            event = FAILED if error else DONE
            self.history.add(pipeline.name, event, tools.now_us(), run=number, value=Value(text=error))
            return self.history.runs(pipeline.name, limit=1)[0]

    def close(self) -> None:
        """Lets go of the history."""
        self.history.close()

    def _begin(self, pipeline: Pipeline, due_us: int | None, now_us: int) -> tuple[int, frozenset[str]]:
        newest = self.history.runs(pipeline.name, limit=1)
        # Ours is the lock, so one that has not ended was broken off.
        is_open = bool(newest) and newest[0].ended_us is None
        if is_open and due_us in (None, newest[0].due_us):
            self.history.add(pipeline.name, RESUMED, now_us, run=newest[0].number, value=Value())
            return newest[0].number, newest[0].done
        number = newest[0].number + 1 if newest else 1
        self.history.add(pipeline.name, BEGUN, now_us, run=number, value=Value(due_us=due_us))
        return number, frozenset()

    def _run_step(self, pipeline: Pipeline, step: Step, action: Action, tools: Tools, *, run: int) -> str:
        """Returns why a step has failed for good, or nothing."""
        pause_seconds, error = _FIRST_PAUSE_SECONDS, ""
        for attempt in range(1, pipeline.retries + 2):
            if attempt > 1:
                tools.told(f"{step.name}: {error}; trying again in {pause_seconds:g} s")
                tools.pause(pause_seconds)
                pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)
            tools.told(f"{step.name}: attempt {attempt}")
            inputs = tuple(step.inputs)
            self._add(pipeline, step, STARTED, tools, run=run, value=Value(attempt=attempt, inputs=inputs))
            began_at = time.monotonic()
            try:
                outputs = tuple(action())
            except StoppedError:
                raise
            except HeadraceError as problem:
                error = f"{type(problem).__name__}: {problem}"
                event, outputs = FAILED, ()
                is_final = isinstance(problem, CallError)
            else:
                event, error, is_final = DONE, "", True
            seconds = round(time.monotonic() - began_at, 3)
            value = Value(attempt=attempt, seconds=seconds, inputs=inputs, outputs=outputs, text=error)
            self._add(pipeline, step, event, tools, run=run, value=value)
            if is_final:
                break
        tools.told(f"{step.name}: {error or 'done: ' + ', '.join(outputs)}")
        return error

    def _add(self, pipeline: Pipeline, step: Step, event: str, tools: Tools, *, run: int, value: Value) -> None:
        self.history.add(pipeline.name, event, tools.now_us(), run=run, step=step.name, value=value)

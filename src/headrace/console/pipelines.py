"""headrace pipeline: run, status, history."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from headrace.base.errors import CallError
from headrace.console.show import (
    format_seconds,
    format_time,
    print_facts,
    print_lines,
    print_table,
    shown,
)
from headrace.console.state import is_running
from headrace.pipelines import Pipeline, Run
from headrace.project import OpenProject, open_project
from headrace.work import find_pipeline, run_pipeline

_EMPTY = "no pipelines: declare one in project.py and name it in Project(pipelines=...)"


def _opened(given: argparse.Namespace) -> OpenProject:
    return open_project(given.project, profile=given.profile)


def _as_row(run: Run) -> dict[str, Any]:
    return asdict(run)


# run.


def run(given: argparse.Namespace) -> int:
    """Runs a pipeline now; returns 1 if a step of it failed."""
    with _opened(given) as project:
        pipeline = find_pipeline(project, given.name)
        told = (lambda _: None) if given.json else (lambda text: print(shown(text), flush=True))
        found = run_pipeline(project, pipeline, told=told)
        follows = pipeline.then is not None and not is_running(project, "runner")
    if given.json:
        print_lines([_as_row(found)])
    else:
        _show_run(found, pipeline, follows=follows)
    return int(found.state != "done")


def _show_run(found: Run, pipeline: Pipeline, *, follows: bool) -> None:
    print()
    print_facts([("run", _run_text(found)), *([("why", found.error)] if found.error else [])])
    print()
    _print_steps(found)
    if found.state == "done" and follows and pipeline.then is not None:
        print(f"\nexperiment {pipeline.then.name} follows as soon as the runner runs: headrace up")


def _print_steps(found: Run) -> None:
    print_table(
        ("step", "state", "attempts", "took", "from", "brought forth"),
        [
            (
                step.name,
                step.state,
                step.attempts,
                format_seconds(step.seconds),
                ", ".join(step.inputs) or "-",
                ", ".join(one[:12] for one in step.outputs) or "-",
            )
            for step in found.steps
        ],
        empty="no step has begun",
    )


def _run_text(found: Run) -> str:
    due = "asked for by hand" if found.due_us is None else f"due {format_time(found.due_us)[:19]}"
    times = "once" if found.resumed == 1 else f"{found.resumed} times"
    again = f", gone on with {times}" if found.resumed else ""
    return f"{found.number} of {found.pipeline}, {due}: {found.state}{again}"


# status.


def status(given: argparse.Namespace) -> None:
    """Says of each pipeline what it did last, and when it is due next."""
    with _opened(given) as project:
        runs = is_running(project, "runner")
        rows = [describe_state(project, pipeline, runs=runs) for pipeline in project.declared.pipelines]
    if given.json:
        print_lines(rows)
        return
    print_table(
        ("pipeline", "every", "last run", "state", "next", "then"),
        [
            (
                row["pipeline"],
                row["every"],
                "-" if row["began_us"] is None else format_time(row["began_us"])[:19],
                row["state"],
                _next_text(row),
                row["then"] or "-",
            )
            for row in rows
        ],
        empty=_EMPTY,
    )
    for row in rows:
        for name in ("error", "note"):
            if row[name]:
                print(shown(f"{row['pipeline']}: {row[name]}"))


def describe_state(project: OpenProject, pipeline: Pipeline, *, runs: bool) -> dict[str, Any]:
    """Returns a pipeline as `pipeline status --json` shows it."""
    now_us, runner = project.clock.now_us(), project.runner
    last = next(iter(runner.history.runs(pipeline.name, limit=1)), None)
    note = next(iter(runner.history.notes(pipeline.name, limit=1)), None)
    return {
        "pipeline": pipeline.name,
        "every": pipeline.every,
        "steps": [step.name for step in pipeline.steps],
        "then": pipeline.then.name if pipeline.then else None,
        "run": last.number if last else None,
        "began_us": last.began_us if last else None,
        "state": last.state if last else "not run yet",
        "error": last.error if last else "",
        "note": note.text if note else "",
        "next_us": runner.next_us(pipeline, now_us),
        "now_us": now_us,
        "runner": "running" if runs else "stopped",
    }


def _next_text(row: dict[str, Any]) -> str:
    if row["runner"] == "stopped":
        return "never: headrace up"
    waits_us = row["next_us"] - row["now_us"]
    return "now" if waits_us <= 0 else f"in {format_seconds(waits_us / 1e6)}"


# history.


def history(given: argparse.Namespace) -> None:
    """Lists what pipelines did and what became of it, the newest first."""
    if given.limit < 1:
        raise CallError(f"--limit {given.limit}: must be 1 or more")
    with _opened(given) as project:
        names = [given.name] if given.name else [pipeline.name for pipeline in project.declared.pipelines]
        if given.name:
            find_pipeline(project, given.name)
        rows = list_rows(project, names, given.limit)
    if given.json:
        print_lines(rows)
        return
    if not rows:
        print("no pipeline has run yet. Run one with: headrace pipeline run NAME" if names else _EMPTY)
    for row in rows:
        _print_row(row)


def _print_row(row: dict[str, Any]) -> None:
    head = f"{format_time(row['at_us'])[:19]}  {row['pipeline']}  "
    text = row["text"] if row["kind"] == "note" else _told(row)
    print(textwrap.fill(shown(text), 80, initial_indent=head, subsequent_indent=" " * 21, break_on_hyphens=False))


def _told(row: dict[str, Any]) -> str:
    steps = ", ".join(f"{step['name']} {step['state']}" for step in row["steps"])
    return f"run {row['number']} {row['state']}: {row['error'] or steps or 'no step has begun'}"


def list_rows(project: OpenProject, names: Iterable[str], limit: int) -> list[dict[str, Any]]:
    """Returns what pipelines did as `pipeline history --json` shows it, the newest first."""
    kept = project.runner.history
    runs = [run for name in names for run in kept.runs(name, limit=limit)]
    notes = [note for name in names for note in kept.notes(name, limit=limit)]
    rows = [{"kind": "run", "at_us": run.began_us, **_as_row(run)} for run in runs]
    rows += [{"kind": "note", **asdict(note)} for note in notes]
    return sorted(rows, key=lambda row: row["at_us"], reverse=True)[:limit]

"""Pipelines: steps and their order, run by the project's clock."""

from __future__ import annotations

from headrace.base.urls import Registry, Scheme, Url
from headrace.pipelines.history import History, Note, Run, StepRun
from headrace.pipelines.pipeline import Pipeline, Sequel, Step
from headrace.pipelines.run_local import Action, LocalRunner, StoppedError, Tools

__all__ = [
    "SCHEMES",
    "Action",
    "History",
    "LocalRunner",
    "Note",
    "Pipeline",
    "Run",
    "Sequel",
    "Step",
    "StepRun",
    "StoppedError",
    "Tools",
    "open_runner",
]

SCHEMES = Registry(
    noun="runner",
    group="headrace.runners",
    schemes={"local": Scheme("headrace.pipelines.run_local:LocalRunner")},
)


def open_runner(url: Url | str) -> LocalRunner:
    """Returns the runner of a URL."""
    runner: LocalRunner = SCHEMES.open(url)
    return runner

"""An experiment: what a project declares, and the trial that freezes it while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec

from headrace.base.clock import read_duration
from headrace.base.errors import FormatError, ProjectError
from headrace.experiments.metric import FrozenMetric, MeanMetric, Metric, RatioMetric

CONTROL = "control"
TREATMENT = "treatment"
ARMS = (CONTROL, TREATMENT)

VERSION = 1

_LATENESS = "1h"


class Subject(Protocol):
    """What an experiment is about, such as a page: it has a name and a hash of all that it says."""

    @property
    def name(self) -> str:
        """Its name in the project."""

    @property
    def definition(self) -> str:
        """The hash of its definition."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A test of what a page's carousels rank against what serves now.

    `goal` is what it is about, and `guardrails` are what must not get worse meanwhile: where one does, the treatment
    is not better, whatever the goal says. `mde` is the smallest relative lift of the goal worth finding, `power` the
    chance to find it, `lateness` how long after their time events are waited for.
    """

    name: str = field(kw_only=False)
    on: Subject
    goal: RatioMetric
    guardrails: tuple[Metric, ...] = ()
    mde: float = 0.25
    power: float = 0.8
    alpha: float = 0.05
    lateness: str = _LATENESS

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.replace("-", "").replace("_", "").isalnum():
            raise ProjectError(f"Experiment({self.name!r}): a name has letters, digits, '-' and '_'")
        if not hasattr(self.on, "definition"):
            raise ProjectError(
                f"Experiment({self.name!r}): on={self.on!r} is no Page; write on=home for home = Page(...)"
            )
        # Alpha first: it bounds the power.
        for name, value, least, most in (
            ("alpha", self.alpha, 0.0, 0.5),
            ("mde", self.mde, 0.0, 10.0),
            ("power", self.power, self.alpha, 1.0),
        ):
            if not isinstance(value, int | float) or not least < value < most:
                hint = "; write a number, without quotes" if isinstance(value, str) else ""
                raise ProjectError(
                    f"Experiment({self.name!r}): {name}={value!r} must be between {least:g} and {most:g}{hint}"
                )
        self._check_metrics()
        read_duration(self.lateness, f"Experiment({self.name!r}): lateness")

    def _check_metrics(self) -> None:
        mine = f"Experiment({self.name!r})"
        if isinstance(self.goal, MeanMetric):
            raise ProjectError(
                f"{mine}: the goal {self.goal.name!r} is a mean, and a trial is planned and decided by a ratio; write "
                "goal= with a Metric.ratio, and the mean among the guardrails"
            )
        if not isinstance(self.goal, RatioMetric):
            raise ProjectError(f"{mine}: goal={self.goal!r} is no Metric")
        if not isinstance(self.guardrails, tuple):
            raise ProjectError(f"{mine}: guardrails={self.guardrails!r}; write guardrails=(..., ), a tuple of metrics")
        names = {self.goal.name}
        for metric in self.guardrails:
            if not isinstance(metric, Metric):
                raise ProjectError(f"{mine}: the guardrail {metric!r} is no Metric")
            if metric.name in names:
                raise ProjectError(
                    f"{mine}: two of its metrics are called {metric.name!r}, and a verdict tells them apart by name"
                )
            names.add(metric.name)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The goal, and the guardrails."""
        return self.goal, *self.guardrails

    @property
    def lateness_us(self) -> int:
        """How long after their time events are waited for."""
        return read_duration(self.lateness)


class Gate(msgspec.Struct, frozen=True):
    """The A/A gate: how often arms that are the same differ, when logged visitors are split anew again and again."""

    splits: int
    visitors: int
    significant: int
    """How many of the splits have p < alpha."""
    band: tuple[int, int]
    """Between which counts it lies, but for one time in a thousand."""
    alpha: float
    smallest_srm_p: float
    """The least p value of a sample ratio mismatch among the splits."""

    @property
    def is_passed(self) -> bool:
        """Whether the test finds no more than it may where nothing is."""
        return self.significant <= self.band[1]


class Trial(msgspec.Struct, kw_only=True, frozen=True):
    """One run of an experiment, frozen at its start: endpoints and analysis read everything from here alone."""

    version: int
    """The version of this contract."""
    id: str
    """The experiment's name and the number of the run."""
    experiment: str
    page: str
    seed: str
    """What the assignment of visitors follows from."""
    control: str
    """The hash of the bundle that served before."""
    treatment: str
    """The hash of the bundle that is tested."""
    per_row: int
    """How many items the page has."""
    explore: float
    """The share of positions filled at random, in both arms."""
    started_us: int
    """When it began, by the project's clock."""
    positions: dict[str, tuple[int, ...]]
    """Where `decisions` and `events` ended at its start, by topic."""
    incarnations: dict[str, str]
    """Which topics these were."""
    goal: str
    above: str
    """The name of the goal's event above, and the path of its item."""
    above_item: str
    below: str
    below_item: str
    within_us: int
    lateness_us: int
    alpha: float
    mde: float
    power: float
    planned: int
    """How many visitors an arm needs for the power that was asked for; 0 if nothing was known before."""
    definition: str
    """The hash of the page as it was declared; what is measured stands in the fields above."""
    gate: Gate | None = None
    """What the A/A gate said before it began; nothing if it was left out."""
    weights: tuple[float, ...] = (0.5, 0.5)
    """The shares of control and treatment."""
    status: Literal["running", "stopped"] = "running"
    stopped_us: int = 0
    """When it was stopped."""
    guardrails: tuple[FrozenMetric, ...] = ()
    """What must not get worse."""

    def bundle_of(self, arm: str) -> str:
        """Returns the hash of the bundle that an arm is served from."""
        return self.control if arm == CONTROL else self.treatment


class _Mark(msgspec.Struct):
    version: int


encode_trial = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Trial).decode
_read_mark = msgspec.json.Decoder(_Mark).decode


def decode_trial(value: bytes) -> Trial:
    """Returns the trial in a row of the registry; raises FormatError for anything else.

    >>> decode_trial(b'{"version":9}')
    Traceback (most recent call last):
    ...
    headrace.base.errors.FormatError: the trial has version 9, this Headrace reads version 1. Run a newer one
    """
    check_version(value, "trial", VERSION)
    try:
        return _decode(value)
    except ValueError as error:
        raise FormatError(f"{_cut(value)} is no trial: {error}") from error


def check_version(value: bytes, what: str, version: int) -> None:
    """Raises FormatError unless some JSON says that it has this version of its contract."""
    try:
        found = _read_mark(value).version
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{_cut(value)} is no {what}: {error}") from error
    if found != version:
        raise FormatError(f"the {what} has version {found}, this Headrace reads version {version}. Run a newer one")


def _cut(value: bytes) -> str:
    return f"{value[:40]!r}{'...' if len(value) > 40 else ''}"

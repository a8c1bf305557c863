"""The contracts `exposure` and `verdict`, version 1: who was in a trial, and what it found."""

from __future__ import annotations

from typing import Literal

import msgspec

from headrace.base.errors import FormatError
from headrace.experiments.experiment import Gate, check_version

VERSION = 1
VERDICTS = "verdicts"
SRM_ALPHA = 0.001
"""Below this p value the counts do not fit the weights; one healthy trial in a thousand is accused."""

Outcome = Literal["better", "worse", "undecided", "early", "unhealthy", "empty"]

OUTCOMES: dict[Outcome, str] = {
    "better": "the treatment is better: p < alpha, and its ratio is higher",
    "worse": "the treatment is worse: p < alpha, and its ratio is lower, or a guardrail is",
    "undecided": "as many visitors as planned were in it, and chance explains the difference",
    "early": "there are fewer visitors than planned, and chance explains the difference so far",
    "unhealthy": "a check of the trial itself failed, so no number of it can be trusted",
    "empty": "there is nothing to compare; the reasons say why",
}
"""What each outcome means."""


class Exposure(msgspec.Struct, kw_only=True, frozen=True):
    """One visitor of a trial, as the analysis counts it."""

    version: int
    """The version of this contract."""
    trial: str
    visitor: str
    arm: str
    """The arm; of a visitor seen in both the first by name, and `arms` is 2."""
    arms: int
    """In how many arms the visitor was seen; those in more than one are dropped."""
    bot: bool
    """Whether a decision or an impression of the visitor says that it is a robot; robots are dropped."""
    first_us: int
    """When it was exposed first, by the project's clock."""
    pages: int
    """How many decisions it got; none if only `Experiment Viewed` tells of it."""
    views: int
    """How many items of these it has viewed."""
    clicks: int
    """How many of those the event above followed in time."""


class Arm(msgspec.Struct, kw_only=True, frozen=True):
    """What one arm did."""

    visitors: int
    pages: int
    views: int
    clicks: int
    ratio: float | None
    """Clicks by views; none without views."""


class Guardrail(msgspec.Struct, kw_only=True, frozen=True):
    """What a trial did to a metric that must not get worse."""

    name: str
    control: float | None
    """The control's ratio, or its mean over visitors; none if it has none."""
    treatment: float | None
    control_visitors: int
    """How many of the control's visitors it is about."""
    treatment_visitors: int
    cap: float | None = None
    """What a visitor has at most, where the metric has a cap: its quantile of both arms together."""
    difference: float | None
    """The treatment's less the control's."""
    difference_interval: tuple[float, float] | None
    lift: float | None
    """The treatment's by the control's, less 1."""
    lift_interval: tuple[float, float] | None
    p: float | None
    df: float | None
    is_worse: bool
    """Whether p < alpha, and the treatment's is lower."""
    reason: str | None = None
    """Why it cannot be judged, if so."""


class Verdict(msgspec.Struct, kw_only=True, frozen=True):
    """What a trial found, from the exposures before its cut-off and the events up to its positions."""

    version: int
    """The version of this contract."""
    trial: str
    experiment: str
    page: str
    goal: str
    made_us: int
    """When it was made, by the project's clock."""
    started_us: int
    """When the trial began."""
    cutoff_us: int
    """Exposures from here on are left out: what follows them may still be on its way."""
    positions: dict[str, tuple[int, ...]]
    """Up to where `decisions` and `events` were read, by topic; what came later changes nothing."""
    incarnations: dict[str, str]
    """Which topics these were."""
    control_bundle: str
    treatment_bundle: str
    alpha: float
    planned: int
    """How many visitors per arm were planned."""
    outcome: Outcome
    reasons: tuple[str, ...]
    """Why it is so, in sentences: what is wrong first."""
    gate: Gate | None
    """What the A/A gate said before the trial."""
    srm_p: float | None
    """How well the visitors fit the arms' weights; below 0.001 nothing else counts."""
    multiple: int
    """Visitors seen in more than one arm, who were dropped."""
    bots: int
    """Robots that were dropped."""
    degraded: dict[str, int]
    """Pages that were served other than planned, by `arm/what`."""
    control: Arm
    treatment: Arm
    difference: float | None
    """The treatment's ratio less the control's."""
    difference_interval: tuple[float, float] | None
    lift: float | None
    """The treatment's ratio by the control's, less 1."""
    lift_interval: tuple[float, float] | None
    """None if the relative lift is not estimable."""
    p: float | None
    df: float | None
    guardrails: tuple[Guardrail, ...] = ()
    """What became of the metrics that must not get worse, in the order of the trial."""


encode_exposure = encode_verdict = msgspec.json.Encoder().encode
_decode_verdict = msgspec.json.Decoder(Verdict).decode
_decode_exposure = msgspec.json.Decoder(Exposure).decode


def decode_verdict(value: bytes) -> Verdict:
    """Returns a verdict; raises FormatError for anything else.

    >>> decode_verdict(b'{"version":9}')
    Traceback (most recent call last):
    ...
    headrace.base.errors.FormatError: the verdict has version 9, this Headrace reads version 1. Run a newer one
    """
    check_version(value, "verdict", VERSION)
    try:
        return _decode_verdict(value)
    except ValueError as error:
        raise FormatError(f"this is no verdict: {error}") from error


def decode_exposure(value: bytes) -> Exposure:
    """Returns an exposure; raises FormatError for anything else."""
    check_version(value, "exposure", VERSION)
    try:
        return _decode_exposure(value)
    except ValueError as error:
        raise FormatError(f"this is no exposure: {error}") from error

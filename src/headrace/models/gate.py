"""The offline gate: what a bundle must show before visitors may meet it in a trial."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from headrace.base.errors import FormatError
from headrace.experiments.experiment import check_version
from headrace.models.validate import Measures, Report

GATE = "gate"
"""The kind of the registry's rows that say what the gate found, by the bundle's hash."""

VERSION = 1

LEAST_CLICKS = 50
CALIBRATED = (0.5, 2.0)


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate says of a bundle."""

    version: int
    """The version of this contract."""
    passed: bool
    """Whether a trial may begin with it."""
    reasons: tuple[str, ...]
    """Why, in sentences: what is wrong if it is refused, else all that was looked at."""
    report: Report | None = None
    """What was measured; null for a model that cannot be judged by rows, such as popularity."""


encode_gate = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(Gate).decode


def decode_gate(value: bytes) -> Gate:
    """Returns the gate in a row of the registry; raises FormatError for anything else.

    >>> decode_gate(b'{"version":1,"passed":true,"reasons":[]}').passed
    True
    """
    check_version(value, "gate", VERSION)
    try:
        return _decode(value)
    except ValueError as error:
        raise FormatError(f"{value[:40]!r} is no gate: {error}") from error


def decide(report: Report | None) -> Gate:
    """Returns what the gate says to a report; a model that learns no weights has none, and passes."""
    if report is None:
        reasons: tuple[str, ...] = ("it learns no weights, so nothing is judged before a trial",)
        return Gate(version=VERSION, passed=True, reasons=reasons)
    found = list(_check(report))
    wrong = tuple(sentence for is_right, sentence in found if not is_right)
    return Gate(
        version=VERSION,
        passed=not wrong,
        reasons=wrong or tuple(sentence for _, sentence in found),
        report=report,
    )


def _check(report: Report) -> Iterator[tuple[bool, str]]:
    """Yields whether each check is passed, and its sentence."""
    if report.broken:
        yield False, f"{report.broken:,} of {report.judged:,} scores are no numbers: some weight or feature is none"
    enough = report.clicks >= LEAST_CLICKS
    needed = "" if enough else f", {LEAST_CLICKS} are needed: let the page serve for longer, and fit again"
    yield enough, f"{report.clicks:,} clicks on {report.judged:,} viewed items were judged{needed}"
    popular, held_out, bundle = report.popularity, report.held_out, report.bundle
    if popular is None or held_out is None or bundle is None or report.least_gain is None:
        if enough and not report.broken:
            yield False, "nothing can be learned from the rows before the split. Let the page serve for longer"
        return
    yield from _check_measures(popular, held_out, bundle, report.least_gain)


def _check_measures(
    popular: Measures, held_out: Measures, bundle: Measures, least_gain: float
) -> Iterator[tuple[bool, str]]:
    above = least_gain > 0
    bound = f"at least {least_gain:+.3f} in four samples of persons out of five"
    yield (
        above,
        (
            f"NDCG@10 of what came after the split is {held_out.ndcg:.3f}, popularity's {popular.ndcg:.3f}: {bound}"
            f"{'' if above else ', which must be above 0'}"
        ),
    )
    same = bundle.ndcg > popular.ndcg
    yield same, f"the bundle's own NDCG@10 there is {bundle.ndcg:.3f}{'' if same else ', below popularity'}"
    less = held_out.log_loss < popular.log_loss
    yield (
        less,
        (
            f"its log loss is {held_out.log_loss:.4f}, that of position and popularity alone {popular.log_loss:.4f}"
            f"{'' if less else ', which must be more'}"
        ),
    )
    for what, ratio in (("it", held_out.calibration), ("the bundle", bundle.calibration)):
        calibrated = CALIBRATED[0] <= ratio <= CALIBRATED[1]
        wanted = "" if calibrated else f", which must be {CALIBRATED[0]:g} to {CALIBRATED[1]:g}"
        yield calibrated, f"{what} expects {ratio:.2f} clicks for each one that came{wanted}"

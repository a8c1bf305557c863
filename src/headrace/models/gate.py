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
LEAST_GAIN = -0.02
"""How far NDCG may lie below popularity's: the gate keeps out what is worse, what is better the trial shows."""
MOST_LOSS = 1.02
"""How much of the log loss of position and popularity alone may come."""
LEAST_AGREEMENT = 0.5
"""How alike a bundle scores as the fit of the same declaration that was judged; turned round it is -1."""
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
    if popular is not None and held_out is not None and report.least_gain is not None:
        yield from _check_held_out(popular, held_out, report.least_gain)
    elif enough:
        yield False, "nothing can be learned from the rows before the split. Let the page serve for longer"
    if bundle is not None and report.agreement is not None:
        yield from _check_bundle(bundle, report.agreement)


def _check_held_out(popular: Measures, held_out: Measures, least_gain: float) -> Iterator[tuple[bool, str]]:
    close = least_gain > LEAST_GAIN
    limit = "" if close else f", which must be above {LEAST_GAIN:g}"
    found = f"NDCG@10 after it is {held_out.ndcg:.3f}, popularity's {popular.ndcg:.3f}"
    yield (
        close,
        f"fitted before the split, {found}: in four of five samples of persons {least_gain:+.3f} or more{limit}",
    )
    less = held_out.log_loss < MOST_LOSS * popular.log_loss
    limit = "" if less else f", of which it may be {MOST_LOSS:g} times as much at most"
    found = f"that of position and popularity alone {popular.log_loss:.4f}"
    yield less, f"its log loss is {held_out.log_loss:.4f}, {found}{limit}"
    yield _check_calibration("it", held_out)


def _check_bundle(bundle: Measures, agreement: float) -> Iterator[tuple[bool, str]]:
    alike = agreement >= LEAST_AGREEMENT
    wanted = "" if alike else f", which must be {LEAST_AGREEMENT:g} or more: its weights are not what the rows say"
    yield alike, f"the scores of the bundle and of that fit correlate by {agreement:.2f}{wanted}"
    yield _check_calibration("the bundle", bundle)


def _check_calibration(what: str, found: Measures) -> tuple[bool, str]:
    is_right = CALIBRATED[0] <= found.calibration <= CALIBRATED[1]
    wanted = "" if is_right else f", which must be {CALIBRATED[0]:g} to {CALIBRATED[1]:g}"
    return is_right, f"{what} expects {found.calibration:.2f} clicks for each one that came{wanted}"

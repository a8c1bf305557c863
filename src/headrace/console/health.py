"""Whether a trial itself can be trusted: each check with its mark, for a terminal, a page and a report alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from headrace.console.figures import count_of, format_chance
from headrace.experiments.experiment import Gate
from headrace.experiments.verdict import SRM_ALPHA, Verdict

Mark = Literal["good", "bad", "noted"]
BADGES: Mapping[Mark, str] = {"good": "good", "bad": "bad", "noted": ""}
"""How a page draws each mark."""


class Check(NamedTuple):
    """One check of a trial."""

    name: str
    mark: Mark
    text: str
    """What was found."""


def list_checks(verdict: Verdict) -> Iterator[Check]:
    """Yields the checks of a trial; where one is bad, no number of it can be trusted."""
    is_mismatch = verdict.srm_p is not None and verdict.srm_p < SRM_ALPHA
    if verdict.srm_p is None:
        yield Check("sample ratio", "noted", "no visitor counts, so there is no ratio to check")
    else:
        text = f"p {format_chance(verdict.srm_p)}; below {SRM_ALPHA:g} visitors are lost or doubled in one arm"
        yield Check("sample ratio", "bad" if is_mismatch else "good", text)
    yield _check_gate(verdict.gate)
    is_mixed = verdict.outcome == "unhealthy" and not is_mismatch
    mixed: Mark = "bad" if is_mixed else "noted" if verdict.multiple else "good"
    yield Check("in both arms", mixed, f"{count_of(verdict.multiple, 'visitor')}, left out")
    yield Check("robots", "noted" if verdict.bots else "good", f"{verdict.bots:,} left out")
    yield _check_degraded(verdict.degraded)


def _check_gate(gate: Gate | None) -> Check:
    if gate is None:
        return Check("A/A", "noted", "not run before this trial")
    text = (
        f"{gate.significant:,} of {gate.splits:,} splits of {count_of(gate.visitors, 'logged visitor')} differ at "
        f"p < {gate.alpha:g}, up to {gate.band[1]:,} may"
    )
    return Check("A/A", "good" if gate.is_passed else "bad", text)


def _check_degraded(degraded: Mapping[str, int]) -> Check:
    """Returns what was served otherwise, by arm; the keys are like `control/behind`."""
    if not degraded:
        return Check("degraded", "good", "no page was served other than planned")
    by_arm: dict[str, list[str]] = {}
    for what, pages in sorted(degraded.items()):
        arm, _, how = what.partition("/")
        by_arm.setdefault(arm, []).append(f"{pages:,} {how}")
    listed = "; ".join(f"{arm}: {', '.join(found)}" for arm, found in by_arm.items())
    return Check("degraded", "noted", f"pages of {listed}")

"""The arms of the trial that runs: do they get the visitors that their weights promise?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from headrace.stats.sequential import multinomial_evidence
from headrace.watch.alert import Finding, Now

ALPHA = 1e-5
"""One healthy trial in so many is accused, however long it lasts and however often it is looked at."""
MOST_VISITORS = 300_000
"""Whoever comes after so many visitors of a trial is not counted: each takes 130 bytes."""


class Arms:
    """Who came into which arm of one trial; robots and pages without a visitor are not enrolled."""

    def __init__(self, trial: str, names: Sequence[str], weights: Sequence[float]) -> None:
        self.trial = trial
        self._names, self._weights = tuple(names), tuple(weights)
        self._visitors: set[str] = set()
        self._counts = dict.fromkeys(names, 0)

    def add(self, visitor: str, arm: str) -> None:
        """Takes in a page of a visitor."""
        if visitor not in self._visitors and arm in self._counts and len(self._visitors) < MOST_VISITORS:
            self._visitors.add(visitor)
            self._counts[arm] += 1

    def judge(self, now: Now) -> Iterator[Finding]:  # noqa: ARG002 - the same at every instant
        """Yields the finding, if there is one."""
        counts = [self._counts[name] for name in self._names]
        evidence = multinomial_evidence(counts, self._weights)
        if evidence <= 0:
            return
        whole = math.fsum(self._weights)
        listed = ", ".join(
            f"{name} {count:,} ({sum(counts) * weight / whole:,.0f} expected)"
            for name, count, weight in zip(self._names, counts, self._weights, strict=True)
        )
        p = math.exp(-min(evidence, 700.0))
        yield Finding(
            kind="srm",
            subject=self.trial,
            text=f"the visitors of trial {self.trial} do not fit its weights: {listed}, p = {p:.1g}",
            advice="Trust no lift of it: look for an arm that fails or is slow, for robots, and for pages that were "
            "not logged; then stop it: headrace experiment stop " + self.trial.rpartition("-")[0],
            evidence={**self._counts, "p": p, "limit": ALPHA},
            is_clear=evidence >= -math.log(ALPHA),
        )

"""Who was in a trial and what they did, folded from the rows one by one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from headrace.events.decision import DECISIONS
from headrace.events.settled import EVENTS
from headrace.experiments.experiment import Trial
from headrace.experiments.verdict import Verdict
from headrace.verify.oracle import find_items


class Exposing(Protocol):
    """What is folded."""

    @property
    def decisions(self) -> Iterable[Mapping[str, Any]]:
        """The rows of pages that were answered with their id."""

    @property
    def events(self) -> Iterable[Mapping[str, Any]]:
        """The rows of `events`."""

    @property
    def trial(self) -> Trial:
        """The trial."""

    @property
    def judged(self) -> Verdict:
        """Its verdict."""

    def is_bot(self, visitor: str) -> bool:
        """Returns whether a visitor is a robot."""


@dataclass
class Exposed:
    """What counts for one visitor."""

    arms: set[str] = field(default_factory=set)
    pages: set[str] = field(default_factory=set)
    views: int = 0
    clicks: int = 0

    @property
    def told(self) -> tuple[str, int, int, int]:
        """Arm, pages, views and clicks."""
        return "/".join(sorted(self.arms)), len(self.pages), self.views, self.clicks


def expose(case: Exposing) -> dict[str, Exposed]:
    """Returns who was in the trial and what they did, folded from the rows one by one."""
    trial, verdict = case.trial, case.judged
    found: dict[str, Exposed] = defaultdict(Exposed)
    pages: dict[str, tuple[str, int, set[str]]] = {}
    for row in case.decisions:
        inside = _is_inside(row, trial.positions[DECISIONS], verdict.positions[DECISIONS])
        if row["trial"] != trial.id or not row["visitor"] or case.is_bot(row["visitor"]) or not inside:
            continue
        if not trial.started_us <= row["received_us"] < verdict.cutoff_us:
            continue
        one = found[row["visitor"]]
        one.arms.add(row["arm"])
        one.pages.add(row["recommendation_id"])
        page = pages.setdefault(row["recommendation_id"], (row["visitor"], row["received_us"], set()))
        page[2].update(row["items"])
    views = _first_times(case, pages, trial.below, trial.below_item)
    clicks = _first_times(case, pages, trial.above, trial.above_item)
    for (page_id, item), view_us in views.items():
        one = found[pages[page_id][0]]
        one.views += 1
        one.clicks += clicks.get((page_id, item), view_us + trial.within_us + 1) <= view_us + trial.within_us
    return found


def _first_times(
    case: Exposing, pages: Mapping[str, tuple[str, int, set[str]]], event: str, path: str
) -> dict[tuple[str, str], int]:
    """Returns when each item of each page was first viewed, or clicked, by the visitor whom it was made for."""
    trial = case.trial
    found: dict[tuple[str, str], int] = {}
    for row in case.events:
        page = pages.get(row["recommendation_id"])
        inside = _is_inside(row, trial.positions[EVENTS], case.judged.positions[EVENTS])
        if page is None or row["event"] != event or row["type"] != "track" or row["visitor"] != page[0] or not inside:
            continue
        if row["event_us"] < page[1] - trial.within_us:
            continue
        for item in find_items(msgspec.json.decode(row["properties"]), path):
            if item in page[2]:
                key = (row["recommendation_id"], item)
                found[key] = min(found.get(key, row["event_us"]), row["event_us"])
    return found


def _is_inside(row: Mapping[str, Any], starts: Any, ends: Any) -> bool:
    partition = row["log_partition"]
    return bool(starts[partition] <= row["log_offset"] < ends[partition])

"""Checks the loop against a world whose truth is known: replays decisions, and tells what a trial should have found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headrace.endpoints.carousel import Chosen, Rule, choose
from headrace.endpoints.follower import SEEN_US
from headrace.engines.engine import quote_text
from headrace.events.decision import DECISIONS
from headrace.events.settled import EVENTS
from headrace.events.world import World
from headrace.experiments.experiment import ARMS, CONTROL, TREATMENT
from headrace.experiments.verdict import Verdict
from headrace.models import Scorer, open_bundle
from headrace.project import OpenProject
from headrace.tables.catalog import item_sql


@dataclass(frozen=True)
class Truth:
    """What a trial should have found: expected clicks per item viewed, had everybody been in one arm."""

    pages: int
    control: float
    treatment: float
    replayed: int
    """Decisions that were made again from what was logged."""
    different: int
    """How many of these came out as another page; must be 0."""

    @property
    def difference(self) -> float:
        """The treatment's ratio less the control's."""
        return self.treatment - self.control

    @property
    def lift(self) -> float:
        """The treatment's ratio by the control's, less 1."""
        return self.treatment / self.control - 1

    def is_inside(self, verdict: Verdict) -> bool:
        """Returns whether the verdict's interval holds the truth."""
        if verdict.lift_interval is not None:
            return verdict.lift_interval[0] <= self.lift <= verdict.lift_interval[1]
        found = verdict.difference_interval
        return found is not None and found[0] <= self.difference <= found[1]


def tell_truth(project: OpenProject, world: World, verdict: Verdict) -> Truth:
    """Returns the truth over all pages of a trial's enrolled visitors, and replays each of them on the way.

    Both arms' pages are made for the same visitor, instant, seen set and seed.
    """
    numbers = {world.visitor(number).anonymous_id: number for number in range(world.num_visitors)}
    scorers = {
        CONTROL: open_bundle(project.registry.load(verdict.control_bundle)),
        TREATMENT: open_bundle(project.registry.load(verdict.treatment_bundle)),
    }
    pages: dict[str, list[tuple[int, int, tuple[str, ...]]]] = {arm: [] for arm in ARMS}
    replayed = different = 0
    for row in _read_decisions(project, verdict):
        made = {arm: _make(scorer, row) for arm, scorer in scorers.items()}
        for arm, chosen in made.items():
            pages[arm].append((numbers[row["visitor"]], row["at_us"], chosen.items))
        if not row["degraded"]:
            replayed += 1
            different += not is_same(made[row["arm"]], row)
    ratios = {arm: world.true_ctr(pages[arm]) for arm in ARMS}
    return Truth(len(pages[CONTROL]), ratios[CONTROL], ratios[TREATMENT], replayed, different)


def is_same(chosen: Chosen, row: Mapping[str, Any]) -> bool:
    """Returns whether a decision that was made again is the one that was logged, chances included."""
    logged = (tuple(row["items"]), tuple(row["scores"]), tuple(row["propensities"]))
    return (chosen.items, chosen.scores, chosen.propensities) == logged


def replay(project: OpenProject, recommendation_id: str) -> tuple[Chosen, Mapping[str, Any]] | None:
    """Returns a decision made again from its bundle and from `events` below its positions, and what was logged of it.

    What the person had seen is read from the lake, not from the decision. None if the lake has no such decision.
    """
    found = project.query(
        f"SELECT * FROM {DECISIONS} WHERE recommendation_id = $id",  # noqa: S608 - a name of ours
        parameters={"id": recommendation_id},
    ).table()
    if not found.num_rows:
        return None
    row: dict[str, Any] = found.to_pylist()[0]
    page = next(page for page in project.declared.pages if page.name == row["page"])
    known = ", ".join(map(str, row["applied"]))
    parts = [
        f"SELECT item FROM ({item_sql(event)}) WHERE person = $person AND event_us >= $since AND event_us < $at "  # noqa: S608
        f"AND log_offset < ([{known}])[log_partition + 1]"
        for event in page.events
    ]
    times = {"person": row["person"], "since": row["at_us"] - SEEN_US, "at": row["at_us"]}
    items = (
        project.query(" UNION ALL ".join(parts), parameters=times).table() if EVENTS in project.tables.names() else None
    )
    row["seen"] = sorted({item for item in items.column("item").to_pylist() if item}) if items else []
    scorer = open_bundle(project.registry.load(row["bundle"]))
    return _make(scorer, row), row


def _read_decisions(project: OpenProject, verdict: Verdict) -> list[dict[str, Any]]:
    ends = ", ".join(map(str, verdict.positions[DECISIONS]))
    rows: list[dict[str, Any]] = (
        project.query(
            f"SELECT * FROM {DECISIONS} WHERE trial = {quote_text(verdict.trial)} AND visitor IS NOT NULL AND NOT bot "  # noqa: S608
            f"AND received_us < {verdict.cutoff_us} AND log_offset < ([{ends}])[log_partition + 1] "
            "ORDER BY log_partition, log_offset"
        )
        .table()
        .to_pylist()
    )
    return rows


def _make(scorer: Scorer, row: Mapping[str, Any]) -> Chosen:
    rule = Rule(row["per_row"], row["explore"])
    return choose(scorer, row["person"], row["seen"], rule=rule, seed=row["seed"])

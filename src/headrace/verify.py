"""Checks the loop against a world whose truth is known: replays decisions, and tells what a trial should have found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headrace.base.errors import StopError, unknown_name
from headrace.endpoints.carousel import Chosen, Rule, choose
from headrace.endpoints.follower import MOST_SEEN, SEEN_US
from headrace.engines.engine import quote_text
from headrace.events.decision import DECISIONS
from headrace.events.event import Event
from headrace.events.settled import EVENTS
from headrace.events.world import World
from headrace.experiments.experiment import ARMS, CONTROL, TREATMENT
from headrace.experiments.verdict import Verdict
from headrace.loop import find_trial_of
from headrace.models import Scorer, open_bundle
from headrace.project import OpenProject
from headrace.rehearse import Lift, tell_lift
from headrace.tables.catalog import below_sql, item_sql
from headrace.tables.sink import INCARNATION


@dataclass(frozen=True)
class Truth(Lift):
    """What a trial should have found: expected clicks per item viewed, had everybody been in one arm all the time."""

    pages: int
    """The pages of the trial."""
    static: Lift
    """The same at each page's own instant and seen set, which leaves out what a page does to the next ones."""
    replayed: int
    """Decisions that were made again from what was logged."""
    different: int
    """How many of these came out as another page; must be 0."""


def tell_truth(project: OpenProject, world: World, verdict: Verdict) -> Truth:
    """Returns the truth over the visits of a trial before its cut-off, and replays each logged decision on the way."""
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
    static = Lift(*(world.true_ctr(pages[arm]) for arm in ARMS))
    trial = find_trial_of(project, verdict)
    visits = list(world.schedule(verdict.started_us, verdict.cutoff_us))
    lift = tell_lift(world, trial, list(scorers.values()), visits, seen=_seen_before(project, verdict))
    return Truth(lift.control, lift.treatment, len(pages[CONTROL]), static, replayed, different)


def _seen_before(project: OpenProject, verdict: Verdict) -> dict[str, dict[str, int]]:
    """Returns what each person had clicked in the day before a trial, and when."""
    trial = find_trial_of(project, verdict)
    item = item_sql(Event(trial.above, item=trial.above_item))
    rows = project.query(
        f"SELECT person, item, max(event_us) AS at_us FROM ({item}) "  # noqa: S608 - quoted
        "WHERE event_us < $began AND event_us >= $since AND item IS NOT NULL GROUP BY ALL",
        parameters={"began": verdict.started_us, "since": verdict.started_us - SEEN_US},
    ).table()
    seen: dict[str, dict[str, int]] = defaultdict(dict)
    for row in rows.to_pylist():
        seen[row["person"]][row["item"]] = row["at_us"]
    return seen


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
    row["seen"] = _read_seen(project, row) if row["events"] else []
    scorer = open_bundle(project.registry.load(row["bundle"]))
    return _make(scorer, row), row


def _read_seen(project: OpenProject, row: Mapping[str, Any]) -> list[str]:
    """Returns what a decision's person had clicked in the day before it, of the events that it knew."""
    pages = {page.name: page for page in project.declared.pages}
    if row["page"] not in pages:
        raise unknown_name("page", row["page"], pages)
    if EVENTS not in project.tables.names():
        return []
    if project.tables.open(EVENTS).properties.get(INCARNATION) != row["events"]:
        raise StopError(
            f"the decision {row['recommendation_id']!r} knew the events of another topic {EVENTS!r}, {row['events']}, "
            "than the lake holds: what its person had seen cannot be told"
        )
    known = below_sql(row["applied"])
    parts = [
        f"SELECT item, event_us FROM ({item_sql(event)}) WHERE person = $person AND NOT bot "  # noqa: S608
        f"AND event_us >= $since AND event_us < $at AND {known}"
        for event in pages[row["page"]].events
    ]
    times = {"person": row["person"], "since": row["at_us"] - SEEN_US, "at": row["at_us"]}
    newest = (
        f"SELECT item, max(event_us) AS at_us FROM ({' UNION ALL '.join(parts)}) WHERE item IS NOT NULL AND item != '' "  # noqa: S608
        f"GROUP BY item ORDER BY at_us DESC, item DESC LIMIT {MOST_SEEN}"
    )
    return sorted(project.query(newest, parameters=times).table().column("item").to_pylist())


def _read_decisions(project: OpenProject, verdict: Verdict) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (
        project.query(
            f"SELECT * FROM {DECISIONS} WHERE trial = {quote_text(verdict.trial)} AND visitor IS NOT NULL AND NOT bot "  # noqa: S608
            f"AND received_us < {verdict.cutoff_us} AND {below_sql(verdict.positions[DECISIONS])} "
            f"AND recommendation_id NOT IN (SELECT recommendation_id FROM {DECISIONS} "
            "WHERE list_contains(degraded, 'unlogged')) "
            "ORDER BY log_partition, log_offset"
        )
        .table()
        .to_pylist()
    )
    return rows


def _make(scorer: Scorer, row: Mapping[str, Any]) -> Chosen:
    rule = Rule(row["per_row"], row["explore"])
    return choose(scorer, row["person"], row["seen"], rule=rule, seed=row["seed"])

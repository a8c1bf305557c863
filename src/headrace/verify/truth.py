"""Checks the loop against a world whose truth is known: replays decisions, and tells what a trial should have found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import UNSET, Raw, UnsetType
from numpy.typing import NDArray

from headrace.base.errors import StopError, unknown_name
from headrace.endpoints.carousel import Chosen, Rule, choose
from headrace.endpoints.follower import MOST_SEEN, SEEN_US
from headrace.engines.engine import quote_name, quote_text
from headrace.events.decision import DECISIONS
from headrace.events.dimension import History, Scalar
from headrace.events.event import Event
from headrace.events.settled import EVENTS
from headrace.events.world import World
from headrace.experiments.experiment import ARMS, CONTROL, TREATMENT, Trial
from headrace.experiments.verdict import Verdict
from headrace.features import Column
from headrace.features.parity import recompute
from headrace.features.tiles import Row
from headrace.learn import open_lake
from headrace.loop import find_trial_of
from headrace.models import Scorer, Values, open_bundle
from headrace.project import OpenProject
from headrace.rehearse import Lift, Past, tell_lift
from headrace.tables.catalog import below_sql, item_sql
from headrace.tables.sink import INCARNATION

_PORTION = 500
"""So many decisions are made again at once: where features rank, each needs those of all items."""


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
    trial = find_trial_of(project, verdict)
    rows = _read_decisions(project, verdict)
    own = _Own(project, trial.page)
    made = {arm: list(_make_pages(project, scorer, rows, own)) for arm, scorer in scorers.items()}
    judged = [one for arm in ARMS for one in made[arm] if one.row["arm"] == arm and not one.row["degraded"]]
    different = sum(not is_same(one.logged, one.row) for one in judged)
    static = Lift(*(_tell_ctr(world, numbers, made[arm]) for arm in ARMS))
    visits = list(world.schedule(verdict.started_us, verdict.cutoff_us))
    past = Past(_read_past(project, trial), _read_members(project), _seen_before(project, trial))
    lift = tell_lift(world, trial, list(scorers.values()), visits, past=past, own=own.of_page(rows))
    pages = len({row["recommendation_id"] for row in rows})
    return Truth(lift.control, lift.treatment, pages, static, len(judged), different)


@dataclass(frozen=True)
class _Made:
    """A row of a page that was made again."""

    row: Mapping[str, Any]
    """What was logged."""
    logged: Chosen
    """The row below what was logged above it."""
    chosen: Chosen
    """The row below what the same arm shows above it."""


class _Own:
    """The rows of a page that have a model of their own, whatever is tested, and the bundles that ranked them."""

    def __init__(self, project: OpenProject, page: str) -> None:
        self._registry = project.registry
        pages = {one.name: one for one in project.declared.pages}
        if page not in pages:
            raise unknown_name("page", page, pages)
        self._page = pages[page]
        self._titles = {one.title for one in self._page.carousels if one.ranker != self._page.ranker}
        self._scorers: dict[str, Scorer] = {}

    def scorer(self, row: Mapping[str, Any]) -> Scorer | None:
        """Returns what ranked a row; None if it was what is tested."""
        if row["list_id"] not in self._titles:
            return None
        name_hash = row["bundle"]
        if name_hash not in self._scorers:
            found = open_bundle(self._registry.load(name_hash))
            if found.columns:
                raise StopError(
                    f"the row {row['list_id']!r} ranks by features of its own, bundle {name_hash}: what a trial "
                    f"of the page {self._page.name!r} should have found cannot be told"
                )
            self._scorers[name_hash] = found
        return self._scorers[name_hash]

    def of_page(self, rows: Sequence[Mapping[str, Any]]) -> list[Scorer | None]:
        """Returns what ranks each row of the page, by the newest bundle that some decisions know of it."""
        newest = {row["list_id"]: self.scorer(row) for row in rows}
        return [newest[one.title] for one in self._page.carousels if one.title in newest]


def _tell_ctr(world: World, numbers: Mapping[str, int], made: Sequence[_Made]) -> float:
    """Returns the clicks to be expected per item viewed on pages that one arm would have shown."""
    pages: dict[str, tuple[int, int, list[str]]] = {}
    for one in made:
        row = one.row
        page = pages.setdefault(row["recommendation_id"], (numbers[row["visitor"]], row["at_us"], []))
        page[2].extend(one.chosen.items)
    return world.true_ctr(pages.values())


def _read_past(project: OpenProject, trial: Trial) -> list[Row]:
    """Returns the events that had arrived before a trial, for those who count features."""
    if not project.declared.columns:
        return []
    names = ", ".join(sorted({quote_text(column.event) for column in project.declared.columns}))
    found = project.query(
        "SELECT type, event, event_us, person, src_offset, seq, bot, properties, attributes "  # noqa: S608 - quoted
        f"FROM {EVENTS} WHERE type = 'track' AND event IN ({names}) AND received_us < {trial.started_us} "
        "ORDER BY received_us, log_partition, log_offset"
    ).table()
    return [
        Row(**one, properties=_raw(properties), attributes=_raw(attributes))
        for one in found.to_pylist()
        for properties, attributes in [(one.pop("properties"), one.pop("attributes"))]
    ]


def _raw(text: str | None) -> Raw | UnsetType:
    return UNSET if text is None else Raw(text.encode())


def _read_members(project: OpenProject) -> dict[str, Mapping[str, Scalar]]:
    """Returns what the dimensions know of their members now."""
    known: dict[str, Mapping[str, Scalar]] = {}
    for dimension in project.declared.dimensions:
        history = read_history(project, dimension.name)
        known |= {key: history.at(key, history.end) or {} for key in history.members(history.end)}
    return known


def read_history(project: OpenProject, dimension: str) -> History:
    """Returns a dimension as its table holds it."""
    history = History()
    if dimension in project.tables.names():
        rows = project.query(f"SELECT log_offset, key, attributes FROM {quote_name(dimension)} ORDER BY log_offset")  # noqa: S608
        for row in rows.table().to_pylist():
            history.add(row["log_offset"], row["key"], msgspec.json.decode(row["attributes"]))
    return history


def read_values(project: OpenProject, scorer: Scorer, rows: Sequence[Mapping[str, Any]]) -> Iterator[Values]:
    """Yields for each decision the features of all items of a bundle, as it should have read them, from the lake."""
    columns, size = scorer.columns, len(scorer.items)
    if not columns:
        yield from ((),) * len(rows)
        return
    lake = open_lake(project)
    for first in range(0, len(rows), _PORTION):
        some = rows[first : first + _PORTION]
        found = recompute(lake, some, columns, [scorer.items] * len(some))
        arrays = [_array_of(values, column) for values, column in zip(found, columns, strict=True)]
        yield from ([array[start : start + size] for array in arrays] for start in range(0, len(some) * size, size))


def _array_of(values: pa.ChunkedArray, column: Column) -> NDArray[Any]:
    if column.is_text:
        return np.array(values.to_pylist(), object)
    found: NDArray[np.float64] = values.to_numpy().astype(np.float64)
    return found


def _seen_before(project: OpenProject, trial: Trial) -> dict[str, dict[str, int]]:
    """Returns what each person had clicked in the day before a trial, and when."""
    item = item_sql(Event(trial.above, item=trial.above_item))
    rows = project.query(
        f"SELECT person, item, max(event_us) AS at_us FROM ({item}) "  # noqa: S608 - quoted
        "WHERE event_us < $began AND event_us >= $since AND item IS NOT NULL GROUP BY ALL",
        parameters={"began": trial.started_us, "since": trial.started_us - SEEN_US},
    ).table()
    seen: dict[str, dict[str, int]] = defaultdict(dict)
    for row in rows.to_pylist():
        seen[row["person"]][row["item"]] = row["at_us"]
    return seen


def is_same(chosen: Chosen, row: Mapping[str, Any]) -> bool:
    """Returns whether a decision that was made again is the one that was logged, chances included."""
    logged = (tuple(row["items"]), tuple(row["scores"]), tuple(row["propensities"]))
    return (chosen.items, chosen.scores, chosen.propensities) == logged


def replay(project: OpenProject, recommendation_id: str) -> list[tuple[Chosen, Mapping[str, Any]]]:
    """Returns the rows of a page from above, each made again, and what was logged of it; none if the lake has none.

    A row is made again from its bundle and from `events` below its positions: what the person had seen is read from
    the lake, not from the decision.
    """
    rows: list[dict[str, Any]] = (
        project.query(
            f"SELECT * FROM {DECISIONS} WHERE recommendation_id = $id ORDER BY log_offset",  # noqa: S608 - a name of ours
            parameters={"id": recommendation_id},
        )
        .table()
        .to_pylist()
    )
    for row in rows:
        row["seen"] = _read_seen(project, row) if row["events"] else []
    return [(_make_again(project, row), row) for row in rows]


def _make_again(project: OpenProject, row: Mapping[str, Any]) -> Chosen:
    scorer = open_bundle(project.registry.load(row["bundle"]))
    return _choose(scorer, row, next(read_values(project, scorer, [row])), above=row["above"] or ())


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


def _make_pages(project: OpenProject, tested: Scorer, rows: Sequence[Mapping[str, Any]], own: _Own) -> Iterator[_Made]:
    """Yields the rows of all pages as one arm would have made them; the rows of a page come from above."""
    scorers = [own.scorer(row) for row in rows]
    values = read_values(project, tested, [row for row, found in zip(rows, scorers, strict=True) if found is None])
    shown: dict[str, tuple[str, ...]] = {}
    for row, found in zip(rows, scorers, strict=True):
        given = next(values) if found is None else ()
        logged, above = tuple(row["above"] or ()), shown.get(row["recommendation_id"], ())
        made = _choose(found or tested, row, given, above=logged)
        chosen = made if above == logged else _choose(found or tested, row, given, above=above)
        shown[row["recommendation_id"]] = (*above, *chosen.items)
        yield _Made(row, made, chosen)


def _choose(scorer: Scorer, row: Mapping[str, Any], values: Values, *, above: Sequence[str]) -> Chosen:
    rule = Rule(row["per_row"], row["explore"], above)
    return choose(scorer, row["person"], row["seen"], rule=rule, seed=row["seed"], values=values)

"""Whole trials in one process, without doors: as many worlds as one likes, to see how often a verdict tells the truth.

The parts are the ones that serve: the same fit, the same row, the same analysis. Only logs and HTTP are left out.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import UNSET, Raw, UnsetType

from headrace.base.errors import CallError
from headrace.endpoints.carousel import Rule, choose
from headrace.endpoints.follower import SEEN_US
from headrace.engines import Source, open_engine
from headrace.events.dimension import Scalar, text_of
from headrace.events.event import Event
from headrace.events.visit import ClientEvent, PageShown, PageWanted
from headrace.events.world import DAY, Habits, World
from headrace.experiments.analyse import Scope, Visitors, judge
from headrace.experiments.assign import assign
from headrace.experiments.experiment import ARMS, VERSION, Trial
from headrace.experiments.verdict import Verdict
from headrace.features import Column
from headrace.features.feature import attribute_names
from headrace.features.online import Snapshot, State
from headrace.features.serve import Items, Reader
from headrace.features.tiles import Blob, Fold, Row, is_watched, make_blob, pack
from headrace.models import Bundle, Model, Scorer, Values, open_bundle

VIEWS = Event("Product List Viewed", item="products[].product_id")
CLICKS = Event("Product Clicked", item="product_id")

_RULE = Rule(per_row=10, explore=0.1)
_HABITS = Habits(visits_per_day=3.0, beats=1.0)


@dataclass(frozen=True)
class Lift:
    """The expected clicks per item viewed, in each arm."""

    control: float
    treatment: float

    @property
    def difference(self) -> float:
        """The treatment's ratio less the control's."""
        return self.treatment - self.control

    @property
    def lift(self) -> float:
        """The treatment's ratio by the control's, less 1."""
        return self.treatment / self.control - 1

    def is_inside(self, verdict: Verdict) -> bool:
        """Returns whether the verdict's interval holds it."""
        if verdict.lift_interval is not None:
            return verdict.lift_interval[0] <= self.lift <= verdict.lift_interval[1]
        found = verdict.difference_interval
        return found is not None and found[0] <= self.difference <= found[1]


class Tally:
    """The online features of a rehearsal, kept in memory: readers see what was told until then."""

    def __init__(self, columns: Sequence[Column], attributes: Mapping[str, Mapping[str, Scalar]]) -> None:
        self._columns = tuple(columns)
        self._fold = Fold(columns)
        self._attributes = attributes
        self._blobs: dict[bytes, Blob] = {}
        self._changed: dict[bytes, int] = {}
        self._state = State(generation=1, definitions="", incarnation="", known=(0,), newest_us=(0,))

    def tell(self, row: Row) -> None:
        """Counts one event."""
        state, revision = self._state, self._state.revision + 1
        for entity, addition in self._fold.additions(row):
            blob = self._blobs.setdefault(entity, make_blob())
            self._fold.extend(blob, (addition,))
            self._changed[entity] = revision
        newest_us = (max(state.newest_us[0], row.event_us),)
        self._state = msgspec.structs.replace(
            state, revision=revision, known=(state.known[0] + 1,), newest_us=newest_us
        )

    def tell_visit(self, person: str, events: Iterable[ClientEvent], at_us: int) -> None:
        """Counts what a visitor did, all at one instant."""
        for event in events:
            if event.event is not None and event.properties is not None:
                properties = Raw(msgspec.json.encode(event.properties))
                number = self._state.known[0]
                row = Row("track", event.event, at_us, person, number, number, properties=properties)
                row.attributes = self._known(event)
                self.tell(row)

    def items(self, scorer: Scorer) -> Items:
        """Returns the items of a bundle with what is known of them."""
        names = attribute_names(part for one in scorer.columns for part in (*one.by, one.value))
        known = [self._attributes.get(item, {}) for item in scorer.items]
        return Items(scorer.items, {name: [text_of(one.get(name)) for one in known] for name in names})

    def _known(self, event: ClientEvent) -> Raw | UnsetType:
        product = (event.properties or {}).get("product_id")
        known = self._attributes.get(product) if product is not None else None
        return UNSET if known is None else Raw(msgspec.json.encode({product: known}))

    def read_columns(self, generation: int) -> tuple[Column, ...]:  # noqa: ARG002 - there is one
        """Returns the columns."""
        return self._columns

    def snapshot(self, entities: Sequence[bytes], *, since: tuple[int, int] | None = None) -> Snapshot:
        """Returns what was told until now, as an online store does."""
        asked = {entity: self._pack(entity) for entity in entities}
        first = since[1] if since is not None and since[0] else -1
        watched = () if since is None else self._changed.items()
        changed = [
            ((entity, partition), value)
            for entity, revision in watched
            if revision > first and is_watched(entity)
            for partition, value in self._pack(entity)
        ]
        return Snapshot(self._state, asked, changed)

    def _pack(self, entity: bytes) -> list[tuple[int, bytes]]:
        blob = self._blobs.get(entity)
        if blob is None:
            return []
        self._fold.prune(blob)
        return [(0, pack(blob, (entity, 0)))]


@dataclass(frozen=True)
class Past:
    """What was known before a rehearsal."""

    rows: Sequence[Row] = ()
    """The events, for those who count features."""
    attributes: Mapping[str, Mapping[str, Scalar]] = field(default_factory=dict)
    """What is known of the items."""
    seen: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """What each person had clicked lately, and when."""

    def tally(self, scorer: Scorer) -> Tally | None:
        """Returns the features as they stood then; None for a bundle that needs none."""
        if not scorer.columns:
            return None
        tally = Tally(scorer.columns, self.attributes)
        for row in self.rows:
            tally.tell(row)
        return tally


@dataclass(frozen=True)
class Rehearsal:
    """One trial in one world, and what it should have found."""

    trial: Trial
    visitors: Visitors
    """The exposures, from which `verdict` comes alone."""
    verdict: Verdict
    stage: Stage
    everybody: tuple[Stage, ...]
    """The same visits with everybody in control, and again with everybody in treatment."""

    @property
    def truth(self) -> Lift:
        """What the trial should have found."""
        return Lift(*(one.ratio for one in self.everybody))

    @cached_property
    def same(self) -> tuple[Visitors, Verdict]:
        """The trial of control against control: its exposures and its verdict."""
        exposed = self.everybody[0].visitors()
        return exposed, judge_exposed(self.trial, exposed)

    @cached_property
    def static(self) -> Lift:
        """The lift at each page's own instant and seen set, which costs as much again as the trial."""
        return self.stage.tell_static()


def rehearse(
    seed: int, models: Sequence[Model], *, pages: int = 5_000, visitors: int = 600, split: int = 0
) -> Rehearsal:
    """Returns a trial of `pages` pages between the bundles of two models, control first, after a day of past visits.

    Both may be the same model: then nothing is there to be found. Another `split` puts the same visitors into other
    arms.
    """
    world = World(seed, visitors=visitors, habits=_HABITS)
    began_us = world.born_us + DAY
    with (
        tempfile.TemporaryDirectory(prefix="headrace-") as folder,
        closing(_Past(world, began_us, Path(folder))) as past,
    ):
        bundles = [model.fit(past) for model in models]
    trial = make_trial(seed, bundles, began_us, split=split)
    scorers = [open_bundle(bundle) for bundle in bundles]
    stage = Stage(world, trial, scorers)
    visits = []
    for at_us, visitor in world.schedule(began_us, began_us + 365 * DAY):
        stage.visit(visitor, at_us)
        visits.append((at_us, visitor))
        if stage.num_pages >= pages:
            break
    exposed = stage.visitors()
    everybody = tuple(_play(Stage(world, trial, scorers, arm=arm), visits) for arm in range(len(ARMS)))
    return Rehearsal(trial, exposed, judge_exposed(trial, exposed), stage, everybody)


def judge_exposed(trial: Trial, exposed: Visitors) -> Verdict:
    """Returns the verdict on a rehearsed trial from its exposures."""
    return judge(trial, exposed, made_us=trial.started_us, scope=make_scope(trial, trial.started_us + 365 * DAY))


def _play(stage: Stage, visits: Sequence[tuple[int, int]]) -> Stage:
    for at_us, visitor in visits:
        stage.visit(visitor, at_us)
    return stage


def tell_lift(
    world: World,
    trial: Trial,
    scorers: Sequence[Scorer],
    visits: Sequence[tuple[int, int]],
    *,
    past: Past,
    own: Sequence[Scorer | None] = (None,),
) -> Lift:
    """Returns the true lift: the same visits with everybody in control, and again with everybody in treatment.

    It is what trials of this world find on average, since no visitor changes what another one sees. Where a page's
    clicks change the pages that follow it (what was seen is not shown again, who watches tires), comparing both arms'
    pages at one instant says something else: in 30 worlds 27 % instead of the 22 % that their trials found.
    """
    stages = [
        Stage(
            world,
            trial,
            scorers,
            arm=arm,
            clicked={person: dict(mine) for person, mine in past.seen.items()},
            tally=past.tally(scorer),
            own=own,
        )
        for arm, scorer in enumerate(scorers)
    ]
    return Lift(*(_play(stage, visits).ratio for stage in stages))


def make_trial(seed: int, bundles: Sequence[Bundle], began_us: int, *, split: int = 0) -> Trial:
    """Returns the row of a trial between two bundles."""
    return Trial(
        version=VERSION,
        id=f"rehearsal-{seed}",
        experiment="rehearsal",
        page="home",
        seed=f"rehearsal-{seed}-{split}",
        control=bundles[0].hash,
        treatment=bundles[1].hash,
        per_row=_RULE.per_row,
        explore=_RULE.explore,
        started_us=began_us,
        positions={},
        incarnations={},
        goal="ctr",
        above=CLICKS.name,
        above_item=CLICKS.item or "",
        below=VIEWS.name,
        below_item=VIEWS.item or "",
        within_us=30 * 60_000_000,
        lateness_us=0,
        alpha=0.05,
        mde=0.25,
        power=0.8,
        planned=0,
        definition="",
    )


def make_scope(trial: Trial, cutoff_us: int) -> Scope:
    """Returns a scope that reads from nowhere: a rehearsal counts its visitors itself."""
    return Scope("", CLICKS, VIEWS, trial.within_us, cutoff_us, positions={}, starts={})


class _Past:
    """The clicks of a world's first days, as a fit reads them."""

    def __init__(self, world: World, at_us: int, folder: Path) -> None:
        self.at_us = at_us
        self.source: Mapping[str, Any] = {"world": world.seed}
        rows = [row for visit in world.traffic(world.born_us, at_us) for row in _clicks_of(visit.events, visit.at_us)]
        columns = dict(zip(("person", "item", "category", "event_us"), zip(*rows, strict=True), strict=True))
        times = pa.array(columns["event_us"], pa.int64())
        texts = {name: pa.array(columns[name], pa.string()) for name in ("person", "item", "category")}
        bots = pa.array(np.zeros(len(rows), bool))
        table = pa.table({**texts, "event_us": times, "received_us": times, "bot": bots})
        path = folder / "clicks.parquet"
        pq.write_table(table, path)
        self._clicks = Source("clicks", table.schema, [str(path)])
        self._engine = open_engine("duckdb://?threads=1")

    def ask(self, sql: str, parameters: Mapping[str, Any]) -> Mapping[str, list[Any]]:
        """Returns the columns of the answer to one SELECT."""
        answer: Mapping[str, list[Any]] = self.rows(sql, parameters).to_pydict()
        return answer

    def rows(self, sql: str, parameters: Mapping[str, Any]) -> pa.Table:
        """Returns the answer to one SELECT as Arrow."""
        return self._engine.query(sql, sources=[self._clicks], parameters=parameters).table()

    def join(self, columns: Sequence[Column], labels: pa.Table) -> pa.Table:  # noqa: ARG002 - nothing was decided yet
        """Raises CallError: a rehearsal's past has no decisions to learn from."""
        raise CallError("a rehearsal fits from past clicks alone; give it models that need no features")

    def items_of(self, event: Event) -> str:  # noqa: ARG002 - all that is remembered are clicks
        """Returns a SELECT with a row for each click."""
        return "SELECT * FROM clicks"

    def close(self) -> None:
        """Lets go of the engine."""
        self._engine.close()


def _clicks_of(events: Iterable[ClientEvent], at_us: int) -> Iterator[tuple[str, str, str, int]]:
    for event in events:
        if event.event == CLICKS.name and event.properties is not None:
            properties = event.properties
            yield event.user_id or event.anonymous_id, properties["product_id"], properties["category"], at_us


class _Asked(NamedTuple):
    """A page as it was wanted."""

    visitor: int
    at_us: int
    person: str
    seen: list[str]


@dataclass
class Stage:
    """A trial while its visitors come; with `arm` everybody is in that one."""

    world: World
    trial: Trial
    scorers: Sequence[Scorer]
    arm: int | None = None
    clicked: dict[str, dict[str, int]] = field(default_factory=dict)
    """What each person has clicked, and when."""
    tally: Tally | None = None
    """The features that the bundle of `arm` ranks by."""
    own: Sequence[Scorer | None] = (None,)
    """What ranks each row of a page in both arms; None for what is tested."""
    asked: list[_Asked] = field(default_factory=list)
    num_viewed: int = 0
    expected: float = 0.0
    """The clicks to be expected on all pages shown."""
    counts: dict[int, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0, 0]))
    """Pages, views and clicks of each visitor."""

    @property
    def num_pages(self) -> int:
        """How many pages were shown."""
        return len(self.asked)

    @property
    def ratio(self) -> float:
        """The clicks to be expected per item shown."""
        return self.expected / max(self.num_viewed, 1)

    def tell_static(self) -> Lift:
        """Returns the lift at each page's own instant and seen set: each page made again by both arms."""
        ratios = []
        for arm in range(len(ARMS)):
            pages = [(one, self._make(one, arm)) for one in self.asked]
            expected = sum(self.world.expected_clicks(one.visitor, one.at_us, items) for one, items in pages)
            ratios.append(expected / max(sum(len(items) for _, items in pages), 1))
        return Lift(*ratios)

    def visit(self, visitor: int, at_us: int) -> None:
        """Lets one visitor come, and counts what was viewed and clicked."""
        who = self.world.visitor(visitor)
        if who.bot:
            return
        arm = assign(self.trial.seed, who.anonymous_id, self.trial.weights) if self.arm is None else self.arm
        assert arm is not None
        visiting = self.world.visiting(visitor, at_us)
        wanted, counts = next(visiting), self.counts[visitor]
        while True:
            items = self._show(wanted, arm)
            counts[0] += 1
            counts[1] += len(items)
            try:
                wanted = visiting.send(PageShown(items))
            except StopIteration as done:
                events = done.value
                break
        clicks = list(_clicks_of(events, at_us))
        if self.tally is not None:
            self.tally.tell_visit(self.asked[-1].person, events, at_us)
        counts[2] += len(clicks)
        for person, item, _, us in clicks:
            self.clicked.setdefault(person, {})[item] = us

    def _show(self, wanted: PageWanted, arm: int) -> tuple[str, ...]:
        visitor, person = wanted.visitor.number, wanted.user_id or wanted.visitor.anonymous_id
        seen = [item for item, us in self.clicked.get(person, {}).items() if us >= wanted.at_us - SEEN_US]
        self.asked.append(_Asked(visitor, wanted.at_us, person, seen))
        shown = self._make(self.asked[-1], arm)
        self.expected += self.world.expected_clicks(visitor, wanted.at_us, shown)
        self.num_viewed += len(shown)
        return shown

    def _make(self, asked: _Asked, arm: int) -> tuple[str, ...]:
        tested, seed = self.scorers[arm], asked.visitor << 40 ^ asked.at_us
        values = self._read(asked, arm) if tested.columns else ()
        shown: list[str] = []
        for number, own in enumerate(self.own):
            rule = Rule(self.trial.per_row, self.trial.explore, tuple(shown))
            given = values if own is None else ()
            row = choose(own or tested, asked.person, asked.seen, rule=rule, seed=seed + number, values=given)
            shown += row.items
        return tuple(shown)

    def _read(self, asked: _Asked, arm: int) -> Values:
        """Returns the features of all items as of a page."""
        assert arm == self.arm
        return self._reader.read(asked.person, self._items, asked.at_us).values

    @cached_property
    def _reader(self) -> Reader:
        assert self.arm is not None
        assert self.tally is not None
        return Reader(self.tally, self.scorers[self.arm].columns)

    @cached_property
    def _items(self) -> Items:
        assert self.arm is not None
        assert self.tally is not None
        return self.tally.items(self.scorers[self.arm])

    def visitors(self) -> Visitors:
        """Returns the exposures, sorted by visitor."""
        named = sorted((self.world.visitor(number).anonymous_id, number) for number in self.counts)
        counts = np.array([self.counts[number] for _, number in named], np.int64)
        arms = [assign(self.trial.seed, name, self.trial.weights) for name, _ in named]
        size = len(named)
        return Visitors(
            names=[name for name, _ in named],
            arms=np.array(arms, np.int8),
            num_arms=np.ones(size, np.int64),
            bots=np.zeros(size, bool),
            first_us=np.zeros(size, np.int64),
            pages=counts[:, 0],
            views=counts[:, 1],
            clicks=counts[:, 2],
        )

"""What a project learns, joined: the lake at one version and instant, and the bundle that a model makes of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from headrace.base.errors import CallError, StopError, UnavailableError, unknown_name
from headrace.collect.app import CLICKS
from headrace.collect.settler import GROUP as SETTLER
from headrace.endpoints.serving import TRIAL
from headrace.events.decision import DECISIONS
from headrace.events.event import Event
from headrace.events.settled import EVENTS
from headrace.experiments.experiment import decode_trial
from headrace.models import Bundle, Model, open_bundle
from headrace.project import OpenProject
from headrace.stream import CODECS, tail_offsets
from headrace.tables import Table
from headrace.tables.catalog import item_sql
from headrace.tables.sink import INCARNATION

KEPT_BUNDLES = 5
"""Of so many bundles of a model the rows that they were fitted from are kept, and of those in trials."""

_OWNER = "headrace model"
_LAKE_SECONDS = 60.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class LakeView:
    """The lake at one version and instant, as a fit reads it."""

    project: OpenProject
    version: int
    at_us: int

    @cached_property
    def source(self) -> Mapping[str, Any]:
        """Table, version and positions."""
        table = self._at(self.project.tables.open(EVENTS))
        incarnation = table.properties.get(INCARNATION, "")
        partitions = self.project.topics.describe(EVENTS).partitions
        positions = [table.position(f"{incarnation}/{p}") or 0 for p in range(partitions)]
        return {"table": EVENTS, "version": self.version, "incarnation": incarnation, "positions": positions}

    def ask(self, sql: str, parameters: Mapping[str, Any]) -> Mapping[str, list[Any]]:
        """Returns the columns of the answer to one SELECT."""
        columns: Mapping[str, list[Any]] = self.rows(sql, parameters).to_pydict()
        return columns

    def rows(self, sql: str, parameters: Mapping[str, Any]) -> pa.Table:
        """Returns the answer to one SELECT as Arrow."""
        return self.project.query(sql, at=self._at, parameters=parameters).table()

    def items_of(self, event: Event) -> str:
        """Returns a SELECT with a row for each item of an event."""
        return item_sql(event)

    def _at(self, table: Table) -> Table:
        return table.at(self.version) if table.name == EVENTS else table


def find_model(project: OpenProject, name: str) -> Model:
    """Returns a model that the project declares."""
    models = {model.name: model for model in project.declared.models}
    if name not in models:
        raise unknown_name("model", name, models)
    return models[name]


def fit(project: OpenProject, name: str, *, version: int | None = None, at_us: int | None = None) -> Bundle:
    """Returns the bundle that a model learns from the lake as it is now, which serves from then on."""
    model = find_model(project, name)
    if EVENTS not in project.tables.names():
        raise CallError(f"there is no table {EVENTS!r} yet to fit {name!r} from. Start its sink with: headrace up")
    table = project.tables.open(EVENTS)
    view = LakeView(project, table.version if version is None else version, at_us or project.clock.now_us())
    bundle = model.fit(view)
    if not len(open_bundle(bundle).items):
        raise StopError(
            f"{name!r} has learned nothing: version {view.version} of {EVENTS!r} has no {model.clicks.name!r} "
            f"with {model.clicks.item!r} of a person. Send some clicks first"
        )
    if bundle.hash not in {one.hash for one in project.registry.bundles(name)}:
        table.pin(owner=_OWNER, reason=f"bundle {bundle.hash} of {name}", version=view.version)
    project.registry.add(bundle)
    _unpin_old(project, table, name)
    return bundle


def _unpin_old(project: OpenProject, table: Table, name: str) -> None:
    """Lets go of the rows of all bundles of a model but the newest few and those of trials."""
    kept = {one.hash for one in project.registry.bundles(name)[:KEPT_BUNDLES]}
    for experiment in project.registry.newest(TRIAL):
        trials = [decode_trial(entry.value) for entry in project.registry.entries(TRIAL, experiment)]
        kept.update(name_hash for trial in trials for name_hash in (trial.control, trial.treatment))
    for pin in table.pins():
        words = pin.reason.split()
        if pin.owner == _OWNER and words[2:] == ["of", name] and words[1] not in kept:
            table.unpin(pin.id)


def wait_for_lake(project: OpenProject, *, seconds: float = _LAKE_SECONDS) -> dict[str, tuple[int, ...]]:
    """Returns up to where the lake holds `decisions` and `events`: all that had arrived when this was called."""
    deadline = time.monotonic() + seconds
    clicks = [bound.end for bound in project.topics.bounds(CLICKS)]
    while _lags(_settled(project), clicks):
        _check_time(deadline, CLICKS, "settler")
        time.sleep(_POLL_SECONDS)
    ends = {name: tuple(bound.end for bound in project.topics.bounds(name)) for name in (DECISIONS, EVENTS)}
    for name, places in ends.items():
        while not _is_sunk(project, name, places):
            _check_time(deadline, name, "sink")
            time.sleep(_POLL_SECONDS)
    return ends


def _settled(project: OpenProject) -> list[int]:
    found = [bound.start for bound in project.topics.bounds(CLICKS)]
    for one in project.topics.groups(CLICKS):
        if one.group == SETTLER:
            found[one.position.partition] = one.position.offset
    return found


def _lags(positions: Sequence[int], ends: Sequence[int]) -> bool:
    return any(position < end for position, end in zip(positions, ends, strict=True))


def _is_sunk(project: OpenProject, name: str, ends: Sequence[int]) -> bool:
    """Returns whether the table of a topic holds every row below these offsets."""
    if name not in project.tables.names():
        return not any(ends)
    table, incarnation = project.tables.open(name), project.topics.describe(name).incarnation
    if table.properties.get(INCARNATION) != incarnation:
        raise StopError(
            f"the table {name!r} was filled from another topic {name!r}. "
            f"Let it go on with: headrace topic replay {name} --continue {name}"
        )
    topic = project.topic(name)
    # A sink notes rows at once, and markers and progress records a minute later only.
    waiting = topic.read_to_ends(tail_offsets(project, topic))
    is_row = CODECS[name].is_row
    return not any(is_row(message) and message.offset < ends[message.partition] for message in waiting)


def _check_time(deadline: float, name: str, role: str) -> None:
    if time.monotonic() > deadline:
        raise UnavailableError(f"the lake does not hold all of {name!r} yet. Does the {role} run? See: headrace status")

"""What a project learns, joined: the lake at one version and instant, and the bundle that a model makes of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

import msgspec
import pyarrow as pa
from numpy.typing import NDArray

from headrace.base.errors import CallError, StopError, UnavailableError, unknown_name
from headrace.base.process import find_user
from headrace.collect.app import CLICKS
from headrace.endpoints.serving import TRIAL
from headrace.events.decision import DECISIONS
from headrace.events.event import Event
from headrace.events.settled import EVENTS
from headrace.experiments.experiment import decode_trial
from headrace.experiments.promotion import CHAMPION, decode_champion
from headrace.features import Column
from headrace.models import Bundle, Model, open_bundle
from headrace.models.gate import GATE, Gate, decide, decode_gate, encode_gate
from headrace.models.model import Judged
from headrace.models.provenance import FIT, Fit, decode_fit, describe_fit, encode_fit, list_differences
from headrace.models.registry import Entry
from headrace.models.validate import Report
from headrace.project import OpenProject
from headrace.stream import CODECS, settled_offsets, tail_offsets
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
    """The lake at one version of each table and one instant, as a fit reads it."""

    project: OpenProject
    versions: Mapping[str, int]
    at_us: int

    @cached_property
    def source(self) -> Mapping[str, Any]:
        """Version, incarnation and positions of each table."""
        return {"tables": {name: self._describe(name) for name in sorted(self.versions)}}

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

    def join(self, columns: Sequence[Column], labels: pa.Table) -> pa.Table:
        """Returns the features of labels, in their order, as they were known at the instant of each."""
        # Imported when asked for: its kernel costs seconds.
        found: pa.Table = import_module("headrace.features.join").join(self, columns, labels)
        return found

    def _at(self, table: Table) -> Table:
        return table.at(self.versions[table.name]) if table.name in self.versions else table

    def _describe(self, name: str) -> Mapping[str, Any]:
        table = self._at(self.project.tables.open(name))
        incarnation = table.properties.get(INCARNATION, "")
        partitions = self.project.topics.describe(name).partitions
        positions = [table.position(f"{incarnation}/{p}") or 0 for p in range(partitions)]
        return {"version": self.versions[name], "incarnation": incarnation, "positions": positions}


def open_lake(project: OpenProject) -> LakeView:
    """Returns the lake as it is now, of all tables that a sink fills."""
    opened = {name: project.tables.open(name) for name in project.tables.names()}
    versions = {name: table.version for name, table in opened.items() if INCARNATION in table.properties}
    return LakeView(project, versions, project.clock.now_us())


def find_model(project: OpenProject, name: str) -> Model:
    """Returns a model that the project declares."""
    models = {model.name: model for model in project.declared.models}
    if name not in models:
        raise unknown_name("model", name, models)
    return models[name]


def fit(
    project: OpenProject, name: str, *, versions: Mapping[str, int] | None = None, at_us: int | None = None
) -> Bundle:
    """Returns the bundle that a model learns from the lake as it is now; it stands in the registry, with its gate."""
    began_at = time.monotonic()
    model = find_model(project, name)
    view = LakeView(project, {**_newest_versions(project, model), **(versions or {})}, at_us or project.clock.now_us())
    bundle, report = _learn(model, view)
    if not len(open_bundle(bundle).items):
        raise StopError(
            f"{name!r} has learned nothing: version {view.versions[EVENTS]} of {EVENTS!r} has no "
            f"{model.clicks.name!r} with {model.clicks.item!r} of a person. Send some clicks first"
        )
    if bundle.hash not in {one.hash for one in project.registry.bundles(name)}:
        for table, version in view.versions.items():
            project.tables.open(table).pin(owner=_OWNER, reason=f"bundle {bundle.hash} of {name}", version=version)
        told = encode_fit(describe_fit(model, time.monotonic() - began_at))
        entries = [
            make_entry(project, FIT, bundle.hash, told),
            make_entry(project, GATE, bundle.hash, _decided(report)),
        ]
        # All or nothing: what is killed before has registered nothing, and the next fit lets go of its pins.
        project.registry.add(bundle, *entries)
    _unpin_old(project, view.versions, name)
    return bundle


def _newest_versions(project: OpenProject, model: Model) -> dict[str, int]:
    """Returns the newest version of each table that a model reads; raises CallError where one does not stand yet."""
    standing = project.tables.names()
    for name in model.inputs:
        if name not in standing:
            of_events = name in (EVENTS, DECISIONS)
            hint = (
                "Start its sink with: headrace up" if of_events else f"Load it: headrace table load FILE --table {name}"
            )
            raise CallError(f"there is no table {name!r} yet to fit {model.name!r} from. {hint}")
    return {name: project.tables.open(name).version for name in model.inputs}


def _learn(model: Model, view: LakeView) -> tuple[Bundle, Report | None]:
    if not isinstance(model, Judged):
        return model.fit(view), None
    rows = model.read(view)
    bundle = model.make(view, rows)
    return bundle, model.judge(view, rows, bundle)


def _decided(report: Report | None) -> bytes:
    return encode_gate(decide(report))


def make_entry(project: OpenProject, kind: str, name: str, value: bytes, *, over: int = 0) -> Entry:
    """Returns a row to write over the one with the id `over`, the newest of its kind and name; 0 is for none yet."""
    return Entry(over, kind, name, value, project.clock.now_us(), find_user())


def read_offline_gate(project: OpenProject, name_hash: str) -> Gate | None:
    """Returns what the gate has said of a bundle; None if it was not asked."""
    entries = project.registry.entries(GATE, name_hash)
    return decode_gate(entries[-1].value) if entries else None


def find_gate(project: OpenProject, name_hash: str) -> Gate:
    """Returns what the gate says of a bundle; one that came into the registry without it is judged now."""
    said = read_offline_gate(project, name_hash)
    if said is not None:
        return said
    bundle = project.registry.load(name_hash)
    model = find_model(project, bundle.name)
    report = None
    if isinstance(model, Judged):
        view = view_of(project, bundle)
        report = model.judge(view, model.read(view), bundle)
    project.registry.write(make_entry(project, GATE, name_hash, _decided(report)))
    return decide(report)


def find_fit(project: OpenProject, name_hash: str) -> Fit | None:
    """Returns what made a bundle; None for one of before such rows were written."""
    entry = project.registry.newest(FIT).get(name_hash)
    return decode_fit(entry.value) if entry else None


@dataclass(frozen=True)
class Reproduction:
    """A bundle that was fitted again from the same rows."""

    bundle: Bundle
    again: Bundle
    differences: Sequence[str]
    """What differs between then and now, if the bytes do."""

    @property
    def is_same(self) -> bool:
        """Whether the same bytes came of it."""
        return self.bundle.hash == self.again.hash


def reproduce(project: OpenProject, name_hash: str) -> Reproduction:
    """Returns a bundle as its model makes it anew from the pinned rows; nothing is registered."""
    bundle = project.registry.load(name_hash)
    model = find_model(project, bundle.name)
    began_at = time.monotonic()
    again = model.fit(view_of(project, bundle))
    before, now = find_fit(project, name_hash), describe_fit(model, time.monotonic() - began_at)
    differences: list[str] = []
    if again.hash != bundle.hash:
        differences = list_differences(before, now) if before else ["what fitted it was not written down then"]
        changed = [name for name, array in bundle.arrays.items() if not _is_same(array, again.arrays.get(name))]
        differences += [f"parameter {name} was {value!r}" for name, value in _changed_parameters(bundle, again)]
        differences += [f"array {name}" for name in changed]
    return Reproduction(bundle, again, differences)


def _is_same(array: NDArray[Any], other: NDArray[Any] | None) -> bool:
    return other is not None and array.tobytes() == other.tobytes()


def _changed_parameters(bundle: Bundle, again: Bundle) -> list[tuple[str, Any]]:
    # A bundle that was read holds lists where a new one has tuples.
    now = msgspec.json.decode(msgspec.json.encode(again.parameters))
    return [(name, value) for name, value in bundle.parameters.items() if now.get(name) != value]


def view_of(project: OpenProject, bundle: Bundle) -> LakeView:
    """Returns the lake as a bundle was fitted from it."""
    tables = read_tables(bundle.source)
    for name, found in tables.items():
        incarnation = project.tables.open(name).properties.get(INCARNATION, "")
        if incarnation != found["incarnation"]:
            raise StopError(
                f"the bundle {bundle.hash} was fitted from another table {name!r} ({found['incarnation']}) than stands "
                f"now ({incarnation or 'none'}): its rows are gone"
            )
    return LakeView(project, {name: found["version"] for name, found in tables.items()}, bundle.source["at_us"])


def read_tables(source: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Returns version, incarnation and positions of each table that a bundle was fitted from."""
    if "tables" in source:
        tables: Mapping[str, Mapping[str, Any]] = source["tables"]
        return tables
    # Bundles of before there were several tables.
    return {source["table"]: source} if "table" in source else {}


def _unpin_old(project: OpenProject, tables: Iterable[str], name: str) -> None:
    """Lets go of the rows of all bundles of a model but the newest few, those of trials and champions."""
    kept = {one.hash for one in project.registry.bundles(name)[:KEPT_BUNDLES]}
    for experiment in project.registry.newest(TRIAL):
        trials = [decode_trial(entry.value) for entry in project.registry.entries(TRIAL, experiment)]
        kept.update(name_hash for trial in trials for name_hash in (trial.control, trial.treatment))
    for page in project.registry.newest(CHAMPION):
        champions = [decode_champion(entry.value) for entry in project.registry.entries(CHAMPION, page)]
        kept.update(champion.bundle for champion in champions)
    for table in map(project.tables.open, tables):
        for pin in table.pins():
            words = pin.reason.split()
            if pin.owner == _OWNER and words[2:] == ["of", name] and words[1] not in kept:
                table.unpin(pin.id)


def wait_for_lake(
    project: OpenProject, *, seconds: float = _LAKE_SECONDS, topics: Sequence[str] = (DECISIONS, EVENTS)
) -> dict[str, tuple[int, ...]]:
    """Returns up to where the lake holds some topics: all that had arrived when this was called."""
    deadline = time.monotonic() + seconds
    clicks = [bound.end for bound in project.topics.bounds(CLICKS)]
    while not _is_settled(project, clicks):
        _check_time(deadline, CLICKS, "settler")
        time.sleep(_POLL_SECONDS)
    ends = {name: tuple(bound.end for bound in project.topics.bounds(name)) for name in topics}
    for name, places in ends.items():
        while not _is_sunk(project, name, places):
            _check_time(deadline, name, "sink")
            time.sleep(_POLL_SECONDS)
    return ends


def _is_settled(project: OpenProject, ends: Sequence[int]) -> bool:
    settled = settled_offsets(project)
    return all(settled[partition] >= end for partition, end in enumerate(ends))


def _is_sunk(project: OpenProject, name: str, ends: Sequence[int]) -> bool:
    """Returns whether the table of a topic holds every row below these offsets."""
    if name in project.tables.names():
        _check_source(project, name)
    topic = project.topic(name)
    # A sink notes rows at once, and markers and progress records a minute later only.
    waiting = topic.read_to_ends(tail_offsets(project, topic))
    is_row = CODECS[name].is_row
    return not any(is_row(message) and message.offset < ends[message.partition] for message in waiting)


def _check_source(project: OpenProject, name: str) -> None:
    if project.tables.open(name).properties.get(INCARNATION) != project.topics.describe(name).incarnation:
        raise StopError(
            f"the table {name!r} was filled from another topic {name!r}. "
            f"Let it go on with: headrace topic replay {name} --continue {name}"
        )


def _check_time(deadline: float, name: str, role: str) -> None:
    if time.monotonic() > deadline:
        raise UnavailableError(f"the lake does not hold all of {name!r} yet. Does the {role} run? See: headrace status")

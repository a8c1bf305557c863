"""A bundle in a walk: its weights, the snapshot that it was fitted from, and whether that holds some row."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from headrace.base.errors import FormatError
from headrace.console.explain_walk import Cell, Link, Node, Sheet
from headrace.console.models import SHOWN_HASH, gate_facts
from headrace.console.show import format_time
from headrace.console.sql import query
from headrace.endpoints.serving import TRIAL
from headrace.events.settled import EVENTS
from headrace.experiments.experiment import ARMS, decode_trial
from headrace.experiments.promotion import CHAMPION, decode_champion
from headrace.learn import find_fit, read_offline_gate, read_tables
from headrace.models import Model
from headrace.models.registry import Fitted
from headrace.project import FILE, OpenProject
from headrace.tables.catalog import below_sql
from headrace.tables.sink import INCARNATION

_MOST_RUNS = 200
_MOST_CLICKS = 8

Place = tuple[int, int, int]
"""The partition and offset of a row in its table's topic, and when it was received."""


def make_bundle(project: OpenProject, name_hash: str) -> Node | None:
    """Returns a bundle as a node; None if the registry has none of this hash."""
    fitted = next((one for one in project.registry.bundles() if one.hash == name_hash), None)
    if fitted is None:
        return None
    manifest = msgspec.json.decode(fitted.manifest)
    gate = read_offline_gate(project, name_hash)
    facts = [
        ("bundle", name_hash),
        ("fitted", f"{format_time(fitted.at_us)[:19]} from {count_rows(manifest['source'])}"),
        *(gate_facts(gate)[: 1 + (not gate.passed)] if gate else ()),
    ]
    return Node(
        kind="bundle",
        id=name_hash,
        title=f"{fitted.name} {name_hash[:SHOWN_HASH]}, {fitted.kind}",
        facts=tuple(facts),
        sheets=tuple(_weights(project, fitted)),
        upstream=(Link("fitted from", "snapshot", name_hash),),
        downstream=tuple(_uses(project, name_hash)),
        record={
            "name": fitted.name,
            "hash": name_hash,
            "model_kind": fitted.kind,
            "size": fitted.size,
            "fitted_us": fitted.at_us,
            "manifest": manifest,
            "gate": msgspec.to_builtins(gate) if gate else None,
        },
    )


def count_rows(source: Mapping[str, Any]) -> str:
    """Returns what a bundle has learned from, in words."""
    return f"{source.get('rows', 0):,} {'viewed items' if 'clicks' in source else 'clicks'}"


def _weights(project: OpenProject, fitted: Fitted) -> Iterator[Sheet]:
    if fitted.kind != "click":
        return
    try:
        bundle = project.registry.load(fitted.hash)
    except FormatError:
        return
    names = [column["name"] for column in bundle.parameters["columns"]]
    arrays = (bundle.arrays[name].tolist() for name in ("weights", "means", "scales"))
    rows = tuple((name, *(round(value, 4) for value in values)) for name, *values in zip(names, *arrays, strict=True))
    yield Sheet("what each feature weighs, by its spread", ("feature", "weight", "mean", "spread"), rows)


def _uses(project: OpenProject, name_hash: str) -> Iterator[Link]:
    """Yields the trials that a bundle was in, and where it was promoted without one."""
    seen = set()
    for experiment in project.registry.newest(TRIAL):
        for entry in project.registry.entries(TRIAL, experiment):
            trial = decode_trial(entry.value)
            arms = [arm for arm in ARMS if trial.bundle_of(arm) == name_hash]
            if arms and trial.id not in seen:
                seen.add(trial.id)
                yield Link(f"{' and '.join(arms)} of", "trial", trial.id)
    for page in project.registry.newest(CHAMPION):
        for entry in project.registry.entries(CHAMPION, page):
            champion = decode_champion(entry.value)
            if champion.bundle == name_hash and champion.trial is None:
                text = f"of the page {page} since {format_time(entry.at_us)[:19]}"
                yield Link("promoted as", "champion", f"{page}#{entry.id}", text)


def make_snapshot(project: OpenProject, name_hash: str, *, is_asked: bool = False) -> Node | None:
    """Returns what a bundle was fitted from as a node; None if the registry has none of this hash.

    Whether it is pinned, and the newest clicks in it, cost questions to the lake: they are told of the one asked for.
    """
    fitted = next((one for one in project.registry.bundles() if one.hash == name_hash), None)
    if fitted is None:
        return None
    source = msgspec.json.decode(fitted.manifest)["source"]
    tables = read_tables(source)
    listed = " and ".join(f"{name} version {found['version']}" for name, found in tables.items())
    fit = find_fit(project, name_hash)
    rows: list[tuple[Cell, ...]] = [
        (name, found["version"], _places(found["positions"]), found["incarnation"]) for name, found in tables.items()
    ]
    return Node(
        kind="snapshot",
        id=name_hash,
        title=listed or "unknown tables",
        facts=(
            ("up to", f"{format_time(fitted.at_us)[:19]}: what arrived later does not count"),
            *(_made(fit.code, fit.seed, fit.environment) if fit else [("code", "was not written down then")]),
            *_find_runs(project, name_hash),
            ("again", f"headrace model reproduce {name_hash[:SHOWN_HASH]}"),
            *(_find_unpinned(project, name_hash, tables) if is_asked else ()),
        ),
        sheets=(Sheet("tables", ("table", "version", "up to", "of the topic"), tuple(rows)),),
        upstream=tuple(_find_clicks(project, fitted) if is_asked else ()),
        downstream=(Link("fitted to", "bundle", name_hash),),
        record={"source": source, "fit": msgspec.to_builtins(fit) if fit else None},
    )


def _find_unpinned(project: OpenProject, name_hash: str, tables: Iterable[str]) -> Iterator[tuple[str, str]]:
    standing = project.tables.names()
    pins = {name: project.tables.open(name).pins() if name in standing else [] for name in tables}
    lost = [name for name, of_table in pins.items() if not any(name_hash in pin.reason.split() for pin in of_table)]
    if lost:
        yield "unpinned", f"{' and '.join(lost)}: the keeper may have vacuumed what it was fitted from"


def _find_clicks(project: OpenProject, fitted: Fitted) -> Iterator[Link]:
    """Yields the newest clicks that a model learned from; nothing if the table was made anew since."""
    source = msgspec.json.decode(fitted.manifest)["source"]
    table = read_tables(source).get(EVENTS)
    model = next((one for one in list_models(project) if one.name == fitted.name), None)
    if table is None or model is None or EVENTS not in project.tables.names():
        return
    if project.tables.open(EVENTS).properties.get(INCARNATION) != table["incarnation"]:
        return
    # Of the table as it is now: rows are only added, and the version may have been vacuumed.
    sql = (
        f"SELECT message_id, event, event_us, log_partition, src_offset FROM {EVENTS} "  # noqa: S608 - numbers
        f"WHERE event = $event AND type = 'track' AND NOT bot AND {below_sql(table['positions'])} "
        f"AND received_us <= {source['at_us']:d} ORDER BY received_us DESC, log_offset DESC LIMIT {_MOST_CLICKS}"
    )
    with query(project, sql, parameters={"event": model.clicks.name}) as found:
        for row in found.table().to_pylist():
            place = f"clicks {row['log_partition']}/{row['src_offset']}"
            text = f"{format_time(row['event_us'])[:19]} {row['event']}, {place}, of the newest"
            yield Link("learned from", "event", row["message_id"], text)


def list_models(project: OpenProject) -> Sequence[Model]:
    """Returns the declared models; none without a project file, as in a container that only settles."""
    return project.declared.models if (project.folder / FILE).is_file() else ()


def _places(positions: Sequence[int]) -> str:
    return ", ".join(f"{partition}/{offset}" for partition, offset in enumerate(positions))


def _made(code: str, seed: int, environment: Mapping[str, str]) -> list[tuple[str, str]]:
    shown = ", ".join(f"{name} {version}" for name, version in environment.items() if name != "system")
    return [("code", f"{code}, seed {seed}"), ("on", shown)]


def _find_runs(project: OpenProject, name_hash: str) -> list[tuple[str, str]]:
    for pipeline in project.declared.pipelines if (project.folder / FILE).is_file() else ():
        for run in project.runner.history.runs(pipeline.name, limit=_MOST_RUNS):
            if any(name_hash in step.outputs for step in run.steps):
                return [("by", f"run {run.number} of the pipeline {pipeline.name}")]
    return []


def list_readers(project: OpenProject, models: Container[str], rows: Sequence[Mapping[str, Place]]) -> list[Fitted]:
    """Returns the bundles of some models, the newest first, whose snapshot holds one of these rows.

    A row may be made of those of several tables, of which it has the places.
    """
    found = []
    for fitted in project.registry.bundles() if rows else ():
        if fitted.name in models:
            source = msgspec.json.decode(fitted.manifest)["source"]
            if any(_is_inside(read_tables(source), row, source["at_us"]) for row in rows):
                found.append(fitted)
    return found


def _is_inside(tables: Mapping[str, Mapping[str, Any]], row: Mapping[str, Place], at_us: int) -> bool:
    for name, (partition, offset, received_us) in row.items():
        ends = tables[name]["positions"] if name in tables else ()
        if partition >= len(ends) or offset >= ends[partition] or received_us > at_us:
            return False
    return True

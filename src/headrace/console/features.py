"""headrace feature: list, describe, join, diff."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from headrace.base.clock import read_duration
from headrace.base.errors import CallError, did_you_mean, unknown_name
from headrace.console.show import format_seconds, print_facts, print_lines, print_rows, print_table, shown, working
from headrace.events.decision import DECISIONS
from headrace.events.settled import EVENTS
from headrace.features import Column, Feature
from headrace.features.join import join as join_features
from headrace.features.parity import Compared, Parity
from headrace.features.parity import diff as diff_features
from headrace.learn import LakeView
from headrace.learn import open_lake as open_whole_lake
from headrace.models import open_bundle
from headrace.project import OpenProject, open_project

_SHOWN_ROWS = 40
_EPOCH = datetime.fromtimestamp(0, UTC)
_KINDS = (".parquet", ".csv")

# list and describe.


def list_features(given: argparse.Namespace) -> None:
    """Lists the columns that the project's models read."""
    with open_project(given.project, profile=given.profile) as project:
        rows = [_summary(feature, column) for feature in project.declared.features for column in feature.columns]
    if given.json:
        print_lines(rows)
        return
    if not rows:
        print("no model of this project reads features")
        return
    print_rows(
        ("feature", "kind", "event", "by", "window", "hop", "identity", "family"),
        [
            (
                row["name"],
                row["kind"],
                row["event"],
                " x ".join(row["by"]),
                format_seconds(row["window_us"] / 1e6),
                format_seconds(row["hop_us"] / 1e6),
                row["identity"],
                row["family"],
            )
            for row in rows
        ],
    )


def _summary(feature: Feature, column: Column) -> dict[str, Any]:
    return {
        "name": column.name,
        "feature": feature.name,
        **{name: getattr(column, name) for name in ("kind", "event", "by", "value", "window_us", "hop_us")},
        "identity": column.identity,
        "family": column.family,
    }


def describe_feature(given: argparse.Namespace) -> None:
    """Says what a feature counts, of whom, and over which windows."""
    with open_project(given.project, profile=given.profile) as project:
        columns = _find_columns(project, [given.name])
        models = [
            model.name
            for model in project.declared.models
            if {column for feature in model.features for column in feature.columns} & set(columns)
        ]
        features = [feature for feature in project.declared.features if any(one in feature.columns for one in columns)]
        rows = [_summary(feature, column) for feature in features[:1] for column in columns]
    column = columns[0]
    found = {
        "name": given.name,
        "sentence": _sentence(column),
        "event": column.event,
        "item": column.item,
        "dimension": column.dimension,
        "by": column.by,
        "value": column.value,
        "models": models,
        "columns": rows,
    }
    if given.json:
        print_lines([found])
        return
    print_facts(
        (
            ("feature", given.name),
            ("says", found["sentence"]),
            ("event", column.event),
            ("item", f"{column.item or 'none'}{f', of {column.dimension}' if column.dimension else ''}"),
            ("read by", ", ".join(models)),
        )
    )
    print()
    print_table(
        ("column", "window", "tail moves by", "identity", "family"),
        [
            (
                row["name"],
                format_seconds(row["window_us"] / 1e6),
                format_seconds(row["hop_us"] / 1e6),
                row["identity"],
                row["family"],
            )
            for row in rows
        ],
    )


def _sentence(column: Column) -> str:
    """Returns what a column says, for people."""
    what = {
        "count": f"how many {column.event!r}",
        "total": f"the sum of {column.value!r} over {column.event!r}",
        "last": f"the {column.value.removeprefix('@')} of the newest {column.event!r}",
    }[column.kind]
    return f"{what} there were for the {' and '.join(part.removeprefix('@') for part in column.by)}"


def _find_columns(project: OpenProject, names: Sequence[str]) -> tuple[Column, ...]:
    """Returns the columns that are called so, or are of features that are called so."""
    known = {feature.name: feature.columns for feature in project.declared.features}
    known |= {column.name: (column,) for column in project.declared.columns}
    for name in names:
        if name not in known:
            raise unknown_name("feature", name, known)
    return tuple(dict.fromkeys(column for name in names for column in known[name]))


def open_lake(project: OpenProject) -> LakeView:
    """Returns the lake as it is now; raises CallError if it has no events yet."""
    if EVENTS not in project.tables.names():
        raise CallError(f"there is no table {EVENTS!r} yet to read features from. Start its sink with: headrace up")
    return open_whole_lake(project)


# join.


def join(given: argparse.Namespace) -> None:
    """Adds to each label of a file the features as they were known at its instant."""
    path, out = Path(given.labels), Path(given.out) if given.out else None
    if out is not None and out.suffix.lower() not in _KINDS:
        raise CallError(f"--out {out}: write to a file that ends with .parquet or .csv")
    with open_project(given.project, profile=given.profile) as project, working(f"joining {path}"):
        columns = _find_columns(project, [name.strip() for name in given.features.split(",") if name.strip()])
        labels = read_labels(path, columns)
        found = join_features(open_lake(project), columns, labels)
    given_names = [name for name in labels.schema.names if name not in found.schema.names]
    joined = labels.select(given_names)
    for name in found.schema.names:
        joined = joined.append_column(name, found.column(name))
    if out is not None:
        _write(joined, out)
        told = {"rows": joined.num_rows, "features": found.schema.names, "file": str(out)}
        print_lines([told]) if given.json else print(f"{joined.num_rows:,} rows to {out}")
    elif given.json:
        print_lines(joined.to_pylist())
    else:
        rows = joined.slice(0, _SHOWN_ROWS).to_pylist()
        print_rows(joined.schema.names, [list(row.values()) for row in rows])
        if joined.num_rows > _SHOWN_ROWS:
            print(f"... {joined.num_rows - _SHOWN_ROWS:,} more rows; --out FILE.parquet takes all")


def _write(joined: pa.Table, out: Path) -> None:
    try:
        if out.suffix.lower() == ".parquet":
            pq.write_table(joined, out)
        else:
            lists = [name for name in joined.schema.names if pa.types.is_nested(joined.schema.field(name).type)]
            pyarrow.csv.write_csv(joined.drop_columns(lists), out)
    except OSError as error:
        raise CallError(f"--out {out}: {error}") from error


def read_labels(path: Path, columns: Sequence[Column]) -> pa.Table:
    """Returns the labels of a file with `at_us` as a number and what keys need as text; CallErrors name the place."""
    table = _read_file(path)
    if "at_us" not in table.schema.names and "at" not in table.schema.names:
        raise CallError(f"{path}: no column 'at_us' (microseconds since 1970) or 'at' (such as 2026-11-21T12:00)")
    name, read = ("at_us", _whole) if "at_us" in table.schema.names else ("at", _instant)
    at_us = _convert(path, table, name, read)
    if "known" in table.schema.names and not pa.types.is_list(table.schema.field("known").type):
        raise CallError(f"{path}: the column 'known' must be a list of whole numbers, which only Parquet can hold")
    needed = sorted({part for column in columns for part in column.by})
    for part in needed:
        if part not in table.schema.names:
            listed = ", ".join(table.schema.names)
            raise CallError(
                f"{path}: no column {part!r}, which the features are keyed by."
                f"{did_you_mean(part, table.schema.names)}  It has: {listed}"
            )
        text = pc.cast(table.column(part), pa.string())
        table = table.set_column(table.schema.get_field_index(part), part, text)
    return table.set_column(table.schema.get_field_index(name), "at_us", at_us)


def _read_file(path: Path) -> pa.Table:
    if path.suffix.lower() not in _KINDS:
        raise CallError(f"{path}: labels are read from .csv or .parquet")
    try:
        if path.suffix.lower() == ".parquet":
            return pq.read_table(path)
        with path.open("rb") as file:
            names = pa.csv.open_csv(file).schema.names
        options = pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
        )
        return pa.csv.read_csv(path, convert_options=options)
    except OSError as error:
        raise CallError(f"{path}: {error.strerror or error}") from error
    except pa.ArrowInvalid as error:
        raise CallError(f"{path}: {error}") from error


def _convert(path: Path, table: pa.Table, name: str, read: Callable[[Any], int]) -> pa.Array:
    """Returns a column as microseconds; raises CallError with the row of the first value that is no instant."""
    found = []
    for row, value in enumerate(table.column(name).to_pylist(), start=1):
        try:
            found.append(read(value))
        except (ValueError, TypeError, OverflowError) as error:
            wanted = "whole microseconds since 1970" if name == "at_us" else "an instant such as 2026-11-21T12:00"
            raise CallError(f"{path}, row {row:,}, column {name!r}: {value!r} is not {wanted}") from error
    return pa.array(found, pa.int64())


def _whole(value: str | int) -> int:
    if isinstance(value, bool | float):
        raise TypeError(value)
    return int(value)


def _instant(value: str | datetime) -> int:
    at = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    return (at.replace(tzinfo=at.tzinfo or UTC) - _EPOCH) // timedelta(microseconds=1)


# diff.


def diff(given: argparse.Namespace) -> int:
    """Compares what decisions served with what the lake gives; the exit code is 1 if any value differs."""
    with open_project(given.project, profile=given.profile) as project, working("making the vectors again"):
        if given.page and given.page not in {page.name for page in project.declared.pages}:
            raise unknown_name("page", given.page, {page.name for page in project.declared.pages})
        found = compare(project, since=given.since, page=given.page)
    rows = [_told(one) for one in found.columns]
    if given.json:
        print_lines([{"decisions": found.decisions, "behind": found.behind, "mismatches": found.mismatches}, *rows])
    else:
        _show(found)
    return 1 if found.mismatches else 0


def compare(project: OpenProject, *, since: str | None = None, page: str | None = None) -> Parity:
    """Returns the parity of the decisions in the lake, of a page and of the time before now if they are given."""
    if DECISIONS not in project.tables.names() or "vectors" not in project.tables.open(DECISIONS).schema.names:
        return Parity(0, 0, ())
    least = project.clock.now_us() - read_duration(since, "--since") if since else 0
    asked = "" if page is None else "AND page = $page "
    decisions = project.query(
        f"SELECT * FROM {DECISIONS} WHERE vectors IS NOT NULL {asked}AND at_us >= $least",  # noqa: S608 - ours
        parameters={"least": least, **({} if page is None else {"page": page})},
    ).table()
    if not decisions.num_rows:
        return Parity(0, 0, ())
    bundles = sorted(set(decisions.column("bundle").to_pylist()))
    columns = {name_hash: open_bundle(project.registry.load(name_hash)).columns for name_hash in bundles}
    return diff_features(open_lake(project), decisions, columns)


def _told(one: Compared) -> dict[str, Any]:
    return {
        "feature": one.column.name,
        "identity": one.column.identity,
        "compared": one.compared,
        "mismatches": one.mismatches,
        "told": one.told,
        "examples": [asdict(example) for example in one.examples],
    }


def _show(found: Parity) -> None:
    behind = f"{found.behind:,} decisions know events that the lake does not hold yet; ask again in a moment"
    if not found.decisions:
        print(behind if found.behind else "no decision with features to compare yet")
        return
    values = sum(one.compared for one in found.columns)
    print_table(
        ("feature", "compared", "say something", "mismatches"),
        [(one.column.name, one.compared, one.told, one.mismatches) for one in found.columns],
    )
    print()
    for one in found.columns:
        for example in one.examples:
            place = f"{one.column.name}, {example.recommendation_id}, {example.item}"
            print(shown(f"{place}: served {example.served!r}, the lake gives {example.recomputed!r}"))
    print(f"{values:,} values of {found.decisions:,} decisions compared, {found.mismatches:,} mismatches")
    if found.behind:
        print(behind)

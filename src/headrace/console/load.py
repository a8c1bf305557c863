"""headrace table load: a file becomes members of a dimension, all of them or none."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import Progress

from headrace.base.errors import CallError, did_you_mean, unknown_name
from headrace.collect.load import Loaded, load_members
from headrace.console.acts import note_rows
from headrace.console.show import print_lines
from headrace.events.dimension import Dimension, Scalar, fault_of
from headrace.project import OpenProject, open_project
from headrace.stream import list_dimensions

_SUFFIXES = {".csv": "csv", ".json": "jsonl", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_LONG_BYTES = 1 << 20
_TOLD_ROWS = 2048

_Row = tuple[int, int, Mapping[str, Any]]
"""Its number, how much of the file has been read with it, and its values."""

_read_object = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass
class _File:
    """A file that is read row by row."""

    path: Path
    columns: dict[str, None] = field(default_factory=dict)
    """Its columns in their order; of JSON lines those of the rows read so far."""
    total: int = 0
    """How much there is to read, in whatever `rows` counts."""
    rows: Iterator[_Row] = field(default_factory=lambda: iter(()))

    def fault(self, row: int | None, text: str, *, column: str | None = None) -> CallError:
        """Returns the error for a place in the file."""
        places = [str(self.path)]
        places += [] if row is None else [f"row {row:,}"]
        places += [] if column is None else [f"column {column!r}"]
        return CallError(f"{', '.join(places)}: {text}. Nothing was loaded")


def load(given: argparse.Namespace) -> None:
    """Reads and checks a whole file, then loads what is new or changed and marks it in `clicks`."""
    path = Path(given.file)
    with open_project(given.project, profile=given.profile) as project:
        dimension = _find_dimension(project, given.table)
        with _bar(path) as bar:
            file = _open(path, given.format, dimension)
            members = read_members(file, dimension, told=_telling(bar, "reading", file.total))
            project.make_topics()
            loaded = load_members(
                project.topics,
                dimension,
                members=members,
                now_us=project.clock.now_us(),
                told=_telling(bar, "writing", len(members)),
            )
        passed_over = [name for name in file.columns if name not in (dimension.key, *dimension.names)]
        told = {
            "table": dimension.name,
            **{name: getattr(loaded, name) for name in ("new", "changed", "unchanged", "offset")},
            "passed_over": passed_over,
        }
        note_rows(project.profile.state, "table load", [{**told, "file": str(path)}])
    if given.json:
        print_lines([told])
    else:
        _show(dimension, loaded, passed_over)


def _show(dimension: Dimension, loaded: Loaded, passed_over: list[str]) -> None:
    print(f"{dimension.name}: {loaded.new:,} new, {loaded.changed:,} changed, {loaded.unchanged:,} unchanged")
    print(f"clicks that come from now on know them, up to offset {loaded.offset:,}")
    if passed_over:
        print(f"not declared and passed over: {', '.join(passed_over)}")


def _find_dimension(project: OpenProject, name: str) -> Dimension:
    found = list_dimensions(project)
    if not found:
        raise CallError(
            f"--table {name}: no event of this project names a dimension. Declare one in project.py: "
            "items = Dimension('items', key='product_id', attributes=(Attribute('genre'),)), then Event(..., of=items)"
        )
    if name not in found:
        raise unknown_name("dimension", name, found)
    return found[name]


def read_members(
    file: _File, dimension: Dimension, *, told: Callable[[int], None] = lambda _: None
) -> dict[str, dict[str, Scalar]]:
    """Returns the members that a file holds, by key; raises CallError at the first that can be none."""
    members: dict[str, dict[str, Scalar]] = {}
    places: dict[str, int] = {}
    for row, done, values in file.rows:
        if dimension.key not in values:
            raise _missing(file, dimension.key, row)
        key = _key_of(values[dimension.key])
        attributes: dict[str, Any] = {name: values.get(name) for name in dimension.names}
        if (fault := fault_of(key, attributes)) is not None:
            raise file.fault(row, fault[1], column=fault[0] or dimension.key)
        if key in places:
            text = f"{key!r} stands in row {places[key]:,} already, and a key stands once; leave one of both"
            raise file.fault(row, text, column=dimension.key)
        members[key], places[key] = attributes, row
        if row % _TOLD_ROWS == 0:
            told(done)
    if not members:
        raise file.fault(None, "it has no rows")
    for name in dimension.names:
        if name not in file.columns:
            raise _missing(file, name, None)
    return members


def _key_of(value: object) -> Any:
    """Returns a key as events are read: a whole number is spelled out."""
    return str(value) if type(value) is int and value >= 0 else value


def _missing(file: _File, name: str, row: int | None) -> CallError:
    columns = [*file.columns]
    return file.fault(row, f"there is no column {name!r}, only {columns}{did_you_mean(name, columns)}")


# Three kinds of file.


def _open(path: Path, given: str | None, dimension: Dimension) -> _File:
    kind = given or _SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise CallError(f"{path}: cannot tell what it is by its suffix; say --format csv, jsonl or parquet")
    file = _File(path)
    try:
        if kind == "parquet":
            _open_parquet(file, dimension)
        else:
            with path.open("rb") as found:
                file.total = found.seek(0, io.SEEK_END)
            file.rows = _read_csv(file) if kind == "csv" else _read_json_lines(file)
    except (OSError, pa.ArrowException) as error:
        raise file.fault(None, f"it cannot be read: {error}") from error
    return file


def _read_csv(file: _File) -> Iterator[_Row]:
    with file.path.open("rb") as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        try:
            names = next(reader, [])
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise file.fault(1, f"the column {twice!r} stands twice; rename one", column=twice)
            file.columns.update(dict.fromkeys(names))
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(names):
                    text = f"it has {len(cells)} cells and the header {len(names)}; put a cell with a comma into quotes"
                    raise file.fault(reader.line_num, text)
                yield (
                    reader.line_num,
                    raw.tell(),
                    {n: cell or None for n, cell in zip(names, cells, strict=True)},
                )
        except (csv.Error, UnicodeDecodeError) as error:
            raise file.fault(reader.line_num + 1, f"it is no CSV in UTF-8: {error}") from error


def _read_json_lines(file: _File) -> Iterator[_Row]:
    done = 0
    with file.path.open("rb") as lines:
        for row, line in enumerate(lines, start=1):
            done += len(line)
            text = line.removeprefix(b"\xef\xbb\xbf").strip() if row == 1 else line.strip()
            if not text:
                continue
            try:
                values = _read_object(text)
            except (ValueError, RecursionError) as error:
                raise file.fault(row, f"it is no JSON object on a line of its own: {error}") from error
            file.columns.update(dict.fromkeys(values))
            yield row, done, values


def _open_parquet(file: _File, dimension: Dimension) -> None:
    source = pq.ParquetFile(file.path)
    file.columns.update(dict.fromkeys(source.schema_arrow.names))
    file.total = source.metadata.num_rows
    wanted = [name for name in (dimension.key, *dimension.names) if name in file.columns]
    file.rows = _read_parquet(file, source, wanted)


def _read_parquet(file: _File, source: pq.ParquetFile, wanted: list[str]) -> Iterator[_Row]:
    row = 0
    try:
        for batch in source.iter_batches(columns=wanted):
            for values in batch.to_pylist():
                row += 1
                # pandas writes NaN where nothing is known.
                yield row, row, {name: None if value != value else value for name, value in values.items()}  # noqa: PLR0124 - NaN is not itself
    except (pa.ArrowException, OSError) as error:
        raise file.fault(row + 1, f"it cannot be read: {error}") from error


# What a terminal shows of a long file.


def _bar(path: Path) -> Progress:
    is_long = path.is_file() and path.stat().st_size > _LONG_BYTES
    return Progress(console=Console(stderr=True), transient=True, disable=not (is_long and sys.stderr.isatty()))


def _telling(bar: Progress, what: str, total: int) -> Callable[[int], None]:
    task = bar.add_task(what, total=total, start=False, visible=False)

    def told(done: int) -> None:
        bar.start_task(task)
        bar.update(task, completed=done, visible=True)

    return told

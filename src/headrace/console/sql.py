"""headrace table sql: one SELECT over the lake, shown to people or streamed into a pipe."""

from __future__ import annotations

import argparse
import contextlib
import csv
import errno
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.base.errors import CallError, FullError, UnknownNameError
from headrace.console.show import as_text, format_bytes, is_terminal, print_rows
from headrace.engines import Parameters, Result, SqlError, View
from headrace.events.raw import read_instant
from headrace.events.settled import EVENTS
from headrace.project import OpenProject, open_project
from headrace.stream import CODECS
from headrace.tables import Table
from headrace.tables.catalog import make_views

_SHOWN_ROWS = 40

_encoder = msgspec.json.Encoder(decimal_format="number", enc_hook=str)


def sql(given: argparse.Namespace) -> None:
    """Answers one SELECT over the lake."""
    if given.max is not None and given.max < 1:
        raise CallError(f"--max {given.max}: must be 1 or more")
    text = sys.stdin.read() if given.sql == "-" else given.sql
    with open_project(given.project, profile=given.profile) as project:
        if given.parquet:
            _check_target(project, Path(given.parquet))
        began_at = time.monotonic()
        with _interruptible(), query(project, text, at=given.at) as result:
            write = _writer(given)
            if write is not None:
                write(result.schema, _limited(result.batches(), given.max))
            else:
                _show(result, given.max, began_at)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Lets Ctrl-C end the process at once: DuckDB does not return to Python before it has an answer."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        # Whoever started this in the background wants it to be left alone.
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def query(project: OpenProject, text: str, *, at: str | None = None, parameters: Parameters = ()) -> Result:
    """Returns the answer to one SELECT over the tables and views of a project, as they are now or were `at`."""
    try:
        return project.query(text, at=partial(_at, at=at), parameters=parameters)
    except SqlError as error:
        raise _not_yet(project, str(error)) or error from error


def list_views(project: OpenProject) -> list[View]:
    """Returns the views of a project, as far as their table `events` stands."""
    names = project.tables.names()
    if EVENTS not in names:
        return []
    return make_views(project.events, project.tables.open(EVENTS).schema.names, taken=names)


def _at(table: Table, at: str | None) -> Table:
    if at is None:
        return table
    # isdigit() would take '²' as well, which int() does not.
    if at.isdecimal():
        return table.at(int(at))
    time_us = read_instant(at)
    if time_us is None:
        raise CallError(f"--at {at!r}: write a version like 12, or an instant like 2026-11-21T12:00")
    return table.at(time_us=time_us)


def _not_yet(project: OpenProject, message: str) -> UnknownNameError | None:
    """Returns the error for a table that is only missing because nothing ran yet."""
    names = project.tables.names()
    expected = [name for name in CODECS if name not in names]
    if EVENTS not in names:
        expected += [view.name for view in make_views(project.events, (), taken=[*names, EVENTS])]
    for name in expected:
        if message.lower().startswith(f"no table {name!r}"):
            return missing_table(name)
    return None


def missing_table(name: str) -> UnknownNameError:
    """Returns the error for a table of the stream that nothing has made yet."""
    return UnknownNameError(f"no table {name!r} yet: `headrace up` makes it")


def _limited(batches: Iterator[pa.RecordBatch], rows: int | None) -> Iterator[pa.RecordBatch]:
    left = sys.maxsize if rows is None else rows
    for batch in batches:
        yield batch.slice(0, left)
        left -= batch.num_rows
        if left <= 0:
            return


_Write = Callable[[pa.Schema, Iterator[pa.RecordBatch]], None]


def _writer(given: argparse.Namespace) -> _Write | None:
    if given.json:
        return _write_json
    if given.csv:
        return _write_csv
    if given.parquet:
        return lambda schema, batches: _write_parquet(Path(given.parquet), schema, batches)
    return None


def _write_json(schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    names = _unique(schema.names)
    for batch in batches:
        rows = [dict(zip(names, row, strict=True)) for row in rows_of(batch, separator="T")]
        sys.stdout.write(_encoder.encode_lines(rows).decode())
    sys.stdout.flush()


def _unique(names: list[str]) -> list[str]:
    """Returns names of which none stands twice, as the members of an object must."""
    found: list[str] = []
    for name in names:
        number, free = 2, name
        while free in found:
            free, number = f"{name}_{number}", number + 1
        found.append(free)
    return found


def _write_csv(schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(schema.names)
    for batch in batches:
        writer.writerows([as_text(cell) for cell in row] for row in rows_of(batch))
    sys.stdout.flush()


def _write_parquet(path: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    # A pipe is written as it comes; a file takes its name once it is whole.
    is_pipe = path.exists() and not path.is_file()
    target = path if is_pipe else path.with_name(f".{path.name}.part")
    try:
        with target.open("wb") as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for batch in batches:
                writer.write_batch(batch)
        if not is_pipe:
            target.replace(path)
    except pa.ArrowNotImplementedError as error:
        raise CallError(f"Parquet cannot hold a column of this answer: {error}. Cast it in the SQL") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise FullError(f"no room for {str(path)!r}") from error
        raise CallError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    finally:
        if not is_pipe:
            target.unlink(missing_ok=True)


def _check_target(project: OpenProject, path: Path) -> None:
    """Refuses what must not be written over: a file of the project's own, and one that is perhaps no Parquet."""
    places = [project.profile.state]
    url = project.profile.url("tables")
    if url.scheme == "file":
        places.append(url.local_path())
    found = path.absolute().resolve()
    if any(place.resolve() in (found, *found.parents) for place in places):
        raise CallError(f"--parquet {str(path)!r} lies among the project's own files; choose another place")
    if found.is_file() and found.suffix.lower() != ".parquet":
        raise CallError(
            f"--parquet {str(path)!r} stands already and is not called .parquet, so it is not written over; "
            "choose another name"
        )


def _show(result: Result, asked: int | None, began_at: float) -> None:
    rows = asked or _SHOWN_ROWS
    names = result.schema.names
    # One row more than is shown tells whether there are more.
    found = list(islice(chain.from_iterable(map(rows_of, result.batches())), rows + 1))
    print_rows(names, found[:rows])
    counted = f"{len(found):,} row{'' if len(found) == 1 else 's'}"
    if len(found) > rows:
        counted = f"the first {rows:,} rows{'' if asked else ', --max ROWS shows more'}"
    parts = [counted, f"{time.monotonic() - began_at:.2f} s"]
    if result.scanned is not None:
        parts.append(f"{format_bytes(result.scanned.bytes)} scanned")
    # Whoever reads a pipe wants the rows alone.
    print(", ".join(parts), file=sys.stdout if is_terminal() else sys.stderr)


def rows_of(batch: pa.RecordBatch, *, separator: str = " ") -> Iterator[tuple[Any, ...]]:
    """Returns the rows of a batch as Python has them; what it has no value for, as text."""
    return zip(*[_cells(column, separator) for column in batch.columns], strict=True)


def _cells(column: pa.Array, separator: str) -> list[Any]:
    """Returns the values of a column; an instant that Python has no value for, as text."""
    try:
        found: list[Any] = column.to_pylist()
    except (OverflowError, ValueError):
        return [_cell(scalar, separator) for scalar in column]
    return found


def _cell(scalar: pa.Scalar, separator: str) -> Any:
    try:
        return scalar.as_py()
    except (OverflowError, ValueError):
        if isinstance(scalar, pa.UnionScalar):
            return _cell(scalar.value, separator)
        if isinstance(scalar, pa.StructScalar):
            return {name: _cell(value, separator) for name, value in scalar.items()}
        if isinstance(scalar, pa.MapScalar):
            return [tuple(entry.values()) for entry in _cells(scalar.values, separator)]
        if isinstance(scalar, pa.ListScalar | pa.FixedSizeListScalar):
            return _cells(scalar.values, separator)
        return _instant(scalar, separator)


_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_CYCLE_DAYS, _CYCLE_YEARS = 146_097, 400
_LARGEST = {2**31 - 1: "infinity", 1 - 2**31: "-infinity", 2**63 - 1: "infinity", 1 - 2**63: "-infinity"}


def _instant(scalar: pa.Scalar, separator: str) -> str:
    """Returns a day, a time or an instant as ISO 8601 has it, of any year and with nanoseconds."""
    kind, value = scalar.type, scalar.value
    if value in _LARGEST:
        return _LARGEST[value]
    if pa.types.is_date32(kind):
        return _day(value)
    per_second = _UNITS[kind.unit]
    seconds, part = divmod(value, per_second)
    days, seconds = divmod(seconds, 86_400)
    digits = f".{part:0{len(str(per_second)) - 1}}" if part else ""
    time_of_day = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{digits}"
    if pa.types.is_time(kind):
        return time_of_day
    zone = "" if kind.tz is None else "Z" if separator == "T" else "+00:00"
    return f"{_day(days)}{separator}{time_of_day}{zone}"


def _day(days: int) -> str:
    # The calendar repeats every 400 years, so Python's own knows the day of any.
    cycles, rest = divmod(days, _CYCLE_DAYS)
    found = date(1970, 1, 1) + timedelta(days=rest)
    year = found.year + cycles * _CYCLE_YEARS
    return f"{'-' if year < 0 else ''}{abs(year):04}-{found:%m-%d}"

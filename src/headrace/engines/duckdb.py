"""DuckDB in this process: each query has a database of its own in memory, which sees its tables' files only.

A database per query costs about 20 ms on two cores, and is what makes the lock hold: DuckDB's list of allowed
files cannot be changed any more once access to all others is off.
"""

from __future__ import annotations

import contextlib
import json
import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import msgspec
import pyarrow as pa

from headrace.base.errors import CallError, HeadraceError
from headrace.base.urls import Url
from headrace.engines.duckdb_errors import read_failure
from headrace.engines.duckdb_guard import Rules, Statement, find_refused, fold, make_rules, read_statement
from headrace.engines.duckdb_query import Query, Watch
from headrace.engines.engine import Parameters, Scanned, Source, SqlError, View

_BATCH_ROWS = 65_536
_LARGEST = {"threads": 1024, "deadline_seconds": 1_000_000}
_SIZE = re.compile(r"\d+(\.\d+)? ?([KMGT]i?)?B", re.IGNORECASE)


class _Options(msgspec.Struct):
    memory: str = "2GB"
    """What one query may hold in memory."""
    threads: int = 0
    """Cores that one query uses; 0 is all."""
    spill: str = ".headrace/spill"
    """The folder for what does not fit into memory, relative to the project."""
    spill_limit: str = "20GB"
    """What one query may hold there."""
    deadline_seconds: float = 0
    """How long one query may take; 0 is as long as it likes."""


class DuckdbEngine:
    """Answers SQL by DuckDB."""

    def __init__(self, options: _Options, *, root: Path) -> None:
        self._options = options
        self._spill = (root / options.spill).absolute()

    @classmethod
    def from_url(cls, url: Url) -> Self:
        """Returns the engine of `duckdb://?memory=2GB&threads=2&spill=.headrace/spill&spill_limit=20GB`."""
        options = url.read_options(_Options)
        for name in ("memory", "spill_limit"):
            size = getattr(options, name)
            if not _SIZE.fullmatch(size):
                raise CallError(f"{str(url)!r}: {name}={size} is no size. Write it as 512MB or 2GB")
        for name, largest in _LARGEST.items():
            value = getattr(options, name)
            if not 0 <= value <= largest:
                raise CallError(f"{str(url)!r}: {name}={value:g} is not between 0 and {largest:,}")
        if url.address or url.path:
            raise CallError(f"{str(url)!r}: duckdb:// has no address and no path, only options")
        return cls(options, root=url.root)

    def query(
        self,
        sql: str,
        *,
        sources: Sequence[Source],
        views: Sequence[View] = (),
        parameters: Parameters = (),
        deadline_seconds: float | None = None,
    ) -> DuckdbResult:
        """Returns the answer to one SELECT over `sources` and `views`, and to nothing else."""
        _check_names([*(source.name for source in sources), *(view.name for view in views)])
        deadline = self._options.deadline_seconds if deadline_seconds is None else deadline_seconds
        with contextlib.ExitStack() as opened:
            connection = opened.enter_context(self._connect())
            watch = Watch(connection, deadline)
            opened.callback(watch.stop)
            result = self._prepare(Query(connection, watch), sql, (sources, views), parameters)
            opened.pop_all()
        return result

    def close(self) -> None:
        """Does nothing: each result holds what is its own."""

    def _connect(self) -> duckdb.DuckDBPyConnection:
        with contextlib.suppress(OSError):
            # DuckDB makes the last folder only; if it may not, it says so once it has to spill.
            self._spill.parent.mkdir(parents=True, exist_ok=True)
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": self._options.memory,
            "temp_directory": str(self._spill),
            "errors_as_json": True,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_community_extensions": False,
            "python_enable_replacements": False,
        }
        if self._options.threads:
            config["threads"] = self._options.threads
        try:
            connection = duckdb.connect(config=config)
            # DuckDB 2.0 shows a limit that was given to connect(), and does not keep it.
            connection.execute(f"SET max_temp_directory_size = '{self._options.spill_limit}'")
            # It would draw its progress on stdout, also into a pipe.
            connection.execute("SET enable_progress_bar = false; SET TimeZone = 'UTC'")
            connection.execute("SET enable_profiling = 'no_output'")
        except duckdb.Error as error:
            raise self._refused_option(error) from error
        return connection

    def _refused_option(self, error: duckdb.Error) -> CallError:
        given = self._options
        listed = f"memory={given.memory}, threads={given.threads}, spill_limit={given.spill_limit}"
        reason = read_failure(error).message.split("\n", 1)[0]
        return CallError(f"the engine does not start with its options {listed}: {reason}")

    def _prepare(
        self, query: Query, sql: str, tables: tuple[Sequence[Source], Sequence[View]], parameters: Parameters
    ) -> DuckdbResult:
        sources, views = tables
        with query.translated():
            query.statement, used = self._read_all(query.connection, sql, sources, views)
        query.open_sources([source for source in sources if source.name in used])
        for view in (view for view in views if view.name in used):
            query.create_view(view)
        return DuckdbResult(query, query.bind(_listed(parameters)))

    def _read_all(
        self, connection: duckdb.DuckDBPyConnection, sql: str, sources: Sequence[Source], views: Sequence[View]
    ) -> tuple[Statement, set[str]]:
        """Returns the statement, and the sources and views that it needs, itself or through a view."""
        refused = find_refused()
        names = [source.name for source in sources]
        statement = read_statement(connection, sql, make_rules([*names, *(view.name for view in views)], refused))
        by_name = {view.name: i for i, view in enumerate(views)}
        waiting, used = list(statement.names), set[str]()
        while waiting:
            name = waiting.pop()
            if name not in used and name in by_name:
                earlier = [view.name for view in views[: by_name[name]]]
                found = _read_view(connection, views[by_name[name]], make_rules([*names, *earlier], refused))
                waiting.extend(found.names)
            used.add(name)
        return statement, used


def _read_view(connection: duckdb.DuckDBPyConnection, view: View, rules: Rules) -> Statement:
    try:
        return read_statement(connection, view.sql, rules)
    except SqlError as error:
        raise SqlError(f"the view {view.name!r}: {error}") from error


def _check_names(names: Sequence[str]) -> None:
    folded = [fold(name) for name in names]
    for i, name in enumerate(names):
        if folded[i] in folded[:i]:
            raise CallError(f"two tables or views are called {name!r}; SQL does not tell upper from lower case")


def _listed(parameters: Parameters) -> list[object] | dict[str, object] | None:
    if isinstance(parameters, Mapping):
        return dict(parameters)
    return list(parameters) or None


class DuckdbResult:
    """The answer to one statement, and the database that works on it."""

    def __init__(self, query: Query, relation: duckdb.DuckDBPyRelation) -> None:
        self._query = query
        self._relation = relation
        self._reader: pa.RecordBatchReader | None = None
        self._scanned: Scanned | None = None
        self._closed = False
        # A result that nobody closed must not be interrupted for ever.
        weakref.finalize(self, query.watch.stop)

    @property
    def schema(self) -> pa.Schema:
        """The columns of the answer; the work begins."""
        return self._start().schema

    @property
    def scanned(self) -> Scanned | None:
        """What it took to answer, known once the answer was read to its end."""
        return self._scanned

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yields the answer piece by piece; at its end the result closes itself."""
        while True:
            with self._ending():
                batch = next(self._start(), None)
            if batch is None:
                break
            yield batch
        self._finish()

    def table(self) -> pa.Table:
        """Returns the whole answer, or what `batches` has not yielded yet."""
        schema = self.schema
        return pa.Table.from_batches(self.batches(), schema=schema)

    def cancel(self) -> None:
        """Stops the work, from any thread."""
        self._query.watch.cancel()

    def close(self) -> None:
        """Stops the work and lets go of the files."""
        if not self._closed:
            self._closed = True
            self._query.watch.stop()
            if self._reader is not None:
                self._reader.close()
            self._query.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> pa.RecordBatchReader:
        if self._closed:
            raise CallError("the result is closed; run the query again")
        if self._reader is None:
            with self._ending():
                self._reader = self._relation.to_arrow_reader(_BATCH_ROWS)
        return self._reader

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        """Translates an error, after which there is nothing more to read."""
        try:
            with self._query.translated():
                yield
        except HeadraceError:
            self.close()
            raise

    def _finish(self) -> None:
        if self._reader is not None:
            self._reader.close()
        # DESCRIBE and EXPLAIN leave no profile.
        profile: dict[str, Any] = json.loads(self._query.connection.get_profiling_information())
        rows = profile.get("query", {}).get("total_rows_scanned", 0)
        self._scanned = Scanned(rows=int(rows), bytes=int(profile.get("io", {}).get("total_bytes_read", 0)))
        self.close()

"""One statement's database: its tables, its lock, its deadline, and what its errors mean."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NoReturn

import duckdb
import pyarrow as pa

from headrace.base.errors import CallError, DeadlineError, FormatError, HeadraceError, did_you_mean
from headrace.engines.duckdb_errors import Failure, is_damage, read_failure, read_outside
from headrace.engines.duckdb_guard import Statement
from headrace.engines.engine import Source, SqlError, View, quote_name, quote_text

_NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_PATH_COLUMN = "__headrace_path"

# What DuckDB and Arrow raise; a stream gives DuckDB's errors as OSError.
_ERRORS = (duckdb.Error, pa.ArrowException, OSError)

# How often a query is interrupted once its deadline passed: an interrupt before it runs would get lost.
_INTERRUPT_SECONDS = 0.05

# A list of a thousand columns helps nobody.
_LISTED_COLUMNS = 40


class Watch:
    """Interrupts a connection at its deadline, or when it is told to, until it is stopped."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, seconds: float) -> None:
        self.seconds = seconds
        self.over = False
        self.cancelled = False
        self._connection = connection
        self._changed = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        if seconds:
            self._start()

    def cancel(self) -> None:
        """Interrupts, now and until it is stopped."""
        self.cancelled = True
        self._changed.set()
        if self._thread is None:
            self._start()

    def stop(self) -> None:
        """Lets the connection be."""
        self._stopped.set()
        self._changed.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="headrace-deadline", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._changed.wait(self.seconds or None)
        self.over = not self._stopped.is_set()
        while not self._stopped.is_set():
            self._connection.interrupt()
            self._stopped.wait(_INTERRUPT_SECONDS)


class Query:
    """One statement's database: its tables, its lock and what its errors mean."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, watch: Watch) -> None:
        self.connection = connection
        self.watch = watch
        self.statement = Statement("", "", 0, frozenset())
        self._files: dict[str, str] = {}
        self._columns: dict[str, None] = {}
        self._view = ""

    def _lock(self) -> None:
        paths = ", ".join(map(quote_text, self._files))
        self.connection.execute(f"SET allowed_paths = [{paths}]")
        self.connection.execute("SET enable_external_access = false; SET lock_configuration = true")

    def open_sources(self, sources: Sequence[Source]) -> None:
        """Makes each source a view over its files; then the database reads these files and nothing else, for good."""
        for source in sources:
            paths = [os.path.abspath(path) for path in source.find_files()]  # noqa: PTH100 - 10x faster for 10,000 files
            self._files.update(dict.fromkeys(paths, source.name))
            self._columns.update(dict.fromkeys(source.schema.names))
            with self.translated():
                self.connection.execute(f"CREATE VIEW {quote_name(source.name)} AS {self._scan(source, paths)}")
        with self.translated():
            self._lock()

    def create_view(self, view: View) -> None:
        """Makes a view of the caller's, whose SQL was judged before."""
        head = f"CREATE VIEW {quote_name(view.name)} AS\n"
        outer, self.statement = self.statement, Statement("", view.sql, -len(head.encode()), frozenset())
        self._view = view.name
        with self.translated():
            self.connection.execute(head + view.sql)
        self.statement, self._view = outer, ""

    def _scan(self, source: Source, paths: Sequence[str]) -> str:
        types = dict(zip(source.schema.names, self._types(source), strict=True))
        if not paths:
            columns = ", ".join(f"NULL::{kind} AS {quote_name(name)}" for name, kind in types.items())
            return f"SELECT {columns} WHERE false"
        stored = {name: kind for name, kind in types.items() if name not in source.partitions}
        for path in paths:
            _check_path(source, path)
        columns = ", ".join(quote_name(n) if n in stored else _partition(n, kind, paths) for n, kind in types.items())
        # Types by name: else each file's footer is read when the view is made (900 files: 84 ms against 14),
        # and a column that no file has yet would not exist.
        schema = ", ".join(
            f"{quote_text(name)}: {{name: {quote_text(name)}, type: {quote_text(kind)}, default_value: NULL}}"
            for name, kind in stored.items()
        )
        files = ", ".join(map(quote_text, paths))
        # Every name and text in it is quoted.
        return (
            f"SELECT {columns} "  # noqa: S608
            f"FROM read_parquet([{files}], schema = MAP {{{schema}}}, filename = '{_PATH_COLUMN}')"
        )

    def _types(self, source: Source) -> list[str]:
        try:
            kinds = self.connection.from_arrow(source.schema.empty_table()).types
        except duckdb.Error as error:
            raise CallError(f"the table {source.name!r} has a column that DuckDB cannot read: {error}") from error
        return ["INTEGER" if str(kind) == '"NULL"' else str(kind) for kind in kinds]

    def bind(self, parameters: list[object] | dict[str, object] | None) -> duckdb.DuckDBPyRelation:
        """Returns the statement with its names found and its types known, before any work."""
        with self.translated():
            try:
                return self.connection.sql(self.statement.text, params=parameters)
            except (duckdb.BinderException, duckdb.CatalogException) as error:
                # The call that gives Arrow leaves the place out; this one says it.
                if read_failure(error).place is None and not self.statement.text.startswith("EXPLAIN"):
                    self._explain(parameters)
                raise

    def _explain(self, parameters: list[object] | dict[str, object] | None) -> None:
        head = "EXPLAIN "
        self.statement = replace(
            self.statement, text=head + self.statement.text, shift=self.statement.shift - len(head)
        )
        self.connection.execute(self.statement.text, parameters)

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Turns what DuckDB raises into what it means."""
        try:
            yield
        except _ERRORS as error:
            self._fail(read_failure(error), error)

    def _fail(self, failure: Failure, error: BaseException) -> NoReturn:
        if self.watch.over or failure.kind == "INTERRUPT":
            raise self._interrupted() from error
        found = read_outside(failure) or self._find_damaged(failure) or self._sql_error(failure)
        raise found from error

    def _interrupted(self) -> DeadlineError:
        if self.watch.cancelled:
            return DeadlineError("the query was cancelled")
        return DeadlineError(
            f"the query was not done within {self.watch.seconds:g} seconds. "
            "Read less, or give it more time (deadline_seconds)"
        )

    def _find_damaged(self, failure: Failure) -> FormatError | None:
        named = next((path for path in self._files if path in failure.message), None)
        if failure.message.startswith("No files found"):
            return FormatError(
                f"{named} is missing, a file of the table {self._files.get(named or '', '?')!r}. Open the table anew; "
                "if it is still listed, the table has lost it"
            )
        if named is None and is_damage(failure):
            named = next((path for path in self._files if _is_damaged(path)), None)
        if named is None:
            return None
        return FormatError(
            f"{named} cannot be read, a file of the table {self._files[named]!r}: {failure.message.strip()}"
        )

    def _sql_error(self, failure: Failure) -> HeadraceError:
        message = failure.message.partition("\nCandidate bindings")[0]
        if failure.subtype == "COLUMN_NOT_FOUND" and failure.name:
            known = list(self._columns | dict.fromkeys(failure.candidates))
            listed = ", ".join(known[:_LISTED_COLUMNS]) + (", ..." if len(known) > _LISTED_COLUMNS else "")
            message = f"no column {failure.name!r}.{did_you_mean(failure.name, known)}  known: {listed}"
        if self._view:
            message = f"the view {self._view!r}: {message}"
        start = failure.place.start + self.statement.shift if failure.place else -1
        if failure.place is None or not 0 <= start <= len(self.statement.sql.encode()):
            return SqlError(message)
        return SqlError(f"{message}\n{self.statement.show(failure.place)}")


def _is_damaged(path: str) -> bool:
    """Returns whether DuckDB cannot read a file from its first row to its last."""
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute("SET enable_progress_bar = false")
        try:
            for _ in connection.sql(f"FROM read_parquet([{quote_text(path)}])").to_arrow_reader(10_000):
                pass
        except _ERRORS:
            return True
    return False


def _check_path(source: Source, path: str) -> None:
    for name in source.partitions:
        if f"{os.sep}{name}=" not in path:
            raise CallError(f"{path} says no {name}=..., by which the table {source.name!r} is partitioned")


def _partition(name: str, kind: str, paths: Sequence[str]) -> str:
    """Returns the expression for a column that stands in the path; a filter on it passes over whole files.

    It runs for each 2,048 rows, so it does no more than these paths need: 10M rows grouped by day took
    56 ms with all of it, 29 without (and 16 where DuckDB reads the path itself, which its `schema` forbids).
    """
    key = f"/{name}="
    first = ".*" if any(path.count(key) > 1 for path in paths) else ""
    value = f"regexp_extract({_PATH_COLUMN}, {quote_text(f'{first}/{re.escape(name)}=([^/]*)/')}, 1)"
    if any("%" in path for path in paths):
        value = f"url_decode({value})"
    if any(_NO_PARTITION in path for path in paths):
        value = f"nullif({value}, '{_NO_PARTITION}')"
    return f"CAST({value} AS {kind}) AS {quote_name(name)}"

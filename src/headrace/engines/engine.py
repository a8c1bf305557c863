"""An engine: something that answers SQL over the files of tables, and can do nothing else to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from headrace.base.errors import CallError
from headrace.base.urls import Url

if TYPE_CHECKING:
    import pyarrow as pa

_WIDTH = 100

Parameters = Sequence[object] | Mapping[str, object]
"""What stands for `?` or `$1` in order, or for `$name` by name."""


class SqlError(CallError):
    """SQL that the engine cannot run, or must not; the message shows the place."""


@dataclass(frozen=True)
class Source:
    """A table as an engine reads it: the immutable local Parquet files of one version."""

    name: str
    schema: pa.Schema
    """The table's columns, so that a table without files has them too, and a file that lacks one gives nulls."""
    files: Sequence[str] | Callable[[], Sequence[str]]
    """Local paths. A function is called only when a statement reads the table: it may have to fetch them."""
    partitions: tuple[str, ...] = ()
    """The columns whose value stands in the path (`received_date=2026-11-21/`) and in no file."""

    def find_files(self) -> tuple[str, ...]:
        """Returns the paths of the table's files."""
        return tuple(self.files() if callable(self.files) else self.files)


@dataclass(frozen=True)
class View:
    """A SELECT over sources and earlier views that has a name."""

    name: str
    sql: str


@dataclass(frozen=True)
class Scanned:
    """What it took to answer."""

    rows: int
    """Rows that came out of the files, after whole row groups were passed over and filters applied at the scan."""
    bytes: int
    """Bytes read from the files: of the columns and row groups that were needed, still compressed."""


class Result(Protocol):
    """The answer to one statement. Work begins when it is first asked for, and ends with `close`."""

    @property
    def schema(self) -> pa.Schema:
        """The columns of the answer."""

    @property
    def scanned(self) -> Scanned | None:
        """What it took to answer, known once the answer was read to its end."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yields the answer piece by piece, so that it may be larger than memory."""

    def table(self) -> pa.Table:
        """Returns the whole answer, or what `batches` has not yielded yet."""

    def cancel(self) -> None:
        """Stops the work, from any thread; whoever reads the answer gets a DeadlineError."""

    def close(self) -> None:
        """Stops the work and lets go of the files."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Engine(Protocol):
    """Runs SQL."""

    @classmethod
    def from_url(cls, url: Url) -> Self:
        """Returns the engine of a URL."""

    def query(
        self,
        sql: str,
        *,
        sources: Sequence[Source],
        views: Sequence[View] = (),
        parameters: Parameters = (),
        deadline_seconds: float | None = None,
    ) -> Result:
        """Returns the answer to one SELECT over `sources` and `views`, and to nothing else.

        SQL that is wrong, or that would write or read anything else, raises SqlError before any work;
        the deadline (the URL's, unless one is given) raises DeadlineError wherever the work stands, but for one call of
        a function on a long value, which ends first.
        """

    def close(self) -> None:
        """Lets go of what the engine holds."""


def quote_name(name: str) -> str:
    """Returns a name as it stands in SQL.

    >>> print(quote_name('5" disks'))
    "5"" disks"
    """
    return '"' + name.replace('"', '""') + '"'


def quote_text(text: str) -> str:
    """Returns a text as it stands in SQL.

    >>> print(quote_text("it's"))
    'it''s'
    """
    return "'" + text.replace("'", "''") + "'"


@dataclass(frozen=True)
class Place:
    """Where something stands in SQL, in bytes of its UTF-8."""

    start: int
    length: int = 1


def show_place(sql: str, place: Place) -> str:
    r"""Returns the line of `sql` that `place` is in, with carets under it.

    >>> print(show_place("SELECT 1\nFROM evnts", Place(14, 5)))
    LINE 2: FROM evnts
                 ^^^^^
    """
    encoded = sql.encode()
    before = encoded[: place.start].decode(errors="ignore")
    marked = encoded[place.start : place.start + place.length].decode(errors="ignore")
    first = before.rfind("\n") + 1
    line = sql[first:].split("\n", 1)[0]
    column = len(before) - first
    # A long line is cut around the place, so that the carets stay under it.
    cut = max(0, column - _WIDTH // 2)
    shown = "".join(c if c.isprintable() else " " for c in line[cut : cut + _WIDTH])
    head = f"LINE {before.count(chr(10)) + 1}: {'...' if cut else ''}"
    width = max(1, min(len(marked.split("\n", 1)[0]), len(shown) - (column - cut)))
    return f"{head}{shown}\n{' ' * (len(head) + column - cut)}{'^' * width}"

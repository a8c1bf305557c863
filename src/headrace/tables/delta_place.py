"""Where a table stands: every call on it has a deadline, and every failure says what is to blame."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from deltalake import DeltaTable, PostCommitHookProperties, QueryBuilder, WriterProperties
from deltalake.exceptions import CommitFailedError, TableNotFoundError

from headrace.base.errors import FencedError, FormatError, HeadraceError
from headrace.engines.engine import quote_name
from headrace.tables.deadline import within
from headrace.tables.delta_damage import brief, check_log, explain
from headrace.tables.delta_log import LOG
from headrace.tables.delta_store import Store

# The keeper alone writes checkpoints: two at once can damage one another.
HOOKS = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)
# How the rows of every commit are written, those of the keeper too.
WRITER = WriterProperties(compression="ZSTD", compression_level=1)
_READABLE_FEATURES = frozenset(("timestampNtz", "v2Checkpoint", "vacuumProtocolCheck", "appendOnly", "invariants"))

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Where a table stands, and how long one may wait for it; `root` is its folder where the store is local."""

    name: str
    uri: str
    store: Store
    deadline_seconds: float
    root: Path | None

    def call(self, what: str, action: Callable[[], T], *, times: float = 1) -> T:
        """Returns what `action` returns; its errors become ours, and say what is damaged."""
        try:
            return within(self.deadline_seconds * times, f"table {self.name!r}: {what}", action)
        except (HeadraceError, TableNotFoundError):
            raise
        except CommitFailedError as error:
            raise self._refused(error) from error
        # The library raises plain Exception for what fails below its own layers.
        except Exception as error:
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> HeadraceError:
        # Looking for the damage may hang as well.
        return within(self.deadline_seconds, f"table {self.name!r}: {brief(error)}", lambda: explain(self.store, error))

    def _refused(self, error: CommitFailedError) -> HeadraceError:
        text = brief(error)
        if "nsupported" in text:
            return FormatError(f"{self.uri}/{LOG}: the table follows a protocol that Headrace cannot write: {text}")
        return FencedError(
            f"table {self.name!r}: somebody else moved it meanwhile ({text}). Drop what is held, load the table "
            "again and go on from its positions"
        )

    def load(self, version: int | None = None) -> DeltaTable:
        """Returns the table as it stands now or stood at a version; refuses what cannot be read truly."""

        def load() -> DeltaTable:
            check_log(self.store, self.store.entries(LOG))
            return DeltaTable(self.uri, version=version)

        loaded = self.call("open", load)
        _check_protocol(self, loaded)
        return loaded

    def read(self, loaded: DeltaTable, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Yields some columns of a snapshot, each batch within the deadline."""
        batches = self.call("read", lambda: read_batches(loaded, schema))
        while (batch := self.call("read", lambda: next(batches, None))) is not None:
            yield batch


def read_batches(loaded: DeltaTable, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yields some columns of a snapshot, read by the library's own engine: Arrow's would abort the process at exit."""
    quoted = ", ".join(map(quote_name, schema.names))
    query = QueryBuilder().register("snapshot", loaded).execute(f"select {quoted} from snapshot")  # noqa: S608
    for batch in pa.RecordBatchReader.from_stream(query):
        # It hands out views where the schema says string.
        yield batch.cast(schema)


def _check_protocol(place: Place, loaded: DeltaTable) -> None:
    protocol = loaded.protocol()
    foreign = sorted(set(protocol.reader_features or ()) - _READABLE_FEATURES)
    mode = loaded.metadata().configuration.get("delta.columnMapping.mode", "none")
    if mode != "none" and "columnMapping" not in foreign:
        foreign.append("columnMapping")
    if foreign:
        raise FormatError(
            f"{place.uri}/{LOG}: the table uses {', '.join(foreign)} (protocol {protocol.min_reader_version}/"
            f"{protocol.min_writer_version}), which Headrace does not read. Rewrite it without"
        )

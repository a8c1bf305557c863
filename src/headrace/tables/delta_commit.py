"""One file of a table's log as a commit: who made it, when, and what it brought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from headrace.tables.delta_log import version_of
from headrace.tables.delta_store import Entry, Store
from headrace.tables.table import Commit

NOTE_KEY = "headrace"


def read_commit(store: Store, entry: Entry) -> Commit:
    """Returns what a file of the log says."""
    actions = [msgspec.json.decode(line) for line in store.read(entry.path).splitlines() if line.strip()]
    info: Mapping[str, Any] = next((action["commitInfo"] for action in actions if "commitInfo" in action), {})
    added = [action["add"] for action in actions if "add" in action]
    return Commit(
        version=version_of(entry) or 0,
        time_us=int(info["timestamp"]) * 1000 if "timestamp" in info else entry.time_us,
        operation=info.get("operation") or "",
        producer=info.get("engineInfo") or info.get("clientVersion") or "",
        rows=_rows(added),
        files=len(added),
        note=_note(info.get(NOTE_KEY)),
    )


def _rows(added: Sequence[Mapping[str, Any]]) -> int | None:
    total = 0
    for file in added:
        rows = msgspec.json.decode(file.get("stats") or "{}").get("numRecords")
        if rows is None:
            return None
        total += rows
    return total


def _note(text: Any) -> Mapping[str, Any]:
    try:
        found = msgspec.json.decode(text) if isinstance(text, str) else {}
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}

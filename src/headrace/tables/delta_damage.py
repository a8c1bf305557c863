"""What is wrong with a table that cannot be opened or read, told with the file that is to blame."""

from __future__ import annotations

import io
import re
from urllib.parse import quote, unquote, urlsplit

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.base.errors import FormatError, FullError, HeadraceError, UnavailableError
from headrace.tables.delta_log import LOG, checkpoints, commits, missing, version_of
from headrace.tables.delta_store import Entry, Store

_ANSI = re.compile(r"\x1b\[[0-9;]*m|\s+")


def check_log(store: Store, log: list[Entry]) -> None:
    """Raises FormatError for an empty commit, which the library takes for one that changed nothing."""
    for entry in log:
        if entry.size == 0 and not entry.is_folder and version_of(entry) is not None:
            raise FormatError(
                f"{store.uri}/{entry.path} is an empty file: what was committed with it is lost. If it is the newest "
                "of its folder, it was never acknowledged: delete it; else restore it from a copy"
            )


def explain(store: Store, error: BaseException) -> HeadraceError:
    """Returns the error to raise for one of the library's: what is damaged, or who does not answer."""
    text = brief(error)
    if "No space left" in text or "quota" in text.lower():
        return FullError(f"{store.uri}: {text}")
    if "nsupported" in text:
        return FormatError(f"{store.uri}/{LOG}: the table follows a protocol that Headrace cannot read: {text}")
    try:
        found = _file_in(store, text) or _damage_of(store, store.entries(LOG))
    except OSError as unreachable:
        return UnavailableError(f"{store.uri}: {brief(unreachable)}")
    # With a far store it is more often the road than the bytes, and trying again harms nothing.
    is_outside = isinstance(error, OSError) or "://" in store.uri or "Permission denied" in text
    return found or (UnavailableError if is_outside else FormatError)(f"{store.uri}: {text}")


def brief(error: BaseException) -> str:
    """Returns what an error says, on one line and without colours.

    >>> brief(ValueError("a  b" + chr(10) + "   0: <unknown>"))
    'a b'
    """
    return _ANSI.sub(" ", str(error).split("\n   0: ")[0]).strip()[:600]


def _file_in(store: Store, text: str) -> FormatError | None:
    root = unquote(urlsplit(store.uri).path).strip("/") + "/"
    match = re.search(f"(?:{re.escape(root)}|{re.escape(quote(root))})(.+?\\.parquet)", text)
    if match is None or match[1].startswith(LOG):
        return None
    reason = _why_unreadable(store, match[1])
    return FormatError(f"{store.uri}/{match[1]} {reason}") if reason else None


def _why_unreadable(store: Store, path: str) -> str:
    if store.size(path) is None:
        return "is missing, though the table's log lists it: was a version read that vacuum no longer keeps?"
    reason = bad_parquet(store.read(path))
    return f"is damaged: {reason}" if reason else ""


def _damage_of(store: Store, log: list[Entry]) -> FormatError | None:
    standing = checkpoints(log)
    newest = max([*commits(log), *standing], default=-1)
    name = missing(log, newest)
    if name and not standing and any(entry.name == "_last_checkpoint" for entry in log):
        return FormatError(f"{store.uri}/{LOG}: _last_checkpoint names a checkpoint, and its file is missing")
    if name:
        return FormatError(f"{store.uri}/{LOG}/{name} is missing, though later commits stand")
    for entry in log:
        if reason := _unreadable(store, entry, max(standing, default=-1)):
            return FormatError(f"{store.uri}/{entry.path} is damaged: {reason}")
    return None


def _unreadable(store: Store, entry: Entry, checkpoint: int) -> str:
    version = version_of(entry)
    if version is not None and version > checkpoint:
        return _bad_json(store.read(entry.path))
    if checkpoints([entry]) == [checkpoint]:
        return bad_parquet(store.read(entry.path))
    return ""


def _bad_json(data: bytes) -> str:
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            if line.strip():
                msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return f"line {number}: {error}"
    return "" if data.strip() else "it is empty"


def bad_parquet(data: bytes) -> str:
    """Returns why bytes are no Parquet file, or nothing."""
    try:
        pq.ParquetFile(io.BytesIO(data)).metadata  # noqa: B018 - opening reads the footer
    except (pa.ArrowException, OSError) as error:
        return brief(error)
    return ""

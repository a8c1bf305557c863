"""What the Delta library leaves undone in a local folder: files reach the disk, and torn ones leave it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote

import msgspec

from headrace.tables.delta_log import LOG


def sync(root: Path, versions: Iterable[int]) -> None:
    """Returns once the commits of these versions, and the files they added, would survive a power cut.

    The rows go before the commit that names them, so that no commit stands without its rows.
    """
    logs = [root / LOG / f"{version:020d}.json" for version in versions]
    files = {root / path for log in logs for path in _added(log)}
    for path in [*files, *{file.parent for file in files}, *logs, root / LOG]:
        _sync(path)


def _added(log: Path) -> Iterator[str]:
    for line in log.read_bytes().splitlines():
        # Most lines are not worth decoding.
        if line.startswith(b'{"add"'):
            yield unquote(msgspec.json.decode(line)["add"]["path"])


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        # Compaction and vacuum may have taken it meanwhile.
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def drop_torn(root: Path, *, before_us: int) -> list[str]:
    """Returns the deleted files that writers died over; the library's own listing does not show them."""
    gone = []
    for path in root.rglob("*#[0-9]*"):
        if path.is_file() and path.stat().st_mtime_ns < before_us * 1000:
            path.unlink(missing_ok=True)
            gone.append(str(path.relative_to(root)))
    return gone

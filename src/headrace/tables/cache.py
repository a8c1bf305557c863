"""Copies of far files on this machine's disk: bounded, immutable, shared by any number of processes."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace.base.errors import FullError

# A copy that somebody asked for so lately may be about to be opened, perhaps by another process.
_BUSY_SECONDS = 600.0


@dataclass(frozen=True)
class Wanted:
    """A file to have here: its path below the cache, its size, and how to write a copy of it."""

    path: str
    size: int
    copy: Callable[[str], None]


class Cache:
    """Keeps copies under a folder, and drops the longest unused ones beyond a number of bytes.

    Copies that were asked for within the last ten minutes stay, so a single large scan may go beyond the bound.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def fetch(self, wanted: Sequence[Wanted]) -> list[str]:
        """Returns the paths of the copies, made where they are missing."""
        paths = [self._fetch(one) for one in wanted]
        self._shrink()
        return paths

    def _fetch(self, one: Wanted) -> str:
        target = self._folder / one.path
        if _is_there(target, one.size):
            return str(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{os.getpid()}.{time.monotonic_ns()}.part")
        try:
            one.copy(str(part))
            part.replace(target)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise FullError(f"no room for a copy of {one.path} below {self._folder}") from error
            raise
        finally:
            part.unlink(missing_ok=True)
        return str(target)

    def _shrink(self) -> None:
        found = [(path, known) for path in self._folder.rglob("*") if (known := _stat(path)) is not None]
        total = sum(known.st_size for _, known in found)
        newest = time.time() - _BUSY_SECONDS
        for path, known in sorted(found, key=lambda item: item[1].st_mtime):
            if total <= self._max_bytes or known.st_mtime > newest:
                return
            path.unlink(missing_ok=True)
            total -= known.st_size


def _is_there(target: Path, size: int) -> bool:
    """Says whether a copy of that size stands, and marks it as asked for."""
    found = _stat(target)
    if found is None or found.st_size != size:
        return False
    try:
        os.utime(target)
    except FileNotFoundError:
        # Another process has dropped it since.
        return False
    return True


def _stat(path: Path) -> os.stat_result | None:
    """Returns what is known of a file; None for a folder, and for what another process has just renamed or dropped."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None

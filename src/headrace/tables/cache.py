"""Copies of far files on this machine's disk: bounded, immutable, shared by any number of processes."""

from __future__ import annotations

import os
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
        if _size(target) == one.size:
            os.utime(target)
            return str(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{os.getpid()}.{time.monotonic_ns()}.part")
        try:
            one.copy(str(part))
            part.replace(target)
        except OSError as error:
            if error.errno == 28:
                raise FullError(f"no room for a copy of {one.path} below {self._folder}") from error
            raise
        finally:
            part.unlink(missing_ok=True)
        return str(target)

    def _shrink(self) -> None:
        found = [(path, path.stat()) for path in self._folder.rglob("*") if path.is_file()]
        total = sum(stat.st_size for _, stat in found)
        newest = time.time() - _BUSY_SECONDS
        for path, stat in sorted(found, key=lambda item: item[1].st_mtime):
            if total <= self._max_bytes or stat.st_mtime > newest:
                return
            path.unlink(missing_ok=True)
            total -= stat.st_size


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1

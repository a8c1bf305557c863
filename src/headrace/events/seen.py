"""Which ids stand as settled or failed: an index on disk that takes bounded memory at any number of ids.

The newest entries stand in a dict. Once they are 32k they become a run: a file of sorted entries that is never changed,
with a bloom filter in memory. Eight runs of a kind are merged into one, up to runs of 2M ids, which are dropped whole
when they are too old. At 100M ids the filters take 200 MB.

Files follow a transaction of the caller: `save` writes new files and returns a manifest, the caller stores it together
with its other state, then calls `saved`, which deletes what no manifest names any more. Whoever opens the index gives
the manifest that was stored, and finds exactly the entries that stood when it was made, whatever happened since.

    run:      entries (16 bytes of key, 8 of value), filter, first h0 of each block, CRC-32 of each block
    journal:  entries, in the order of their coming, between a save and the next run
"""

from __future__ import annotations

import errno
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.base.errors import FormatError, FullError

SPILL: Final = 1 << 15
"""How many entries stand in the dict before they become a run."""

_VERSION = 1
_FAN = 8
_TOP_LEVEL = 2
# Fewer entries than this go into the manifest: in a quiet hour a save then writes and syncs no file.
_INLINE = 1024
_SLICE = 1 << 16

_ENTRY_BYTES = 24
_KEY_BYTES = 16
# Smaller blocks need a larger index: this one takes 9 MB at 100M ids. Reading and checking 3 kB takes 3 us.
_BLOCK = 128
_BLOCK_BYTES = _BLOCK * _ENTRY_BYTES

_Words = NDArray[np.uint64]
_Entries = NDArray[np.uint64]
"""Rows of three: the halves h0 and h1 of a key, the value."""

# The bits that twelve bits of a hash stand for. Shifting ones for each pair instead takes three times as long.
_PAIRS: Final[_Words] = np.array([1 << pair % 64 | 1 << pair // 64 for pair in range(1 << 12)], "<u8")


class _RunRow(msgspec.Struct, array_like=True, frozen=True):
    name: str
    level: int
    count: int
    newest: int
    words: int
    check: int


class _JournalRow(msgspec.Struct, array_like=True, frozen=True):
    name: str
    count: int
    check: int


class _Manifest(msgspec.Struct, array_like=True, frozen=True):
    version: int
    runs: list[_RunRow]
    journal: _JournalRow | None
    fresh: bytes


_manifests = msgspec.msgpack.Decoder(_Manifest)


@dataclass(slots=True, eq=False)
class _Run:
    """A file of sorted entries, and what of it stays in memory."""

    path: Path
    row: _RunRow
    file: int
    words: _Words
    firsts: _Words
    checks: NDArray[np.uint32]
    synced: bool = False


@dataclass(slots=True, eq=False)
class _Journal:
    path: Path
    file: int
    count: int = 0
    check: int = 0

    def row(self) -> _JournalRow:
        return _JournalRow(self.path.name, self.count, self.check)


class Seen:
    """The ids of one partition with their newest values, for one thread. Keys are hashes of 16 bytes, values < 2**63.

    An OSError other than FullError leaves files behind of which nobody knows what is on disk: open the index again,
    from the manifest that was stored last.
    """

    def __init__(self, folder: Path, *, spill: int = SPILL) -> None:
        self._folder = folder
        self._spill = spill
        self._number = max((int(path.stem) for path in _list_files(folder)), default=0)
        self._recent: dict[bytes, int] = {}
        self._fresh: dict[bytes, int] = {}
        self._journal: _Journal | None = None
        self._sealed: list[_Run] = []
        self._small: list[_Run] = []
        self._active = self._make_active()
        self._retired: list[Path] = []
        self._num_leaving = 0
        self._created = False

    @classmethod
    def open(cls, folder: Path, manifest: bytes = b"", *, spill: int = SPILL) -> Seen:
        """Returns the index as it stood when `save` returned that manifest; without one, an empty index.

        Files that the manifest does not name are deleted. Raises FormatError for a file that is missing or damaged:
        then open an empty index and fill it again.
        """
        folder.mkdir(parents=True, exist_ok=True)
        wanted = _read_manifest(folder, manifest)
        named = {row.name for row in wanted.runs}
        seen = cls(folder, spill=spill)
        with ExitStack() as failed:
            for row in wanted.runs:
                run = _open_run(folder / row.name, row)
                failed.callback(os.close, run.file)
                (seen._sealed if row.level == _TOP_LEVEL else seen._small).append(run)
            if wanted.journal is not None:
                named.add(wanted.journal.name)
                seen._recent = _read_journal(folder / wanted.journal.name, wanted.journal)
                # Never appended to by another process than its maker, who may be frozen rather than dead.
                seen._retired.append(folder / wanted.journal.name)
            seen._active = seen._make_active()
            failed.pop_all()
        seen._recent.update(_unpack(wanted.fresh))
        seen._fresh = dict(seen._recent)
        for path in _list_files(folder):
            if path.name not in named:
                path.unlink(missing_ok=True)
        return seen

    def __len__(self) -> int:
        """The number of entries; an id that was added again may count as often."""
        return len(self._recent) + sum(run.row.count for run in self._runs())

    def find(self, keys: Sequence[bytes]) -> dict[bytes, int]:
        """Returns the newest value of each key that is there."""
        recent = self._recent
        found = {key: recent[key] for key in recent.keys() & keys}
        if len(found) == len(keys) or not (self._small or self._sealed):
            return found
        hashes = np.frombuffer(b"".join(keys), "<u8").reshape(-1, 2)
        h0, bits = hashes[:, 0].copy(), _bits(hashes[:, 1])
        maybe = _test(self._active, h0, bits)
        if maybe.size:
            some = [keys[index] for index in maybe.tolist()]
            _search(self._small, some, (h0[maybe], bits[maybe]), found)
        _search(self._sealed, keys, (h0, bits), found)
        return found

    def add(self, entries: Mapping[bytes, int]) -> None:
        """Takes entries in; what is added later counts. Raises FullError on a full disk: then add the same again."""
        if len(entries) > self._spill:
            rest = iter(entries.items())
            while part := dict(islice(rest, self._spill)):
                self.add(part)
            return
        self._recent.update(entries)
        self._fresh.update(entries)
        if len(self._recent) >= self._spill:
            self._make_run()

    def save(self) -> bytes:
        """Returns the manifest of all that was added, which is on disk by then unless the manifest itself holds it.

        It has 25 kB at most, and 60 bytes for each run. Store it, then call `saved`. Raises FullError on a full disk:
        then save again.
        """
        if len(self._fresh) > _INLINE:
            self._write_journal()
        for run in self._runs():
            if not run.synced:
                os.fsync(run.file)
                run.synced = True
        if self._created:
            _sync_folder(self._folder)
            self._created = False
        self._num_leaving = len(self._retired)
        journal = self._journal.row() if self._journal else None
        rows = [run.row for run in self._runs()]
        return msgspec.msgpack.encode(_Manifest(_VERSION, rows, journal, _pack(self._fresh).tobytes()))

    def saved(self) -> None:
        """Deletes the files that the last manifest does not name; call it once that is stored for good."""
        for path in self._retired[: self._num_leaving]:
            path.unlink(missing_ok=True)
        del self._retired[: self._num_leaving]
        self._num_leaving = 0

    def forget(self, before: int) -> None:
        """Drops the oldest runs whose values are all less than `before`; much that is as old stays.

        A newer run never goes before an older one, which may hold an older value of the same key.
        """
        while (runs := self._sealed or self._small) and runs[0].row.newest < before:
            self._retire(runs.pop(0))

    def clear(self) -> None:
        """Drops every entry."""
        for run in self._runs():
            self._retire(run)
        self._sealed, self._small = [], []
        self._active = self._make_active()
        self._drop_recent()

    def close(self) -> None:
        """Lets go of the files; what was not saved is lost."""
        held = [run.file for run in self._runs()] + ([self._journal.file] if self._journal else [])
        self._sealed, self._small, self._journal = [], [], None
        for file in held:
            os.close(file)

    def _runs(self) -> list[_Run]:
        """Returns all runs, the oldest first."""
        return self._sealed + self._small

    def _make_run(self) -> None:
        entries = _newest(_pack(self._recent))
        self._small.append(self._write_run(0, [entries], _make_filter(8 * len(entries))))
        _fill(self._active, entries)
        self._drop_recent()
        for level in range(_TOP_LEVEL):
            # The oldest: a full disk may have left more than eight.
            parts = [run for run in self._small if run.row.level == level][:_FAN]
            if len(parts) == _FAN:
                self._merge(level + 1, parts)

    def _merge(self, level: int, parts: list[_Run]) -> None:
        start = self._small.index(parts[0])
        if level < _TOP_LEVEL:
            words = _make_filter(8 * sum(run.row.count for run in parts))
            self._small[start : start + _FAN] = [self._write_run(level, _merge_slices(parts), words)]
        else:
            self._sealed.append(self._write_run(level, _merge_slices(parts), self._active))
            del self._small[start : start + _FAN]
            self._active = self._make_active()
        for run in parts:
            self._retire(run)

    def _make_active(self) -> _Words:
        """Returns one filter for all small runs: without it an id that is new costs a test for each of fourteen."""
        words = _make_filter(16 * self._spill * _FAN**_TOP_LEVEL)
        for run in self._small:
            _fill(words, _read_rows(run, 0, run.row.count))
        return words

    def _drop_recent(self) -> None:
        if self._journal is not None:
            self._retire(self._journal)
            self._journal = None
        self._recent, self._fresh = {}, {}

    def _retire(self, held: _Run | _Journal) -> None:
        os.close(held.file)
        self._retired.append(held.path)

    def _write_run(self, level: int, slices: Iterable[_Entries], words: _Words) -> _Run:
        path, file = self._create("run")
        with ExitStack() as failed:
            failed.callback(path.unlink)
            failed.callback(os.close, file)
            try:
                run = _write_run(path, file, level=level, slices=slices, words=words)
            except OSError as error:
                raise _full(error, path) from error
            failed.pop_all()
        return run

    def _write_journal(self) -> None:
        journal = self._journal
        if journal is not None and journal.count > 2 * self._spill:
            # The same keys came again and again.
            self._retire(journal)
            journal, self._fresh = None, dict(self._recent)
        if journal is None:
            journal = self._journal = _Journal(*self._create("journal"))
        data = _pack(self._fresh).tobytes()
        try:
            written = os.pwrite(journal.file, data, journal.count * _ENTRY_BYTES)
        except OSError as error:
            raise _full(error, journal.path) from error
        if written < len(data):
            raise FullError(f"{journal.path}: the disk took {written} of {len(data)} bytes")
        os.fsync(journal.file)
        journal.count += len(self._fresh)
        journal.check = zlib.crc32(data, journal.check)
        self._fresh = {}

    def _create(self, kind: str) -> tuple[Path, int]:
        """Makes a file that nobody has, a frozen predecessor neither."""
        while True:
            self._number += 1
            path = self._folder / f"{self._number:08}.{kind}"
            with suppress(FileExistsError):
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
                self._created = True
                return path, file


def _write_run(path: Path, file: int, *, level: int, slices: Iterable[_Entries], words: _Words) -> _Run:
    """Writes sorted entries to a file, and the filter that it fills with them."""
    firsts, checks, count, newest = [], [], 0, 0
    with os.fdopen(file, "wb", closefd=False) as output:
        for piece in _cut_blocks(slices):
            data = piece.tobytes()
            output.write(data)
            starts = range(0, len(data), _BLOCK_BYTES)
            checks += [zlib.crc32(data[start : start + _BLOCK_BYTES]) for start in starts]
            firsts.append(piece[::_BLOCK, 0].copy())
            _fill(words, piece)
            count += len(piece)
            newest = max(newest, int(piece[:, 2].max()))
        index = (np.concatenate(firsts), np.array(checks, "<u4"))
        tail = b"".join(part.tobytes() for part in (words, *index))
        output.write(tail)
    return _Run(path, _RunRow(path.name, level, count, newest, words.size, zlib.crc32(tail)), file, words, *index)


def _cut_blocks(slices: Iterable[_Entries]) -> Iterator[_Entries]:
    """Yields the same entries in pieces of whole blocks, the last one excepted."""
    rest = np.empty((0, 3), "<u8")
    for piece in slices:
        rest = np.concatenate((rest, piece))
        whole = len(rest) - len(rest) % _BLOCK
        if whole:
            yield rest[:whole]
            rest = rest[whole:]
    if len(rest):
        yield rest


def _merge_slices(runs: Sequence[_Run]) -> Iterator[_Entries]:
    """Yields the entries of runs, oldest first, in sorted slices: each key once, with its newest value."""
    num_slices = sum(run.row.count for run in runs) // _SLICE + 1
    starts = [0] * len(runs)
    for number in range(1, num_slices + 1):
        stops = [run.row.count for run in runs]
        if number < num_slices:
            stops = [_find_row(run, (number << 64) // num_slices) for run in runs]
        rows = [_read_rows(*place) for place in zip(runs, starts, stops, strict=True)]
        yield _newest(np.concatenate(rows[::-1]))
        starts = stops


def _newest(entries: _Entries) -> _Entries:
    """Returns entries in the order of h0; of those with the same key the one that came first stands alone or first."""
    entries = entries[np.argsort(entries[:, 0], kind="stable")]
    again = entries[1:, 0] == entries[:-1, 0]
    if not again.any():
        return entries
    again &= entries[1:, 1] == entries[:-1, 1]
    return entries[np.concatenate(([True], ~again))]


def _make_filter(num_bits: int) -> _Words:
    return np.zeros(1 << round(math.log2(max(num_bits, 128) / 64)), "<u8")


def _fill(words: _Words, entries: _Entries) -> None:
    np.bitwise_or.at(words, _places(entries[:, 0], words), _bits(entries[:, 1]))


def _test(words: _Words, h0: _Words, bits: _Words) -> NDArray[np.int64]:
    """Returns the indexes of the keys that may be there."""
    return np.flatnonzero((words[_places(h0, words)] & bits) == bits)


def _places(h0: _Words, words: _Words) -> NDArray[np.int64]:
    # The highest bits: then a sorted run fills its filter from the one end to the other.
    return (h0 >> np.uint64(65 - words.size.bit_length())).view(np.int64)


def _bits(h1: _Words) -> _Words:
    """Returns the bits that a key sets in its word: six, which 0.4 % of the keys that are not there find set."""
    pairs = [_PAIRS[(h1 >> np.uint64(shift) & np.uint64(0xFFF)).view(np.int64)] for shift in (0, 12, 24)]
    return pairs[0] | pairs[1] | pairs[2]


def _search(
    runs: Sequence[_Run], keys: Sequence[bytes], hashes: tuple[_Words, _Words], found: dict[bytes, int]
) -> None:
    """Adds to `found` the values of those keys that are not in it yet, from the newest run to the oldest."""
    for run in reversed(runs):
        for index in _test(run.words, *hashes).tolist():
            key = keys[index]
            if key not in found:
                value = _look(run, key, hashes[0][index])
                if value is not None:
                    found[key] = value


def _look(run: _Run, key: bytes, h0: np.uint64) -> int | None:
    """Returns the value of a key in a run."""
    block = max(int(run.firsts.searchsorted(h0)) - 1, 0)
    while True:
        data = _read_blocks(run, block, block + 1)
        at = data.find(key)
        while at % _ENTRY_BYTES and at > 0:
            at = data.find(key, at + 1)
        if at >= 0:
            return int.from_bytes(data[at + _KEY_BYTES : at + _ENTRY_BYTES], "little")
        block += 1
        if block == run.firsts.size or run.firsts[block] > h0:
            return None


def _find_row(run: _Run, bound: int) -> int:
    """Returns the first row whose h0 is at least that."""
    h0 = np.uint64(bound)
    block = max(int(run.firsts.searchsorted(h0)) - 1, 0)
    return block * _BLOCK + int(_rows(_read_blocks(run, block, block + 1))[:, 0].searchsorted(h0))


def _read_rows(run: _Run, start: int, stop: int) -> _Entries:
    first, last = start // _BLOCK, -(-stop // _BLOCK)
    entries = _rows(_read_blocks(run, first, last))
    return entries[start - first * _BLOCK : stop - first * _BLOCK]


def _read_blocks(run: _Run, first: int, last: int) -> bytes:
    stop = min(last * _BLOCK, run.row.count)
    data = os.pread(run.file, (stop - first * _BLOCK) * _ENTRY_BYTES, first * _BLOCK_BYTES)
    for block in range(first, last):
        start = (block - first) * _BLOCK_BYTES
        if zlib.crc32(data[start : start + _BLOCK_BYTES]) != run.checks[block]:
            raise _damaged(run.path, f"entries {block * _BLOCK} to {(block + 1) * _BLOCK} are not those written")
    return data


def _open_run(path: Path, row: _RunRow) -> _Run:
    num_blocks = -(-row.count // _BLOCK)
    entries, filled, indexed = row.count * _ENTRY_BYTES, row.words * 8, num_blocks * 8
    with ExitStack() as failed:
        file = _open(path)
        failed.callback(os.close, file)
        size, expected = os.fstat(file).st_size, entries + filled + indexed + num_blocks * 4
        if size != expected:
            raise _damaged(path, f"it has {size} bytes instead of {expected}")
        tail = os.pread(file, expected - entries, entries)
        if zlib.crc32(tail) != row.check:
            raise _damaged(path, "its filter or index is not the one written")
        failed.pop_all()
    words = np.frombuffer(tail, "<u8", row.words)
    firsts = np.frombuffer(tail, "<u8", num_blocks, filled)
    return _Run(path, row, file, words, firsts, np.frombuffer(tail, "<u4", num_blocks, filled + indexed), synced=True)


def _read_journal(path: Path, row: _JournalRow) -> dict[bytes, int]:
    file = _open(path)
    try:
        data = os.pread(file, row.count * _ENTRY_BYTES, 0)
    finally:
        os.close(file)
    if zlib.crc32(data) != row.check:
        raise _damaged(path, f"its first {row.count} entries are not those written")
    return _unpack(data)


def _read_manifest(folder: Path, manifest: bytes) -> _Manifest:
    if not manifest:
        return _Manifest(_VERSION, [], None, b"")
    try:
        wanted = _manifests.decode(manifest)
    except msgspec.DecodeError as error:
        raise _damaged(folder, f"its manifest is {manifest[:40]!r}: {error}") from error
    if wanted.version != _VERSION:
        raise _damaged(folder, f"version {wanted.version}, this Headrace reads version {_VERSION}")
    return wanted


def _pack(entries: Mapping[bytes, int]) -> _Entries:
    packed = np.empty((len(entries), 3), "<u8")
    packed[:, :2] = np.frombuffer(b"".join(entries), "<u8").reshape(-1, 2)
    packed[:, 2] = np.fromiter(entries.values(), "<u8", len(entries))
    return packed


def _rows(data: bytes) -> _Entries:
    return np.frombuffer(data, "<u8").reshape(-1, 3)


def _unpack(data: bytes) -> dict[bytes, int]:
    keys = (data[start : start + _KEY_BYTES] for start in range(0, len(data), _ENTRY_BYTES))
    return dict(zip(keys, _rows(data)[:, 2].tolist(), strict=True))


def _list_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.stem.isdecimal() and path.suffix in (".run", ".journal")]


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError as error:
        raise _damaged(path, "it is missing") from error


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _full(error: OSError, path: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FullError(f"{path}: the disk is full ({error})")
    return error


def _damaged(path: Path, found: str) -> FormatError:
    return FormatError(f"{path}: {found}; an index of seen ids is made anew from the topics that it was made from")

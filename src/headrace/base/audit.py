"""Who changed what: a file that is only added to, each line of which carries the hash of the line before.

An edited, removed, exchanged or inserted line breaks the chain, and a file beside it notes the newest hash, so that
lines missing at the end are found too. Whoever may write both can make both anew: only a hash noted elsewhere tells.
Lines from before there was a chain stay where they are; its first line notes their hash, and holds them from then on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from headrace.base.clock import machine_us
from headrace.base.errors import FullError, HeadraceError, OutsideError, UnavailableError

FILE = "audit.jsonl"
HEAD = "audit.head"
BEGUN, DONE, HEALED, CHAINED = "begun", "done", "audit healed", "audit chained"

_TAIL_BYTES = 1 << 18
_MAX_TEXT = 500
_MAX_GIVEN = 40
_MAX_DAMAGES = 20


@dataclass(frozen=True)
class Act:
    """What somebody is about to change."""

    who: str
    level: str
    what: str
    subject: str = ""
    given: Mapping[str, str] = field(default_factory=dict)
    address: str = ""


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the file; `hash` is that of all the others, `previous` that of the line before."""

    seq: int
    at_us: int
    who: str
    level: str
    address: str
    what: str
    subject: str
    given: dict[str, str]
    outcome: str
    previous: str
    hash: str = ""


class _Unchained(msgspec.Struct, frozen=True):
    """What every line had before lines were chained, beside what it told."""

    at: str
    action: str
    by: str


class _Head(msgspec.Struct, frozen=True):
    seq: int = 0
    hash: str = ""


@dataclass(frozen=True)
class Checked:
    """What a look at the whole file found."""

    num_lines: int
    head: str
    """The hash of the last line: noted elsewhere, it proves everything up to it."""
    damages: tuple[str, ...] = ()
    torn_bytes: int = 0
    """What a death in the middle of a line left at the end; whatever it was to tell was not begun."""
    num_unchained: int = 0
    """How many of the lines were written before lines were chained."""

    @property
    def is_whole(self) -> bool:
        """Whether all lines stand as they were written."""
        return not self.damages


@dataclass
class Outcome:
    """What became of an act; its text may be changed until the act is over."""

    text: str = DONE


@contextlib.contextmanager
def audited(folder: Path, act: Act, *, now_us: Callable[[], int] = machine_us) -> Iterator[Outcome]:
    """Writes down that an act begins, and at the end what became of it; a death in between leaves the first line.

    What cannot be written down is not begun.
    """
    try:
        seq = write_line(folder, act, BEGUN, at_us=now_us())
    except OutsideError as error:
        raise type(error)(f"{error}; so {act.what!r} was not begun") from error
    outcome = Outcome()
    after = Act(act.who, act.level, act.what, act.subject, {"begun": str(seq)}, act.address)
    try:
        yield outcome
    except BaseException as error:  # whatever ends an act, Ctrl-C too, stands in the log
        reason = f": {error}" if isinstance(error, HeadraceError) else ""
        with contextlib.suppress(OutsideError):
            write_line(folder, after, f"{type(error).__name__}{reason}", at_us=now_us())
        raise
    try:
        write_line(folder, after, outcome.text, at_us=now_us())
    except OutsideError as error:
        raise type(error)(f"{error}; {act.what!r} is {outcome.text} all the same") from error


def write_line(folder: Path, act: Act, outcome: str, *, at_us: int) -> int:
    """Returns the number of a new line, which is on disk."""
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _opened(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, fcntl.LOCK_EX) as descriptor:
            return _append(descriptor, path, act, outcome, at_us=at_us)
    except OSError as error:
        kind = FullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else UnavailableError
        raise kind(f"the audit log {str(path)!r} cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def _opened(path: Path, flags: int, lock: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, lock)
        yield descriptor
    finally:
        os.close(descriptor)


def _append(descriptor: int, path: Path, act: Act, outcome: str, *, at_us: int) -> int:
    last, torn = _read_end(descriptor)
    head = after = _note_unless_noted(path, last, _read_head(path) or _Head())
    given = {} if head.seq or last is not None else _read_unchained(path)
    if torn:
        _write(descriptor, b"\n")
        after = _note_unless_noted(path, _parse(torn), head)
        if after != head:
            given = {}
        elif head.seq == (last.seq if last is not None else 0):
            # Of a line that was noted something was cut off: that is no accident, and is not healed.
            given["torn"] = hashlib.sha256(torn).hexdigest()
    if given:
        mended = Act(act.who, act.level, CHAINED if "lines" in given else HEALED, FILE, given, act.address)
        after = _note(path, _write_act(descriptor, after, mended, DONE, at_us=at_us))
    return _note(path, _write_act(descriptor, after, act, outcome, at_us=at_us)).seq


def _note_unless_noted(path: Path, line: Line | None, head: _Head) -> _Head:
    """Returns the newest hash, which is that of a line whose writer died before it could note it."""
    follows = line is not None and (line.seq, line.previous) == (head.seq + 1, head.hash) and _hash(line) == line.hash
    return _note(path, line) if line is not None and follows else head


def _write_act(descriptor: int, head: _Head, act: Act, outcome: str, *, at_us: int) -> Line:
    line = Line(
        seq=head.seq + 1,
        at_us=at_us,
        who=_text(act.who),
        level=_text(act.level),
        address=_text(act.address),
        what=_text(act.what),
        subject=_text(act.subject),
        given={_text(name): _text(value) for name, value in list(act.given.items())[:_MAX_GIVEN]},
        outcome=_text(outcome),
        previous=head.hash,
    )
    line = msgspec.structs.replace(line, hash=_hash(line))
    _write(descriptor, msgspec.json.encode(line) + b"\n")
    os.fsync(descriptor)
    return line


def _write(descriptor: int, data: bytes) -> None:
    if os.write(descriptor, data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _text(value: str) -> str:
    short = value if len(value) <= _MAX_TEXT else value[: _MAX_TEXT - 1] + "…"
    return short.encode("utf-8", "replace").decode()


def _hash(line: Line) -> str:
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(line, hash=""))).hexdigest()


def _read_end(descriptor: int) -> tuple[Line | None, bytes]:
    """Returns the last whole line, None if there is none that can be read, and what stands behind it."""
    size = os.fstat(descriptor).st_size
    data = os.pread(descriptor, _TAIL_BYTES, max(size - _TAIL_BYTES, 0))
    whole, newline, torn = data.rpartition(b"\n")
    return (_parse(whole.rpartition(b"\n")[2]) if newline else None), torn


def _parse(data: bytes) -> Line | None:
    """Returns a line, or None for bytes that no line of ours has: only one way to write it is taken."""
    try:
        line = msgspec.json.decode(data, type=Line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return line if msgspec.json.encode(line) == data else None


def _read_unchained(path: Path) -> dict[str, str]:
    """Returns number and hash of the lines of a log from before lines were chained; nothing for any other log."""
    digest, count = hashlib.sha256(), 0
    with path.open("rb") as file:
        for data in file:
            if not data.endswith(b"\n"):
                break
            if not _is_unchained(data):
                return {}
            digest.update(data)
            count += 1
    return {"lines": str(count), "sha256": digest.hexdigest()} if count else {}


def _is_unchained(data: bytes) -> bool:
    try:
        msgspec.json.decode(data, type=_Unchained)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return data.endswith(b"\n")


def _read_head(path: Path) -> _Head | None:
    try:
        return msgspec.json.decode(path.with_name(HEAD).read_bytes(), type=_Head)
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _note(path: Path, line: Line) -> _Head:
    """Returns the newest hash, which is noted on disk beside the file."""
    head = _Head(line.seq, line.hash)
    fresh = path.with_name(f"{HEAD}.new")
    with _opened(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, fcntl.LOCK_EX) as descriptor:
        _write(descriptor, msgspec.json.encode(head))
        os.fsync(descriptor)
    fresh.replace(path.with_name(HEAD))
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return head


def check_audit(folder: Path) -> Checked:
    """Returns whether every line stands as it was written, and else where it does not."""
    path = folder / FILE
    try:
        with _opened(path, os.O_RDONLY, fcntl.LOCK_SH) as descriptor:
            head = _read_head(path)
            found = _Walk()
            with os.fdopen(os.dup(descriptor), "rb") as file:
                for data in file:
                    found.take(data)
    except FileNotFoundError:
        head = _read_head(path)
        found = _Walk()
    except OSError as error:
        raise UnavailableError(f"the audit log {str(path)!r} cannot be read: {error.strerror}") from error
    return found.end(head, is_noted=path.with_name(HEAD).exists())


class _Walk:
    """A walk along the chain."""

    def __init__(self) -> None:
        self._last = _Head()
        self._before = _Head()
        self._damages: list[str] = []
        self._number = 0
        self._torn = b""
        self._torn_number = 0
        self._unchained = 0
        self._digest = hashlib.sha256()

    def take(self, data: bytes) -> None:
        """Looks at the next line of the file."""
        self._number += 1
        if self._unchained == self._number - 1 and _is_unchained(data):
            self._unchained += 1
            self._digest.update(data)
            return
        line = _parse(data.removesuffix(b"\n"))
        if self._torn and not (line is not None and self._heals(line)):
            self._damages.append(f"line {self._torn_number} is none that was written")
        self._torn = b""
        if line is None or not data.endswith(b"\n"):
            self._torn, self._torn_number = data, self._number
            return
        if _hash(line) != line.hash:
            self._damages.append(f"line {self._number}, the act {line.seq}, was changed")
        if (line.seq, line.previous) != (self._last.seq + 1, self._last.hash):
            after = f"the act {self._last.seq}" if self._last.seq else "the beginning"
            self._damages.append(f"line {self._number}, the act {line.seq}, does not follow {after}")
        if line.what == CHAINED or (self._unchained and not self._last.seq):
            self._check_unchained(line)
        self._before, self._last = self._last, _Head(line.seq, line.hash)

    def _check_unchained(self, line: Line) -> None:
        held = {"lines": str(self._unchained), "sha256": self._digest.hexdigest()}
        if line.what != CHAINED or line.given | held != line.given or self._last.seq:
            self._damages.append(f"what stands before line {self._number} is not what the chain began with")

    def _heals(self, line: Line) -> bool:
        torn = hashlib.sha256(self._torn.removesuffix(b"\n")).hexdigest()
        return line.what in (HEALED, CHAINED) and line.given.get("torn") == torn

    def end(self, head: _Head | None, *, is_noted: bool) -> Checked:
        """Returns what was found, given the newest hash that was noted beside the file."""
        torn = 0 if self._torn.endswith(b"\n") else len(self._torn)
        if self._torn and not torn:
            self._damages.append(f"line {self._torn_number} is none that was written")
        if head is None and is_noted:
            self._damages.append(f"{HEAD} cannot be read")
        noted = head or _Head()
        if noted.seq > self._last.seq:
            self._damages.append(f"the end is missing: {HEAD} knows {noted.seq} acts, the log {self._last.seq}")
        elif noted not in (self._last, self._before):
            self._damages.append(f"{HEAD} notes another act {noted.seq} than the log, which goes to {self._last.seq}")
        damages = tuple(self._damages[:_MAX_DAMAGES])
        return Checked(self._number - bool(torn), self._last.hash, damages, torn, self._unchained)

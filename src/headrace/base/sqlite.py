"""SQLite files shared by several processes: open, migrate, and hand over to the one writer.

Several processes that write one file starve each other (two writers: median 3.1 s). So whoever
holds the lock beside the file is its writer; everybody else sends it frames over a socket. There
is no standby: a link whose writer is gone tries the lock itself, and the kernel frees the lock of
a process that dies. A frozen writer keeps lock and socket, so nobody takes over from it. That is why
a guest, who came for a few frames, gives the seat back once it has been quiet for a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import selectors
import socket
import sqlite3
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, cast

from headrace.base.errors import DeadlineError, FormatError, FullError, HeadraceError, UnavailableError
from headrace.base.telemetry import get_logger

MAX_FRAME_BYTES = 64 << 20

_HEADER = struct.Struct("<I")
_RECEIVE_BYTES = 1 << 20
_RETRY_SECONDS = 0.005
_IDLE_SECONDS = 1.0
_GUEST_SECONDS = 0.2
_CHECKPOINT_WAIT_SECONDS = 0.05
_PAGE_BYTES = 4096
_WAL_PAGES = 4000
_SOCKET_PATH_BYTES = 100


class Store(Protocol):
    """What a writer writes to: the frames' meaning belongs to the room that sends them."""

    def commit(self, frames: Sequence[bytes]) -> list[bytes]:
        """Returns one answer per frame, once all of them are durable."""

    def rest(self) -> None:
        """Does its housekeeping; called about once a second."""

    def close(self) -> None:
        """Closes the file."""


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Returns a connection whose commits are on disk when they return (WAL, synchronous FULL)."""
    if read_only:
        connection = sqlite3.connect(
            f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
        connection.execute("pragma busy_timeout = 2000")
        return connection
    connection = sqlite3.connect(
        path,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
        timeout=_CHECKPOINT_WAIT_SECONDS,
    )
    connection.execute(f"pragma page_size = {_PAGE_BYTES}")
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = full")
    # A checkpoint inside the commit keeps the log at 16 MB; one in a thread let it grow to 440 MB.
    connection.execute(f"pragma wal_autocheckpoint = {_WAL_PAGES}")
    connection.execute(f"pragma journal_size_limit = {2 * _WAL_PAGES * _PAGE_BYTES}")
    connection.execute("pragma cache_size = -16384")
    return connection


def shrink_log(connection: sqlite3.Connection, path: Path) -> None:
    """Begins the log anew when readers that overlap have kept it from being reused (187 MB seen)."""
    log = path.with_name(f"{path.name}-wal")
    if log.stat().st_size > 1.5 * _WAL_PAGES * _PAGE_BYTES:
        # Waits a moment for the readers of now; those who come meanwhile no longer need the log.
        connection.execute("pragma wal_checkpoint(truncate)").fetchall()


@contextlib.contextmanager
def one_view(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Yields the connection in a read transaction: all that is read inside is of one instant."""
    connection.execute("begin")
    try:
        yield connection
    finally:
        connection.execute("rollback")


def migrate(connection: sqlite3.Connection, steps: Sequence[str], *, what: str) -> None:
    """Brings a file to the newest format: step i takes version i to version i + 1."""
    for version in range(_format_of(connection, len(steps), what), len(steps)):
        with transaction(connection):
            for statement in filter(str.strip, steps[version].split(";")):
                connection.execute(statement)
            connection.execute(f"pragma user_version = {version + 1}")


def check_format(connection: sqlite3.Connection, newest: int, *, what: str) -> None:
    """Raises FormatError for a file of a newer format, UnavailableError for one that its writer must migrate first."""
    found = _format_of(connection, newest, what)
    if found < newest:
        raise UnavailableError(f"{what} has format {found}, its writer will bring it to format {newest}. Try again")


def _format_of(connection: sqlite3.Connection, newest: int, what: str) -> int:
    found: int = connection.execute("pragma user_version").fetchone()[0]
    if found > newest:
        raise FormatError(
            f"{what} has format {found}, this Headrace reads formats up to {newest}. "
            "Run the newer Headrace that wrote it"
        )
    return found


@contextlib.contextmanager
def told(what: str, *, hint: str = "") -> Iterator[None]:
    """Raises what SQLite says as an error of ours about `what`; `hint` says what helps where it cannot be read."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise FullError(f"no room for {what}") from error
        raise UnavailableError(f"{what} does not answer: {error}") from error
    except sqlite3.DatabaseError as error:
        raise FormatError(f"{what} cannot be read: {error}{hint}") from error


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commits at the end, or rolls everything back on any error."""
    connection.execute("begin immediate")
    try:
        yield
        connection.execute("commit")
    finally:
        if connection.in_transaction:
            connection.execute("rollback")


class Seat:
    """Where the one writer of a file sits: its lock and its socket, both beside the file."""

    def __init__(self, path: Path, open_store: Callable[[], Store]) -> None:
        self.path = path
        self._open_store = open_store
        self._writer: _Writer | None = None
        self._mutex = threading.Lock()
        self._closed = False
        self.resident = False
        """Whether this process stays the writer while it is quiet, as roles do."""
        self.patience_seconds = 0.0
        """How long this process leaves an empty seat to others, who have more need of a quick writer."""
        self.used_at = 0.0

    def connect(self) -> socket.socket | None:
        """Returns a connection to the writer, or None if nobody listens."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            with _socket_address(self.path) as address:
                connection.connect(address)
        except OSError:
            # Refused, no such file, or the full backlog of a frozen writer: nobody listens.
            connection.close()
            return None
        self.used_at = time.monotonic()
        return connection

    def try_to_take(self) -> bool:
        """Becomes the writer if nobody else is; returns whether this process took the seat now."""
        with self._mutex:
            if self._closed:
                raise UnavailableError(f"{self.path} was closed by this process")
            if self._writer is not None and self._writer.is_alive():
                return False
            with contextlib.ExitStack() as unless_taken:
                lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                unless_taken.callback(os.close, lock)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
                self._writer = _Writer(self, lock, self._open_store())
                unless_taken.pop_all()
            self._writer.start()
            return True

    @property
    def held(self) -> bool:
        """Whether this process is the writer."""
        return self._writer is not None and self._writer.is_alive()

    def is_due(self) -> bool:
        """Whether a guest should give the seat back."""
        return not self.resident and time.monotonic() - self.used_at > _GUEST_SECONDS

    def close(self) -> None:
        """Gives the seat back for good; frames that were not answered go to the next writer."""
        with self._mutex:
            self._closed = True
            if self._writer is not None:
                self._writer.stop()
                self._writer = None

    def abandon(self) -> None:
        """Lets go without a word to anybody, in a forked child: the seat is its parent's."""
        if self._writer is not None:
            self._writer.abandon()


@contextlib.contextmanager
def _socket_address(path: Path) -> Iterator[str]:
    """Yields an address for the socket beside `path`; a socket's path has at most 107 bytes."""
    address = f"{path}.sock"
    if len(os.fsencode(address)) <= _SOCKET_PATH_BYTES:
        yield address
        return
    if not sys.platform.startswith("linux"):
        raise UnavailableError(f"{address!r} is too long for a socket; move the project to a shorter path")
    folder = os.open(path.parent, os.O_PATH | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}.sock"
    finally:
        os.close(folder)


class _Writer(threading.Thread):
    """Drains all sockets, commits once, answers all; then again."""

    def __init__(self, seat: Seat, lock: int, store: Store) -> None:
        super().__init__(name=f"writer of {seat.path.name}", daemon=True)
        self._seat = seat
        self._path = seat.path
        self._lock = lock
        self._store = store
        self._buffers: dict[socket.socket, bytearray] = {}
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._listener = self._listen()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._stopping = False

    def stop(self) -> None:
        """Ends the thread once everything received is answered."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._wake.send(b".")
        self.join()

    def abandon(self) -> None:
        """Closes what a forked child has inherited; the file stays open, it is the parent's to close."""
        self._selector.close()
        for inherited in (self._listener, self._wake, self._woken, *self._buffers):
            inherited.close()
        os.close(self._lock)

    def run(self) -> None:
        try:
            while not self._stopping and not self._seat.is_due():
                self._turn()
        except Exception:  # noqa: BLE001 - whatever broke the writer, it must give the seat back
            get_logger("sqlite").exception("the writer of %s stopped", self._path)
        finally:
            self._release()

    def _turn(self) -> None:
        frames: list[bytes] = []
        senders: list[socket.socket] = []
        for key, _ in self._selector.select(_IDLE_SECONDS if self._seat.resident else _GUEST_SECONDS):
            ready = key.fileobj
            if ready is self._listener:
                self._accept()
            elif isinstance(ready, socket.socket) and ready in self._buffers:
                for frame in self._receive(ready):
                    frames.append(frame)
                    senders.append(ready)
        if frames:
            self._answer(senders, self._store.commit(frames))
        self._store.rest()

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Bound under another name and renamed, so that nobody meets a socket that does not listen.
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        with _socket_address(temporary) as address:
            with contextlib.suppress(FileNotFoundError):
                Path(address).unlink()
            listener.bind(address)
            Path(address).chmod(0o600)
            listener.listen(128)
            Path(address).rename(f"{self._path}.sock")
        listener.setblocking(False)
        return listener

    def _accept(self) -> None:
        # Out of descriptors, too: whoever could not come in tries again.
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            self._buffers[connection] = bytearray()
            self._selector.register(connection, selectors.EVENT_READ)

    def _receive(self, connection: socket.socket) -> list[bytes]:
        try:
            data = connection.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self._forget(connection)
            return []
        buffer = self._buffers[connection]
        buffer += data
        frames = list(_take_frames(buffer))
        if len(buffer) > MAX_FRAME_BYTES:
            self._forget(connection)
        return frames

    def _answer(self, senders: list[socket.socket], answers: list[bytes]) -> None:
        for connection, answer in zip(senders, answers, strict=True):
            try:
                connection.sendall(_HEADER.pack(len(answer)) + answer)
            except OSError:
                self._forget(connection)

    def _forget(self, connection: socket.socket) -> None:
        if self._buffers.pop(connection, None) is not None:
            self._selector.unregister(connection)
            connection.close()

    def _release(self) -> None:
        for connection in list(self._buffers):
            self._forget(connection)
        self._listener.close()
        self._selector.close()
        self._wake.close()
        self._woken.close()
        self._store.close()
        os.close(self._lock)


def _take_frames(buffer: bytearray) -> Iterator[bytes]:
    start = 0
    while len(buffer) - start >= _HEADER.size:
        (length,) = _HEADER.unpack_from(buffer, start)
        end = start + _HEADER.size + length
        if len(buffer) < end:
            break
        yield bytes(memoryview(buffer)[start + _HEADER.size : end])
        start = end
    if start:
        del buffer[:start]


class Link:
    """Hands frames to the writer and waits for the answer; it becomes the writer if there is none."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._connection: socket.socket | None = None
        self._mutex = threading.Lock()

    def ask(self, frame: bytes, *, deadline_seconds: float) -> bytes:
        """Returns the writer's answer. The same frame is sent again to the next writer."""
        deadline = time.monotonic() + deadline_seconds
        if not self._mutex.acquire(timeout=max(deadline_seconds, 0)):
            raise self._too_late(deadline_seconds)
        try:
            while True:
                connection = self._connected(deadline)
                try:
                    connection.settimeout(max(deadline - time.monotonic(), 0.001))
                    connection.sendall(_HEADER.pack(len(frame)) + frame)
                    answer = _receive_frame(connection)
                except TimeoutError as error:
                    self._drop()
                    raise self._too_late(deadline_seconds) from error
                except OSError:
                    self._drop()
                else:
                    self._seat.used_at = time.monotonic()
                    return answer
        finally:
            self._mutex.release()

    def _too_late(self, seconds: float) -> DeadlineError:
        return DeadlineError(f"the writer of {self._seat.path} did not answer within {seconds:.3g} s")

    def close(self) -> None:
        """Closes the connection."""
        self._drop()

    def _connected(self, deadline: float) -> socket.socket:
        taken_from = time.monotonic() + self._seat.patience_seconds
        while self._connection is None:
            self._connection = self._seat.connect()
            if self._connection is None and (time.monotonic() < taken_from or not self._seat.try_to_take()):
                if time.monotonic() > deadline:
                    raise UnavailableError(f"nobody answers for {self._seat.path}, though its lock is held")
                time.sleep(_RETRY_SECONDS)
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _receive_frame(connection: socket.socket) -> bytes:
    header = _receive_exactly(connection, _HEADER.size)
    return _receive_exactly(connection, _HEADER.unpack(header)[0])


def _receive_exactly(connection: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = connection.recv(size)
        if not part:
            raise ConnectionResetError("the writer is gone")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


class AsyncLink(asyncio.Protocol):
    """The same for an asyncio loop: one frame in flight, sent again to whoever is the writer next."""

    def __init__(self, seat: Seat, answered: Callable[[bytes], None]) -> None:
        self._seat = seat
        self._answered = answered
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._frame: bytes | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def idle(self) -> bool:
        """Whether a frame may be sent now."""
        return self._frame is None

    def send(self, frame: bytes) -> None:
        """Sends a frame; `answered` is called with the answer, however many writers die meanwhile."""
        self._frame = frame
        if self._transport is not None:
            self._transport.write(_HEADER.pack(len(frame)) + frame)
        elif self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._reconnect())

    def close(self) -> None:
        """Closes the connection."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends the frame in flight again, if there is one."""
        self._transport = cast("asyncio.Transport", transport)
        self._buffer.clear()
        self._task = None
        if self._frame is not None:
            self.send(self._frame)

    def data_received(self, data: bytes) -> None:
        """Passes the answer on."""
        self._buffer += data
        for answer in _take_frames(self._buffer):
            self._frame = None
            self._answered(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Looks for the next writer, or becomes it."""
        del exc
        self._transport = None
        if not self._closed and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._reconnect())

    async def _reconnect(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._closed:
            connection = self._seat.connect()
            if connection is not None:
                with contextlib.suppress(OSError):
                    await loop.create_unix_connection(lambda: self, sock=connection)
                    return
            # Opening the store reads up to 32 MB of log after a crash: not on the loop.
            if not await loop.run_in_executor(None, self._take):
                await asyncio.sleep(_RETRY_SECONDS)

    def _take(self) -> bool:
        try:
            return self._seat.try_to_take()
        except (sqlite3.Error, OSError, HeadraceError) as error:
            get_logger("sqlite").error("cannot open %s: %s", self._seat.path, error)
            time.sleep(0.1)
            return False

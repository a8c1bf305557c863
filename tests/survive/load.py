"""Load on a collector that is being killed: clients, and a proxy that outlives it and records every answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.topics import Message

_CONTENT_LENGTH = b"content-length:"


class Proxy:
    """Passes requests on and notes, by messageId, which were answered with 200."""

    def __init__(self, port: int) -> None:
        self.upstream = port
        self.acknowledged: set[str] = set()
        self.statuses: dict[int, int] = defaultdict(int)
        self.in_flight = 0

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            while True:
                head, body = await read_http(reader)
                self.in_flight += 1
                try:
                    upstream = upstream or await asyncio.open_connection("127.0.0.1", self.upstream)
                    upstream[1].write(head + body)
                    answer, content = await read_http(upstream[0])
                finally:
                    self.in_flight -= 1
                status = int(answer.split(b" ", 2)[1])
                self.statuses[status] += 1
                if status == 200:
                    self.acknowledged.update(_message_ids(body))
                if b"connection: close" in answer.lower():
                    upstream[1].close()
                    upstream = None
                writer.write(answer + content)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            if upstream is not None:
                upstream[1].close()


async def read_http(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Returns head and body of the next message."""
    head = await reader.readuntil(b"\r\n\r\n")
    at = head.lower().find(_CONTENT_LENGTH)
    length = int(head[at + len(_CONTENT_LENGTH) :].split(b"\r\n", 1)[0]) if at >= 0 else 0
    return head, await reader.readexactly(length)


def _message_ids(body: bytes) -> list[str]:
    value = json.loads(body)
    return [event["messageId"] for event in value.get("batch", [value])]


def request(body: bytes, path: str = "/v1/track") -> bytes:
    """Returns an HTTP request with the write key dev."""
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Basic ZGV2Og==\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Clients:
    """Visitors who send one event after the other, and the same one again until it is answered with 200."""

    def __init__(self, port: int, count: int) -> None:
        self._port = port
        self._count = count
        self._stopping = False
        self.sent = 0

    async def __aenter__(self) -> Clients:
        self._tasks = [asyncio.create_task(self._visit(f"visitor-{n}")) for n in range(self._count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await asyncio.wait_for(asyncio.gather(*self._tasks), 30)

    def event(self, visitor: str, number: int) -> Mapping[str, Any]:
        """Returns what a visitor sends next."""
        return {"anonymousId": visitor, "messageId": f"{visitor}-{number}", "event": "Kill Test", "number": number}

    async def _visit(self, visitor: str) -> None:
        number = 0
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not self._stopping:
            event = self.event(visitor, number)
            try:
                connection = connection or await asyncio.open_connection("127.0.0.1", self._port)
                connection[1].write(request(json.dumps(event).encode()))
                head, _ = await read_http(connection[0])
            except (OSError, asyncio.IncompleteReadError):
                if connection is not None:
                    connection[1].close()
                connection = None
                await asyncio.sleep(0.02)
                continue
            if head.split(b" ", 2)[1] == b"200":
                number += 1
                self.sent += 1
            else:
                await asyncio.sleep(0.05)
        if connection is not None:
            connection[1].close()


async def until(condition, seconds: float = 20.0, *, what: str = "") -> None:
    """Returns once `condition()` holds; fails after the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what or condition}"
        await asyncio.sleep(0.005)


def writer_pid(folder: Path) -> int:
    """Returns the process that holds the seat of the topic file, or 0; Linux tells by inode."""
    with contextlib.suppress(FileNotFoundError):
        inode = (folder / ".headrace/topics/topics.db.lock").stat().st_ino
        for line in Path("/proc/locks").read_text().splitlines():
            parts = line.split()
            if parts[1] == "FLOCK" and parts[5].rsplit(":", 1)[1] == str(inode):
                return int(parts[4])
    return 0


def kill(pid: int) -> None:
    """Kills a process at once, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def check(messages: list[Message], acknowledged: set[str]) -> None:
    """Asserts that nothing acknowledged is missing and that each visitor's order is kept."""
    first: dict[str, list[int]] = defaultdict(list)
    stored: set[str] = set()
    places: dict[str, set[int]] = defaultdict(set)
    for message in messages:
        event = json.loads(message.value)
        places[event["anonymousId"]].add(message.partition)
        if event["messageId"] not in stored:
            stored.add(event["messageId"])
            first[event["anonymousId"]].append(event["number"])
    lost = acknowledged - stored
    assert not lost, f"{len(lost)} of {len(acknowledged)} acknowledged events are lost, such as {sorted(lost)[:3]}"
    assert all(numbers == sorted(numbers) for numbers in first.values()), "a visitor's order was not kept"
    assert all(len(partitions) == 1 for partitions in places.values())

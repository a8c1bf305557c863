"""headrace demo: a simulated product's clicks through real doors, and the proof that none is lost."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shlex
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table

from headrace.base.clock import Clock
from headrace.base.errors import CallError
from headrace.base.process import Companion, Life, Program
from headrace.console.roles import read_state, supervise, write_project
from headrace.console.show import print_lines
from headrace.events.world import DAY, Delivery, Visit, World, encode
from headrace.profile import FILE as PROFILE_FILE
from headrace.project import OpenProject, open_project
from headrace.topics import Topic

_VISITORS = 3_000
_CONNECTIONS = 48
_CLOCK = "world://?rate=3600"
_START_SECONDS = 15.0
_DRAIN_SECONDS = 5.0
_FRAME_SECONDS = 0.2
_RESEND_SECONDS = 0.02
_AUTHORIZATION = b"authorization: Basic ZGV2Og=="


class _Identified(msgspec.Struct):
    message_id: str = msgspec.field(name="messageId")


_identified = msgspec.json.Decoder(_Identified)


@dataclass
class _Counts:
    """What was sent and acknowledged, as the clients see it, and what a consumer has read."""

    sent: int = 0
    requests: int = 0
    refused: int = 0
    resent: int = 0
    acknowledged: set[str] = field(default_factory=set)
    answered: int = 0
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=5_000))
    read: int = 0
    stored: set[str] = field(default_factory=set)
    lag: int = 0
    killed_at: float | None = None
    answered_at: float = 0.0
    pause: float = 0.0
    """The longest time after the kill in which nothing was acknowledged."""

    def note_answer(self, delivery: Delivery, seconds: float) -> None:
        now = time.monotonic()
        if self.killed_at is not None:
            self.pause = max(self.pause, now - self.answered_at)
        self.answered_at = now
        self.latencies.append(seconds)
        self.acknowledged.update(event.message_id for event in delivery.events)
        self.answered += len(delivery.events)

    def quantile_ms(self, q: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(int(q * len(ordered)), len(ordered) - 1)] * 1000 if ordered else 0.0


def demo(given: argparse.Namespace) -> int:
    """Runs the demo and returns 0 if everything acknowledged is in the topic."""
    if not 1 <= given.seconds <= 3600:
        raise CallError(f"--seconds {given.seconds:g}: must be 1 to 3600")
    with _folder(given.dir) as folder:
        if not (folder / PROFILE_FILE).exists():
            write_project(folder, port=0, clock=_CLOCK)
        _refuse_foreign(folder)
        log = str(folder / "up.log")
        program = Program("up", "headrace.console.demo:run_up", {"folder": str(folder)}, log=log)
        with Companion(program) as up, open_project(folder) as project:
            up.wait_ready(_START_SECONDS)
            counts = _run(project, given)
        return _conclude(counts, given, folder)


def _refuse_foreign(folder: Path) -> None:
    """Raises CallError unless the demo made the project: its events would not be wanted in another."""
    clock = open_project(folder).profile.urls.clock
    if clock != _CLOCK:
        raise CallError(
            f"{str(folder)!r} holds a project that the demo did not make: its clock is {clock!r}. Choose another folder"
        )


def run_up(life: Life, *, folder: str) -> None:
    """Runs all roles of the demo's project, as `headrace up` does."""
    with open_project(folder) as project:
        supervise(project, ["collector"], announce=lambda _: life.tell_ready())


@contextlib.contextmanager
def _folder(chosen: str | None) -> Iterator[Path]:
    if chosen is not None:
        Path(chosen).mkdir(parents=True, exist_ok=True)
        yield Path(chosen)
        return
    with tempfile.TemporaryDirectory(prefix="headrace-demo-") as folder:
        yield Path(folder)


def _run(project: OpenProject, given: argparse.Namespace) -> _Counts:
    counts = _Counts()
    url = read_state(project, "collector")["url"]
    stop = threading.Event()
    reader = threading.Thread(target=_read_along, args=(project.topic("clicks"), counts, stop))
    reader.start()
    try:
        asyncio.run(_send_world(project, url, counts, given))
        deadline = time.monotonic() + _DRAIN_SECONDS
        while not counts.acknowledged <= counts.stored and time.monotonic() < deadline:
            time.sleep(_FRAME_SECONDS)
    finally:
        stop.set()
        reader.join()
    return counts


def _read_along(topic: Topic, counts: _Counts, stop: threading.Event) -> None:
    """Reads the topic as any consumer would, and counts what is there."""
    with topic.consume("demo") as consumer:
        while not stop.is_set():
            for message in consumer.poll(wait_seconds=0.1):
                counts.stored.add(_identified.decode(message.value or b"").message_id)
                counts.read += 1
            ends = [bound.end for bound in topic.bounds()]
            counts.lag = sum(end - consumer.positions[p].offset for p, end in enumerate(ends))
            consumer.commit()


async def _send_world(project: OpenProject, url: str, counts: _Counts, given: argparse.Namespace) -> None:
    clock = project.clock
    world = World(given.seed, visitors=_VISITORS, born_us=clock.now_us())
    queues: list[asyncio.Queue[Delivery | None]] = [asyncio.Queue() for _ in range(_CONNECTIONS)]
    address = urlsplit(url)
    clients = [asyncio.create_task(_Client(address.hostname or "", address.port or 0, counts).run(q)) for q in queues]
    ends_at = time.monotonic() + given.seconds
    panel = asyncio.create_task(_show(counts, clock, url, ends_at, quiet=given.json))
    killer = asyncio.create_task(_kill_in_the_middle(project, counts, given.seconds / 2))
    for delivery in world.deliver(_visits(world, clock)):
        while (early := delivery.at_us - clock.now_us()) > 0 and time.monotonic() < ends_at:
            await asyncio.sleep(min(early / 3.6e9, 0.05))
        if time.monotonic() >= ends_at:
            break
        # One visitor keeps to one connection, so that the order of his events is the order of sending.
        queues[delivery.visitor % _CONNECTIONS].put_nowait(delivery)
        await asyncio.sleep(0)
    for queue in queues:
        queue.put_nowait(None)
    await asyncio.gather(*clients, killer)
    panel.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await panel


def _visits(world: World, clock: Clock) -> Iterator[Visit]:
    start_us = clock.now_us()
    while True:
        yield from world.traffic(start_us, start_us + DAY)
        start_us += DAY


class _Client:
    """Sends deliveries over one connection, the same one again until it is acknowledged, as SDKs do."""

    def __init__(self, host: str, port: int, counts: _Counts) -> None:
        self._host, self._port = host, port
        self._counts = counts
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self, queue: asyncio.Queue[Delivery | None]) -> None:
        while (delivery := await queue.get()) is not None:
            body = encode(delivery)
            self._counts.sent += len(delivery.events)
            started_at = time.perf_counter()
            while not await self._post(body):
                self._counts.resent += 1
                await asyncio.sleep(_RESEND_SECONDS)
            self._counts.note_answer(delivery, time.perf_counter() - started_at)
        if self._streams is not None:
            self._streams[1].close()

    async def _post(self, body: bytes) -> bool:
        self._counts.requests += 1
        try:
            self._streams = self._streams or await asyncio.open_connection(self._host, self._port)
            reader, writer = self._streams
            head = b"POST /v1/batch HTTP/1.1\r\nhost: demo\r\n%b\r\ncontent-length: %d\r\n\r\n"
            writer.write(head % (_AUTHORIZATION, len(body)) + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            if self._streams is not None:
                self._streams[1].close()
            self._streams = None
            return False
        accepted = answer.startswith(b"HTTP/1.1 200")
        self._counts.refused += not accepted
        return accepted


async def _kill_in_the_middle(project: OpenProject, counts: _Counts, seconds: float) -> None:
    await asyncio.sleep(seconds)
    for pid in list(read_state(project, "collector")["pids"].values())[:1]:
        counts.killed_at = seconds
        os.kill(pid, signal.SIGKILL)


async def _show(counts: _Counts, clock: Clock, url: str, ends_at: float, *, quiet: bool) -> None:
    console = Console(quiet=quiet, highlight=False)
    began_at = time.monotonic()
    recent: deque[tuple[float, int]] = deque([(began_at, 0)], maxlen=6)

    def panel() -> RenderableType:
        recent.append((time.monotonic(), counts.answered))
        return _panel(counts, clock, url, _rate(recent), ends_at)

    def last_panel() -> RenderableType:
        whole = deque([(began_at, 0), (counts.answered_at, counts.answered)])
        return _panel(counts, clock, url, _rate(whole), ends_at)

    # A pipe gets the last picture only.
    live = Live(panel(), console=console, auto_refresh=False) if console.is_terminal else None
    with live or contextlib.nullcontext():
        try:
            while True:
                if live is not None:
                    live.update(panel(), refresh=True)
                await asyncio.sleep(_FRAME_SECONDS)
        finally:
            if live is None:
                console.print(last_panel())
            else:
                live.update(last_panel(), refresh=True)


def _rate(rates: deque[tuple[float, int]]) -> float:
    (first_at, first), (last_at, last) = rates[0], rates[-1]
    return (last - first) / (last_at - first_at) if last_at > first_at else 0.0


def _panel(counts: _Counts, clock: Clock, url: str, rate: float, ends_at: float) -> RenderableType:
    world = datetime.fromtimestamp(clock.now_us() / 1e6, UTC).strftime("%a %H:%M")
    left = max(ends_at - time.monotonic(), 0)
    killed = "-"
    if counts.killed_at is not None:
        killed = f"kill -9 of the collector at {counts.killed_at:g} s, longest pause {counts.pause:.2f} s"
    ack = f"{rate:,.0f} events/s  ack p50 {counts.quantile_ms(0.5):.1f} ms  p99 {counts.quantile_ms(0.99):.1f} ms"
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", min_width=12)
    table.add_column()
    for name, text in (
        ("world", f"{_VISITORS:,} visitors, {world} there, an hour a second, {left:.0f} s to go"),
        ("collector", url),
        ("acknowledged", ack),
        ("topic clicks", f"{counts.read:,} records read  lag {counts.lag:,}"),
        ("failed", f"{counts.refused:,} requests refused, {counts.resent:,} sent again"),
        ("fault", killed),
    ):
        table.add_row(name, text)
    return table


def _conclude(counts: _Counts, given: argparse.Namespace, folder: Path) -> int:
    lost = len(counts.acknowledged - counts.stored)
    summary: dict[str, Any] = {
        "sent": counts.sent,
        "requests": counts.requests,
        "acknowledged": len(counts.acknowledged),
        "in_topic": len(counts.acknowledged & counts.stored),
        "lost": lost,
        "repeats": counts.read - len(counts.stored),
        "refused": counts.refused,
        "ack_p50_ms": round(counts.quantile_ms(0.5), 2),
        "ack_p99_ms": round(counts.quantile_ms(0.99), 2),
        "longest_pause_seconds": round(counts.pause, 2),
    }
    if given.json:
        print_lines([summary])
        return int(lost > 0 or not counts.acknowledged)
    sign = "=" if not lost else "≠"
    print(
        f"proof         {summary['acknowledged']:,} events acknowledged {sign} {summary['in_topic']:,} of them in the "
        f"topic, {lost} lost; {summary['repeats']:,} came twice, which the settler will fold"
    )
    _print_next(given, folder)
    return int(lost > 0 or not counts.acknowledged)


def _print_next(given: argparse.Namespace, folder: Path) -> None:
    if given.dir is None:
        print("try           headrace demo --dir demo     and keep what it made")
        print("              headrace init shop && cd shop && headrace up")
        return
    place = shlex.quote(str(folder))
    print(f"try           headrace topic read clicks --max 5 --project {place}")
    print(f"              headrace topic groups clicks --project {place}")
    print(f"              headrace up --project {place}")

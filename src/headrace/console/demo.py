"""headrace demo: a simulated product's clicks through real doors into the lake, each once, and the proof of it."""

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
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table

from headrace.base.clock import Clock
from headrace.base.errors import CallError, HeadraceError
from headrace.base.process import Companion, Life, Program
from headrace.base.telemetry import read_values
from headrace.collect.app import CLICKS
from headrace.console.crowd import VISITORS, Crowd
from headrace.console.proof import Proof, prove, wait_at_rest
from headrace.console.roles import read_state, supervise, write_project
from headrace.console.show import print_lines, print_table
from headrace.events.settled import EVENTS, FAILED
from headrace.profile import FILE as PROFILE_FILE
from headrace.project import ROLES, OpenProject, open_project
from headrace.tables.catalog import funnel_sql

_CLOCK = "world://?rate=3600"
_START_SECONDS = 20.0
_REST_SECONDS = 20.0
_FRAME_SECONDS = 0.2

_TOP_ITEMS = """
SELECT product_id AS item, count(*) AS clicks, count(DISTINCT person) AS persons
FROM product_clicked WHERE NOT bot GROUP BY ALL ORDER BY clicks DESC, item LIMIT 5
"""
_FUNNEL = ("page", "Product List Viewed", "Product Clicked", "Video Playback Completed")
_FAILURES = """
SELECT reason, count(*) AS events, any_value(message) AS example FROM failed GROUP BY reason ORDER BY events DESC
"""


@dataclass
class _Stream:
    """What stands behind the door, as an outsider sees it."""

    clicks: int = 0
    events: int = 0
    failed: int = 0
    rows: int = 0
    killed_at: float | None = None


def demo(given: argparse.Namespace) -> int:
    """Runs the demo and returns 0 if everything acknowledged happened once and stands in the lake once."""
    if not 1 <= given.seconds <= 3600:
        raise CallError(f"--seconds {given.seconds:g}: must be 1 to 3600")
    with _folder(given.dir) as folder:
        if not (folder / PROFILE_FILE).exists():
            write_project(folder, ports=(0, 0, 0), clock=_CLOCK, flush_seconds=1)
        _refuse_foreign(folder)
        log = str(folder / "up.log")
        program = Program("up", "headrace.console.demo:run_up", {"folder": str(folder)}, log=log)
        with Companion(program) as up, open_project(folder) as project:
            up.wait_ready(_START_SECONDS)
            crowd, stream = Crowd(), _Stream()
            asyncio.run(_run(project, crowd, stream, given))
            is_at_rest = wait_at_rest(project, _REST_SECONDS)
            proof = prove(project, crowd.acknowledged)
            code = _conclude(crowd, proof, given)
            if not is_at_rest:
                print(f"the stream did not come to rest within {_REST_SECONDS:g} s; see {log}")
            if not given.json:
                _ask(project)
        if not given.json:
            _print_next(given, folder, next(iter(crowd.acknowledged), ""))
        return code


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
        supervise(project, list(ROLES), announce=lambda _: life.tell_ready())


@contextlib.contextmanager
def _folder(chosen: str | None) -> Iterator[Path]:
    if chosen is not None:
        Path(chosen).mkdir(parents=True, exist_ok=True)
        yield Path(chosen)
        return
    with tempfile.TemporaryDirectory(prefix="headrace-demo-") as folder:
        yield Path(folder)


async def _run(project: OpenProject, crowd: Crowd, stream: _Stream, given: argparse.Namespace) -> None:
    url = read_state(project, "collector")["url"]
    ends_at = time.monotonic() + given.seconds
    stop = threading.Event()
    looker = threading.Thread(target=_look, args=(project.folder, stream, stop))
    looker.start()
    panel = asyncio.create_task(_show(crowd, stream, (project.clock, url, ends_at), quiet=given.json))
    killer = asyncio.create_task(_kill(project, crowd, stream, given.seconds))
    try:
        await crowd.visit(url, project.clock, seed=given.seed, ends_at=ends_at)
        await killer
    finally:
        stop.set()
        looker.join()
        panel.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await panel


def _look(folder: Path, stream: _Stream, stop: threading.Event) -> None:
    """Counts what the topics hold and what was committed to the lake, as anybody could from outside."""
    with open_project(folder) as project:
        while not stop.wait(_FRAME_SECONDS):
            ends = {name: sum(bound.end for bound in project.topics.bounds(name)) for name in (CLICKS, EVENTS, FAILED)}
            stream.clicks, stream.events, stream.failed = ends[CLICKS], ends[EVENTS], ends[FAILED]
            stream.rows = int(read_values(project.profile.state / "metrics").get("headrace_sink_rows_total", 0))


async def _kill(project: OpenProject, crowd: Crowd, stream: _Stream, seconds: float) -> None:
    await asyncio.sleep(seconds / 2)
    crowd.killed_at = seconds / 2
    _kill_one(project, "collector")
    await asyncio.sleep(seconds / 4)
    stream.killed_at = seconds * 3 / 4
    _kill_one(project, "settler")


def _kill_one(project: OpenProject, role: str) -> None:
    for pid in list(read_state(project, role)["pids"].values())[:1]:
        os.kill(pid, signal.SIGKILL)


Scene = tuple[Clock, str, float]


async def _show(crowd: Crowd, stream: _Stream, scene: Scene, *, quiet: bool) -> None:
    console = Console(quiet=quiet, highlight=False)
    began_at = time.monotonic()
    recent: deque[tuple[float, int]] = deque([(began_at, 0)], maxlen=6)

    def panel() -> RenderableType:
        recent.append((time.monotonic(), crowd.answered))
        return _panel(crowd, stream, scene, _rate(recent))

    def last_panel() -> RenderableType:
        whole = deque([(began_at, 0), (crowd.answered_at, crowd.answered)])
        return _panel(crowd, stream, scene, _rate(whole))

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


def _panel(crowd: Crowd, stream: _Stream, scene: Scene, rate: float) -> RenderableType:
    clock, url, ends_at = scene
    world = datetime.fromtimestamp(clock.now_us() / 1e6, UTC).strftime("%a %H:%M")
    left = max(ends_at - time.monotonic(), 0)
    killed = "-"
    if crowd.killed_at is not None:
        killed = f"kill -9 of the collector at {crowd.killed_at:g} s, longest pause {crowd.pause:.2f} s"
    if stream.killed_at is not None:
        killed += f"; of settler and sink at {stream.killed_at:g} s"
    ack = f"{rate:,.0f} events/s  ack p50 {crowd.quantile_ms(0.5):.1f} ms  p99 {crowd.quantile_ms(0.99):.1f} ms"
    waiting = max(stream.clicks - stream.events - stream.failed, 0)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", min_width=12)
    table.add_column()
    for name, text in (
        ("world", f"{VISITORS:,} visitors, {world} there, an hour a second, {left:.0f} s to go"),
        ("collector", url),
        ("acknowledged", f"{crowd.answered:,}  {ack}"),
        ("refused", f"{crowd.refused:,} requests refused, {crowd.resent:,} sent again"),
        ("settled", f"{stream.events:,} events, {stream.failed:,} failed; {waiting:,} clicks wait or are repeats"),
        ("lake", f"{stream.rows:,} rows committed"),
        ("fault", killed),
    ):
        table.add_row(name, text)
    return table


def _conclude(crowd: Crowd, proof: Proof, given: argparse.Namespace) -> int:
    if given.json:
        print_lines([_summary(crowd, proof)])
        return int(not proof.holds)
    sign = "=" if not proof.lost else "≠"
    verdict = "✓ exactly once" if proof.holds else "✗ NOT exactly once"
    print(
        f"proof         {proof.acknowledged:,} acknowledged {sign} settled or failed, {proof.lost} lost\n"
        f"              {proof.clicks:,} clicks = {proof.settled:,} settled + {proof.failed:,} failed + "
        f"{proof.repeats:,} repeats; {proof.rows:,} rows in the lake {verdict}"
    )
    return int(not proof.holds)


def _summary(crowd: Crowd, proof: Proof) -> dict[str, Any]:
    return {
        **asdict(proof),
        "exactly_once": proof.holds,
        "sent": crowd.sent,
        "requests": crowd.requests,
        "refused": crowd.refused,
        "ack_p50_ms": round(crowd.quantile_ms(0.5), 2),
        "ack_p99_ms": round(crowd.quantile_ms(0.99), 2),
        "longest_pause_seconds": round(crowd.pause, 2),
    }


def _ask(project: OpenProject) -> None:
    """Prints what the lake answers to a few questions."""
    for title, sql in (
        ("the most clicked", _TOP_ITEMS),
        ("from page to the end of a film, within half an hour", funnel_sql(_FUNNEL, within_seconds=1800)),
        ("what failed, and why", _FAILURES),
    ):
        print(f"\n{title}")
        try:
            rows = project.query(sql).table().to_pylist()
        except HeadraceError as error:
            print(f"  {error}")
            continue
        print_table(tuple(rows[0]) if rows else (), [tuple(map(_cell, row.values())) for row in rows], empty="  none")


def _cell(value: Any) -> Any:
    return "-" if value is None else f"{value:.1%}" if isinstance(value, float) else value


def _print_next(given: argparse.Namespace, folder: Path, message_id: str) -> None:
    if given.dir is None:
        print("\ntry           headrace demo --dir demo     and keep what it made")
        print("              headrace init shop && cd shop && headrace up")
        return
    place = shlex.quote(str(folder))
    print(f"\ntry           headrace explain {shlex.quote(message_id)} --project {place}")
    print(f"              headrace table sql 'FROM sessions LIMIT 5' --project {place}")
    print(f"              headrace table failed --project {place}")
    print(f"              headrace up --project {place}")

"""Live: what comes in at this moment, how far each reader is behind, what failed, and which alerts are open.

One sampler a process reads metrics, bounds and alerts, and writes each part of the page once; all who look get those
bytes. A page of its own per viewer would cost the collector, which shares the loop, as much as its viewers are many.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from headrace.base.http import Request, Response
from headrace.base.telemetry import get_logger, quantile, read_values
from headrace.collect.app import CLICKS
from headrace.console import charts
from headrace.console.desk import Desk
from headrace.console.figures import count_of, format_rate
from headrace.console.frame import NOTHING, Html, Sheet, badge, figures, link, panel, put, table, tag, when
from headrace.console.state import is_running
from headrace.events.settled import REASONS
from headrace.events.taxonomy import FUNNEL
from headrace.project import OpenProject
from headrace.watch.alert import FILE as ALERTS
from headrace.watch.alert import Alert, read_alerts

LOOKED_AT_SECONDS = 1.0
ALONE_SECONDS = 5.0

_POINTS = 600
_RATE_SECONDS = 10.0
# Each has all metrics of all processes: no more are kept than the rates are counted from.
_SAMPLES = int(_RATE_SECONDS / LOOKED_AT_SECONDS) + 2
_CLOSED_SHOWN = 5
_EVENTS = "headrace_collect_events_total"
_PAGES = 'headrace_endpoint_requests_total{status="200"}'
_FAILED = "headrace_settle_failed_total"
_STEPS = ("lists viewed", "titles clicked", "playbacks started", "watched to the end")
_SINKS = "headrace_sink_lag_records"
_READERS = (
    ("settler", "settler", "", "clicks to events"),
    ("sink", "sink of events", f'{_SINKS}{{topic="events"}}', "events to the lake"),
    ("sink", "sink of decisions", f'{_SINKS}{{topic="decisions"}}', "pages to the lake"),
    ("sink", "sink of failed", f'{_SINKS}{{topic="failed"}}', "failed events to the lake"),
    ("updater", "updater", "headrace_update_lag_records", "events to online features"),
)
_UNWATCHED = put("Nobody watches: the role watcher does not run. ", tag("code", "headrace up"))
_SQL = "SELECT reason, message, count(*) AS events FROM failed GROUP BY ALL ORDER BY events DESC LIMIT 50"


@dataclass(frozen=True)
class Sample:
    """What the project does at one instant."""

    at: float
    values: Mapping[str, float]
    unsettled: int
    running: frozenset[str]
    alerts: Sequence[Alert]

    def failed(self) -> dict[str, int]:
        """Returns how many events failed, by reason."""
        counts = {name: int(self.values.get(f'{_FAILED}{{reason="{name}"}}', 0)) for name in REASONS}
        return {name: count for name, count in counts.items() if count}


@dataclass
class Sampler:
    """Reads what a project tells of itself: numbers in small files, the ends of `clicks`, the book of alerts."""

    project: OpenProject
    _alerts: tuple[tuple[int, int], list[Alert]] = ((0, 0), [])

    def sample(self) -> Sample:
        """Returns what stands there now."""
        state = self.project.profile.state
        roles = {role for role, *_ in _READERS} | {"watcher"}
        return Sample(
            at=time.time(),
            values=read_values(state / "metrics"),
            unsettled=self._count_unsettled(),
            running=frozenset(role for role in roles if is_running(self.project, role)),
            alerts=self._read_alerts(state / ALERTS),
        )

    def _count_unsettled(self) -> int:
        topics = self.project.topics
        if CLICKS not in topics.names():
            return 0
        bounds = topics.bounds(CLICKS)
        taken = {one.position.partition: one.position.offset for one in topics.groups(CLICKS) if one.group == "settler"}
        return sum(max(bound.end - taken.get(p, bound.start), 0) for p, bound in enumerate(bounds))

    def _read_alerts(self, path: Path) -> list[Alert]:
        try:
            found = path.stat()
        except FileNotFoundError:
            return []
        mark = (found.st_mtime_ns, found.st_size)
        if mark != self._alerts[0]:
            self._alerts = (mark, read_alerts(path))
        return self._alerts[1]


@dataclass
class Live:
    """The page /live and its stream."""

    desk: Desk
    sampler: Sampler
    _samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=_SAMPLES))
    _points: deque[tuple[float, float, float]] = field(default_factory=lambda: deque(maxlen=_POINTS))
    """Times with events and pages a second."""
    _parts: dict[str, Html] = field(default_factory=dict)
    _frame: bytes = b""
    _next: asyncio.Event = field(default_factory=asyncio.Event)
    _come: asyncio.Event = field(default_factory=asyncio.Event)
    _viewers: int = 0
    _task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begins to sample; call it inside the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Ends the sampling, and with it all streams."""
        if self._task is not None:
            self._task.cancel()

    async def page(self, request: Request) -> Sheet:
        """Returns the page as it is now; its script keeps it so."""
        del request
        if not self._parts:
            await self._tick()
        columns = [*zip(*self._points, strict=True)] or [(), (), ()]
        points = msgspec.json.encode(columns).decode()
        plot = tag(
            "div", class_="plot", id="plot", data_points=points, role="img", aria_label="Events and pages a second"
        )
        keys = tag("p", tag("span", "events a second"), tag("span", "pages a second", class_="second"), class_="key")
        pause = tag("button", "Pause", id="pause", class_="quiet", type="button", aria_pressed="false")
        parts = {name: tag("div", html, id=f"live-{name}") for name, html in self._parts.items()}
        body = put(
            tag("p", pause, " ", tag("span", badge("good", "live"), id="live-link", role="status"), class_="line"),
            parts["figures"],
            parts["alerts"],
            panel("Coming in", keys, plot, id="coming"),
            tag("div", parts["funnel"], parts["readers"], class_="pair"),
            parts["failed"],
        )
        lead = (
            "What comes in at this moment, how far behind each reader is, and what is wrong, drawn anew every second."
        )
        return Sheet("/live", "Live", lead, body, ("/tables", "where all of this comes to rest"),
                     scripts=("uplot.js", "live.js"))  # fmt: skip

    async def stream(self, request: Request) -> Response:
        """Returns the samples as they come, as server-sent events."""
        del request
        return Response(200, b"retry: 2000\n\n", ((b"content-type", b"text/event-stream"),), self._follow())

    async def _follow(self) -> AsyncGenerator[bytes, None]:
        self._viewers += 1
        self._come.set()
        try:
            yield self._frame
            while True:
                # Who is slow gets the newest one next, and none in between.
                await self._next.wait()
                yield self._frame
        finally:
            self._viewers -= 1

    async def _run(self) -> None:
        while True:
            try:
                await self._tick()
            except Exception:  # noqa: BLE001 - a bug must cost one sample, and be seen
                get_logger("console").exception("the page Live stands still")
            turn, self._next = self._next, asyncio.Event()
            turn.set()
            await self._rest()

    async def _rest(self) -> None:
        """Waits until the next sample is due, which is sooner while somebody looks."""
        await asyncio.sleep(LOOKED_AT_SECONDS)
        self._come.clear()
        if not self._viewers:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._come.wait(), ALONE_SECONDS - LOOKED_AT_SECONDS)

    async def _tick(self) -> None:
        newest = await asyncio.to_thread(self.sampler.sample)
        if self._samples:
            events, pages = (round(_rate(self._samples[-1], newest, name), 2) for name in (_EVENTS, _PAGES))
            self._points.append((round(newest.at, 2), events, pages))
        self._samples.append(newest)
        self._parts = write_parts(self._samples)
        told = {
            "parts": {name: str(html) for name, html in self._parts.items()},
            "points": [[value] for value in self._points[-1]] if self._points else [[], [], []],
        }
        self._frame = b"data: " + msgspec.json.encode(told) + b"\n\n"


def _rate(one: Sample, two: Sample, name: str) -> float:
    grown, seconds = two.values.get(name, 0.0) - one.values.get(name, 0.0), two.at - one.at
    # A clock that was set back says nothing.
    return max(grown, 0.0) / seconds if seconds > 0 else 0.0


def write_parts(samples: Sequence[Sample]) -> dict[str, Html]:
    """Returns the parts of the page that change."""
    newest = samples[-1]
    before = next((one for one in reversed(samples) if newest.at - one.at >= _RATE_SECONDS), samples[0])
    return {
        "figures": _figures(before, newest),
        "alerts": _alerts(newest),
        "funnel": _funnel(newest),
        "readers": _readers(newest),
        "failed": _failed(newest),
    }


def _figures(before: Sample, newest: Sample) -> Html:
    values = newest.values
    failed = sum(newest.failed().values())
    acks = quantile(dict(values), "headrace_collect_ack_seconds", 0.99)
    pages = quantile(dict(values), "headrace_endpoint_page_seconds", 0.99)
    open_ones = sum(alert.state == "open" for alert in newest.alerts)
    total, served = int(values.get(_EVENTS, 0)), int(values.get(_PAGES, 0))
    return figures(
        (
            ("Events a second", format_rate(_rate(before, newest, _EVENTS)), f"{total:,} acknowledged in all"),
            ("Pages a second", format_rate(_rate(before, newest, _PAGES)), f"{served:,} answered in all"),
            ("Clicks to settle", f"{newest.unsettled:,}", "waiting in the topic clicks"),
            ("Failed events", f"{failed:,}", "kept with their reason"),
            ("Until durable", _at_most(acks), "p99 of acknowledgements"),
            ("Until a page", _at_most(pages), "p99 of answers"),
            ("Open alerts", tag("span", open_ones, class_="bad" if open_ones else None), "from the watcher"),
        )
    )


def _at_most(seconds: float | None) -> str:
    return "-" if seconds is None else f"≤ {1000 * seconds:g} ms"


def _alerts(newest: Sample) -> Html:
    open_ones = [alert for alert in newest.alerts if alert.state == "open"]
    closed = [alert for alert in newest.alerts if alert.state == "closed"][-_CLOSED_SHOWN:]
    if not newest.alerts:
        return NOTHING if "watcher" in newest.running else panel("Alerts", note=_UNWATCHED)
    rows = [
        (badge("bad" if alert.state == "open" else "", alert.state), alert.kind, alert.subject,
         put(alert.text, tag("p", alert.advice, class_="note")), when(alert.at_us))
        for alert in (*reversed(open_ones), *reversed(closed))
    ]  # fmt: skip
    note = put(f"{count_of(len(open_ones), 'alert')} open. Each is told once, while it lasts.")
    if "watcher" not in newest.running:
        note = put(note, " ", _UNWATCHED)
    return panel(
        "Alerts", table("Alerts", ("state", "kind", "about", "what was found", "since"), rows, wide=3), note=note
    )


def _funnel(newest: Sample) -> Html:
    counts = [int(newest.values.get(f'headrace_settle_funnel_total{{event="{name}"}}', 0)) for name in FUNNEL]
    if not any(counts):
        note = "No list was viewed yet: open Home, and look at a row for a second."
        return panel("From list to end", note=note)
    rows = []
    for place, (step, count) in enumerate(zip(_STEPS, counts, strict=True)):
        before = counts[place - 1] if place else 0
        rows.append(
            (step, float(count), f"{count:,}" + (f", {100 * count / before:.1f} % of those before" if before else ""))
        )
    drawn = charts.bars(rows, label="How many events of each kind were settled")
    return panel("From list to end", drawn, note="Events settled since the project stands.")


def _readers(newest: Sample) -> Html:
    rows = []
    for role, name, gauge, text in _READERS:
        lag = newest.unsettled if not gauge else int(newest.values.get(gauge, 0))
        runs = role in newest.running
        rows.append((tag("span", name, title=text), _running(runs=runs), lag if runs or not gauge else None))
    heads = ("reader", "state", "records behind")
    return panel("Readers", table("Readers", heads, rows, numbers=(2,)), note="How far each is behind what it reads.")


def _running(*, runs: bool) -> Html:
    return badge("good", "runs") if runs else badge("bad", "stopped")


def _failed(newest: Sample) -> Html:
    found = newest.failed()
    if not found:
        return panel("Failed events", note="None: every event that came could be settled.")
    rows = [(tag("code", name), REASONS[name], count) for name, count in sorted(found.items(), key=lambda one: -one[1])]
    listed = table("Failed events by reason", ("reason", "what it means", "events"), rows, numbers=(2,), wide=1)
    note = put(
        "None of them is lost: ",
        link("look at them", "/tables", sql=_SQL),
        ", mend their cause, then ",
        tag("code", "headrace table failed --replay"),
        ".",
    )
    return panel("Failed events", listed, note=note)

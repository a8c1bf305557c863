"""The demo's live panel: a line for each room, with what it does at this moment."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table

from headrace.base.telemetry import read_values
from headrace.collect.app import CLICKS
from headrace.console.crowd import Crowd
from headrace.events.decision import DECISIONS
from headrace.events.settled import EVENTS, FAILED
from headrace.project import open_project

FRAME_SECONDS = 0.2


@dataclass
class Stage:
    """What stands behind the doors, as an outsider sees it, and what the demo does at this moment."""

    began_at: float
    """When the command began, by the monotonic clock."""
    doing: str = "the doors are open"
    share: float = 0.0
    """How much of the whole play is over, 0 to 1."""
    counts: dict[str, int] = field(default_factory=dict)
    """How many records each topic holds, and `rows` of the lake."""
    models: list[str] = field(default_factory=list)
    gate: str = ""
    trial: str = ""
    killed: list[str] = field(default_factory=list)
    rates: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=6))

    def now(self, doing: str, share: float) -> None:
        """Says what begins."""
        self.doing, self.share = doing, share

    def look(self, folder: Path, stop: threading.Event) -> None:
        """Counts what the topics hold and what was committed to the lake until it is told to stop."""
        with open_project(folder) as project:
            while not stop.wait(FRAME_SECONDS):
                names = set(project.topics.names())
                for name in names & {CLICKS, EVENTS, FAILED, DECISIONS}:
                    self.counts[name] = sum(bound.end for bound in project.topics.bounds(name))
                values = read_values(project.profile.state / "metrics")
                self.counts["rows"] = int(values.get("headrace_sink_rows_total", 0))

    def draw(self, crowd: Crowd) -> RenderableType:
        """Returns the panel as it is now."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", min_width=12)
        table.add_column(overflow="fold")
        for name, text in self._lines(crowd):
            table.add_row(name, text)
        table.add_row(f"{time.monotonic() - self.began_at:.0f} s", self.doing)
        table.add_row("", ProgressBar(total=1.0, completed=self.share, width=40))
        return table

    def _lines(self, crowd: Crowd) -> list[tuple[str, str]]:
        self.rates.append((time.monotonic(), crowd.answered))
        (first_at, first), (last_at, last) = self.rates[0], self.rates[-1]
        rate = (last - first) / (last_at - first_at) if last_at > first_at else 0.0
        there = datetime.fromtimestamp(crowd.clock.now_us() / 1e6, UTC).strftime("%a %H:%M")
        count = self.counts.get
        waiting = max(count(CLICKS, 0) - count(EVENTS, 0) - count(FAILED, 0), 0)
        acknowledged = (
            f"{crowd.collector}  {crowd.answered:,} events acknowledged, {rate:,.0f}/s, "
            f"p50 {crowd.acks.quantile_ms(0.5):.1f} ms, {crowd.refused:,} refused"
        )
        settled = (
            f"{count(CLICKS, 0):,} clicks = {count(EVENTS, 0):,} events + {count(FAILED, 0):,} failed "
            f"+ {waiting:,} waiting or repeats; {count(DECISIONS, 0):,} decisions"
        )
        pages = (
            f"{crowd.endpoint}  {crowd.pages:,} pages, p50 {crowd.page_times.quantile_ms(0.5):.1f} ms, "
            f"p99 {crowd.page_times.quantile_ms(0.99):.1f} ms, {crowd.record.unlogged:,} unlogged"
        )
        lines = [
            ("world", f"{crowd.world.num_visitors:,} visitors, {there} there, an hour a second"),
            ("collect", acknowledged),
            ("topics", settled),
            ("tables", f"{count('rows', 0):,} rows committed"),
            ("models", " · ".join(self.models) or "-"),
            ("endpoints", pages),
            ("experiments", " · ".join(filter(None, (self.gate, self.trial))) or "-"),
        ]
        if self.killed:
            lines.append(("fault", f"kill -9 of {' and '.join(self.killed)}, longest pause {crowd.pause:.2f} s"))
        return lines

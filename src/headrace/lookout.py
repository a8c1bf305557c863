"""The role `watcher`, joined: it looks at what the loop leaves behind, and writes down what is wrong with it.

It only reads: topics without a group, metrics, the notes of the supervisor, the registry, the online store's state and
the disk. It imports neither Arrow nor DuckDB nor Numba, and knows nothing of who may break something on purpose.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from headrace.base.clock import Clock, WorldClock, machine_us
from headrace.base.errors import CallError, HeadraceError, OutsideError, UnavailableError
from headrace.base.telemetry import Metric, Metrics, get_logger, read_values
from headrace.collect.app import CLICKS
from headrace.collect.dimensions import Dimensions
from headrace.collect.settler import GROUP as SETTLER
from headrace.endpoints.serving import find_trials
from headrace.events.decision import DECISIONS, is_decision
from headrace.events.dimension import text_of
from headrace.events.settled import EVENTS, FAILED, is_row
from headrace.experiments.experiment import ARMS, Trial
from headrace.features import Column
from headrace.features.tiles import Row
from headrace.models import open_bundle
from headrace.project import OpenProject
from headrace.topics import Message
from headrace.watch.alert import FILE, KINDS, Alert, Book, Finding, Judge, Now, read_lines
from headrace.watch.arms import Arms
from headrace.watch.drift import Inputs, Scores
from headrace.watch.follow import Follower
from headrace.watch.lag import Freshness, Lag, judge_disk
from headrace.watch.processes import Processes
from headrace.watch.share import Visitors, make_shares
from headrace.watch.skew import Made, Skew, Tally

METRICS = (
    Metric("headrace_watch_alerts_total", "Alerts opened, by kind.", labels={"kind": (*KINDS,)}),
    Metric("headrace_watch_open_alerts", "Alerts that are open, by kind.", "gauge", labels={"kind": (*KINDS,)}),
    Metric("headrace_watch_lag_records", "Events and pages that the watcher has not read yet.", "gauge"),
    Metric("headrace_watch_look_seconds", "Time that the last look took.", "gauge"),
    Metric("headrace_watch_looked_timestamp_seconds", "When it looked last, in seconds since 1970.", "gauge"),
)

LOOK_SECONDS = 0.5
# What lies between two looks counts as this much at most: the machine slept, or everything was stopped.
_WATCHED_US = 2_000_000
_STATE_US = 1_000_000
_MOST_EVENTS = 200_000
_MOST_DECISIONS = 40_000
# A world at 3,600 times our pace is an hour older with each second that its clients wait for a door.
_LATE_US, _LATE_MACHINE_US = 3_600_000_000, 10_000_000
_POST_SECONDS = 3.0
_LOGGER = get_logger("watcher")


def late_us_of(clock: Clock) -> int:
    """Returns how long after it has happened an event comes late, by the project's clock."""
    return max(_LATE_US, int(_LATE_MACHINE_US * clock.rate)) if isinstance(clock, WorldClock) else _LATE_US


class Happened(Row, gc=False):
    """What of a settled event is watched."""

    received_us: int = 0
    visitor: str | None = None


_read_event = msgspec.json.Decoder(Happened).decode
_read_made = msgspec.json.Decoder(Made).decode


class Lookout:
    """Everything that is watched of a project, from one look to the next."""

    def __init__(self, project: OpenProject) -> None:
        self._project = project
        self._late_us = late_us_of(project.clock)
        self._events = Follower(project.topics, EVENTS, most=_MOST_EVENTS)
        self._decisions = Follower(project.topics, DECISIONS, most=_MOST_DECISIONS)
        self._named = [one.name for one in project.declared.dimensions]
        self._dimensions = Dimensions(project.topics, self._named)
        self._columns_of = lru_cache(maxsize=64)(self._find_columns)
        columns = self._all_columns()
        self._tally = Tally(columns)
        self.shares = make_shares(late=f"{self._late_us / 3.6e9:g} h")
        self.skew = Skew(self._columns_of, self._find_attributes)
        self._inputs, self._scores = Inputs(columns), Scores()
        self._processes, self._visitors = Processes(), Visitors()
        self._settler, self._updater = Lag(SETTLER, CLICKS), Lag("updater", EVENTS)
        flush_seconds = project.profile.settings.sink.flush_seconds
        self._tables = {name: Freshness(name, flush_seconds) for name in (EVENTS, DECISIONS, FAILED)}
        self._arms: dict[str, Arms] = {}
        self._trials: dict[str, Trial] = {}
        # What came before the first page is a past that somebody has loaded: all of it is late.
        self._first_page_us: int | None = None if project.declared.pages else 0
        self._counted: dict[str, float] = {}
        self._stated_us: int | None = None
        self._running: dict[str, dict[str, int]] = {}

    @property
    def behind(self) -> int:
        """How many events and pages it has not read yet."""
        return self._events.behind + self._decisions.behind

    @property
    def is_level(self) -> bool:
        """Whether at its last look all but the newest was read: before, what is read is not judged."""
        return self._events.is_level and self._decisions.is_level

    def look(self, now: Now) -> list[Finding]:
        """Returns what is wrong."""
        decided_us = [one.time_us for one in self._decisions.read() if self._take_decision(one)]
        happened_us = [one.time_us for one in self._events.read() if self._take_event(one)]
        self._count({DECISIONS: decided_us, EVENTS: happened_us}, now)
        if self._stated_us is None or now.watched_us - self._stated_us >= _STATE_US:
            self._stated_us = now.watched_us
            self._read_state(now)
        judges: list[Judge] = [self._processes, self._settler, self._updater]
        if self.is_level:
            self._dimensions.refresh()
            self.skew.compare(self._tally, now)
            judges += self._list_readers()
        found = [one for judge in judges for one in judge.judge(now)]
        free_bytes = shutil.disk_usage(self._project.folder).free
        return [*found, *judge_disk(free_bytes, self._project.profile.settings.watch.free_gb * 1e9)]

    def _list_readers(self) -> Iterator[Judge]:
        """Yields the judges of what is read of topics."""
        yield from self.shares.values()
        yield self.skew
        yield self._inputs
        yield self._scores
        if "sink" in self._running:
            yield from self._tables.values()
        # Who comes often is in the newest pages rather, and one arm may bring more of them.
        yield from (
            self._arms[name] for name, trial in self._trials.items() if name in self._arms and self._knows(trial)
        )

    def _knows(self, trial: Trial) -> bool:
        """Returns whether all pages of a trial were read."""
        began = trial.positions.get(DECISIONS, (0,) * len(self._decisions.starts))
        return all(start <= place for start, place in zip(self._decisions.starts, began, strict=False))

    # What is read of topics.

    def _take_event(self, message: Message) -> bool:
        value = message.value or b""
        if not is_row(value, message.headers):
            return False
        try:
            row = _read_event(value)
        except msgspec.MsgspecError:
            return False
        if not self._tally.read[message.partition] and any(self._events.starts):
            self._tally.horizon_us = max(self._tally.horizon_us, row.received_us + self._late_us)
        self._tally.add(row, message.partition)
        at = {"machine_us": message.time_us, "project_us": row.received_us}
        if self._first_page_us is not None and row.received_us >= self._first_page_us:
            late = row.received_us - row.event_us > self._late_us
            self.shares["lateness"].add(late, 1, **at)
            self._inputs.add(row)
        if self._visitors.meet(row.visitor or row.person, row.received_us):
            self.shares["bots"].add(row.bot, 1, **at)
        return True

    def _take_decision(self, message: Message) -> bool:
        value = message.value or b""
        if not is_decision(value):
            return False
        try:
            made = _read_made(value)
        except msgspec.MsgspecError:
            return False
        if self._first_page_us is None:
            self._first_page_us = made.received_us
        if made.visitor and not made.bot:
            if made.trial and made.arm:
                self._find_arms(made.trial).add(made.visitor, made.arm)
            if not made.above and not made.degraded:
                self._scores.add(made.visitor, (made.bundle, made.arm or ""), made.scores, made.received_us)
        self.skew.add(made)
        return True

    # What else the loop leaves behind.

    def _count(self, rows_us: Mapping[str, Sequence[int]], now: Now) -> None:
        values = read_values(self._project.profile.state / "metrics")
        totals = {
            "settled": values.get("headrace_settle_events_total", 0.0),
            "failed": sum(n for name, n in values.items() if name.startswith("headrace_settle_failed_total")),
            "repeats": values.get("headrace_settle_repeats_total", 0.0),
        }
        # A counter that falls has begun anew.
        more = {name: max(n - self._counted.get(name, n), 0.0) for name, n in totals.items()}
        self._counted = totals
        at = {"machine_us": now.machine_us, "project_us": now.project_us}
        bad, whole = int(more["failed"]), int(more["settled"] + more["failed"])
        self.shares["failed"].add(bad, whole, **at)
        self.shares["duplicates"].add(int(more["repeats"]), whole + int(more["repeats"]), **at)
        rows_us = {**rows_us, FAILED: [now.machine_us] * bad}
        for name, table in self._tables.items():
            table.add(rows_us[name], values.get(f'headrace_sink_commits_total{{topic="{name}"}}', 0.0), now)

    def _read_state(self, now: Now) -> None:
        run = self._project.profile.state / "run"
        self._running = read_running(run)
        self._processes.add(self._running, now)
        for path in run.glob("*.failure"):
            with contextlib.suppress(OSError, msgspec.MsgspecError, KeyError):
                found = msgspec.json.decode(path.read_bytes())
                self._processes.add_failure(found["loop"], found["message"], at_us=found["at_us"])
        self._read_positions(now)
        self._trials = {trial.id: trial for trial in find_trials(self._project.registry).values()}
        self._arms = {name: arms for name, arms in self._arms.items() if name in self._trials}

    def _read_positions(self, now: Now) -> None:
        topics = self._project.topics
        saved = {one.position.partition: one.position.offset for one in topics.groups(CLICKS) if one.group == SETTLER}
        if saved:
            self._settler.add([bound.end for bound in topics.bounds(CLICKS)], saved, now)
        state = self._project.online.read_state() if self._project.declared.columns else None
        if state is not None and state.incarnation == topics.describe(EVENTS).incarnation:
            # As far as there are records: on Kafka the ends may be markers of transactions, which nobody reads.
            self._updater.add([*self._events.offsets.values()], dict(enumerate(state.offsets)), now)

    # What judges ask for.

    def _find_arms(self, trial: str) -> Arms:
        """Returns the judge of a trial."""
        if trial not in self._arms:
            weights = {one.id: one.weights for one in find_trials(self._project.registry).values()}
            self._arms[trial] = Arms(trial, ARMS, weights.get(trial, (1.0,) * len(ARMS)))
        return self._arms[trial]

    def _all_columns(self) -> list[Column]:
        found = {column.identity: column for column in self._project.declared.columns}
        for name in dict.fromkeys(one.name for one in self._project.registry.bundles()):
            for fitted in self._project.registry.bundles(name)[:2]:
                found |= {column.identity: column for column in self._columns_of(fitted.hash)}
        return list(found.values())

    def _find_columns(self, bundle: str) -> Sequence[Column]:
        try:
            return open_bundle(self._project.registry.load(bundle)).columns
        except HeadraceError as error:
            _LOGGER.warning("bundle %s cannot be looked into: %s", bundle, error)
            return ()

    def _find_attributes(self, dimension: str, item: str, end: int) -> Mapping[str, str | None]:
        if dimension and dimension not in self._named:
            raise LookupError(dimension)
        known = self._dimensions.history(dimension).at(item, end) if dimension and end else None
        return {f"@{name}": text_of(value) for name, value in (known or {}).items()}


def read_running(folder: Path) -> dict[str, dict[str, int]]:
    """Returns the process ids of each role that an `up` on this machine runs, by the names of its processes."""
    found = {}
    for path in folder.glob("*.json"):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            if _is_held(path.with_suffix(".lock")):
                state: dict[str, Any] = msgspec.json.decode(path.read_bytes())
                found[state["role"]] = dict(state["pids"])
    return found


def _is_held(lock: Path) -> bool:
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def tell_instants(clock: Clock, *, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> Iterator[Now]:
    """Yields the instant of each look."""
    watched_us, before_ns = 0, monotonic_ns()
    while True:
        at_ns = monotonic_ns()
        watched_us += min((at_ns - before_ns) // 1000, _WATCHED_US)
        before_ns = at_ns
        yield Now(machine_us(), clock.now_us(), watched_us)


def look_out(project: OpenProject, turn: threading.Lock, stop: threading.Event) -> None:  # noqa: ARG001 - it starts nothing
    """Looks twice a second, until it is told to stop."""
    try:
        _look_on(project, stop)
    except OSError as error:
        raise UnavailableError(f"the watcher cannot read or write what it needs: {error}") from error


def _look_on(project: OpenProject, stop: threading.Event) -> None:
    state = project.profile.state
    metrics = Metrics(METRICS, folder=state / "metrics", process="watcher")
    book, lookout = Book(state / FILE), Lookout(project)
    for now in tell_instants(project.clock):
        if stop.is_set():
            return
        began_at = time.monotonic()
        found = lookout.look(now)
        changed = book.note(found, now, is_whole=lookout.is_level)
        for alert in changed:
            _tell(alert)
        _measure(metrics, changed, book)
        metrics.count("headrace_watch_lag_records").set(lookout.behind)
        metrics.count("headrace_watch_look_seconds").set(time.monotonic() - began_at)
        metrics.count("headrace_watch_looked_timestamp_seconds").set(now.machine_us / 1e6)
        if lookout.is_level:
            stop.wait(LOOK_SECONDS)


def _measure(metrics: Metrics, changed: Iterable[Alert], book: Book) -> None:
    for alert in changed:
        if alert.state == "open":
            metrics.count("headrace_watch_alerts_total", alert.kind).add()
    standing = Counter(alert.kind for alert in book.standing)
    for kind in KINDS:
        metrics.count("headrace_watch_open_alerts", kind).set(standing[kind])


def _tell(alert: Alert) -> None:
    if alert.state == "open":
        _LOGGER.warning("alert %s, %s: %s. %s", alert.id, alert.kind, alert.text, alert.advice)
    else:
        _LOGGER.info("alert %s, %s of %s, is over", alert.id, alert.kind, alert.subject)


# The webhook.


def post_alerts(project: OpenProject, turn: threading.Lock, stop: threading.Event) -> None:  # noqa: ARG001
    """Posts each line of the book to the webhook, in order, until it is told to stop; what fails is begun anew.

    The book itself is the queue: how far it was posted stands beside it, so that a restart leaves nothing out.
    """
    url = read_webhook(project)
    if not url:
        stop.wait()
        return
    book = project.profile.state / FILE
    note = book.with_suffix(".posted")
    if note.exists():
        place = int(note.read_text(encoding="ascii") or "0")
    else:
        # What went wrong before somebody wanted to be told is over for him.
        place = book.stat().st_size if book.exists() else 0
        _write_note(note, place)
    while not stop.is_set():
        for alert, end in read_lines(book, place):
            _post(url, alert)
            place = end
            _write_note(note, place)
        stop.wait(LOOK_SECONDS)


def read_webhook(project: OpenProject) -> str:
    """Returns where alerts are posted, nothing for nowhere; `env:NAME` stands for what that variable holds."""
    url = project.profile.settings.watch.webhook
    if url.startswith("env:"):
        name = url.removeprefix("env:")
        if name not in os.environ:
            raise CallError(f"[watch] webhook = {url!r} needs the environment variable {name}, which is not set")
        url = os.environ[name]
    if url and not url.startswith(("http://", "https://")):
        raise CallError("[watch] webhook: write http://..., https://... or env:NAME")
    return url


def _post(url: str, alert: Alert) -> None:
    request = urllib.request.Request(  # noqa: S310 - checked above
        url, msgspec.json.encode(alert), {"content-type": "application/json", "user-agent": "headrace"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_POST_SECONDS):  # noqa: S310 - the same
            return
    except urllib.error.HTTPError as error:
        error.close()
        # Its address may hold a secret.
        raise UnavailableError(f"the webhook answers {error.code} to alert {alert.id}; trying on") from error
    except OSError as error:
        raise OutsideError(f"the webhook takes no alert: {error}; trying on") from error
    except (http.client.HTTPException, ValueError) as error:
        # What it says may hold the address.
        raise OutsideError(f"the webhook takes no alert ({type(error).__name__}); trying on") from error


def _write_note(path: Path, place: int) -> None:
    temporary = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(str(place), encoding="ascii")
        temporary.replace(path)
    except OSError as error:
        # A full disk is what somebody wants to hear of, once.
        _LOGGER.warning("how far alerts were posted cannot be noted: %s", error)

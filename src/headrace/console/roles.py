"""headrace up and status: a project's roles, started, supervised and looked at."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import msgspec

from headrace.base.clock import WorldClock, machine_us
from headrace.base.errors import OutsideError, UnavailableError, unknown_name
from headrace.base.process import Program, Supervisor
from headrace.base.telemetry import get_logger, quantile, read_values, start_logging
from headrace.collect.app import CLICKS
from headrace.collect.settler import GROUP as SETTLER
from headrace.console.acts import describe_audit, show_audit
from headrace.console.guard import refuse_open_door
from headrace.console.show import format_bytes, format_seconds, print_lines, print_table, shown
from headrace.console.state import is_running, read_state, sole, write_state
from headrace.console.topics import describe, list_groups
from headrace.events.settled import EVENTS, FAILED
from headrace.project import (
    DOORS,
    ROLES,
    STREAM,
    WORK,
    Door,
    OpenProject,
    door_programs,
    open_door,
    open_project,
    stream_program,
    work_program,
)
from headrace.project import FILE as PROJECT_FILE
from headrace.watch.alert import FILE as ALERTS
from headrace.watch.alert import read_alerts

_NOTE_SECONDS = 1.0
# What fails is begun anew after 10 s at most, and takes a few to fail again.
_FAILING_SECONDS = 15.0


def up(given: argparse.Namespace) -> None:
    """Runs roles until Ctrl-C or SIGTERM."""
    for role in given.roles:
        if role not in ROLES:
            raise unknown_name("role", role, ROLES)
    start_logging()
    with open_project(given.project, profile=given.profile) as project:
        roles = given.roles or _find_roles(project)
        if {"settler", "endpoint", "console"} & set(roles):
            # What is wrong in project.py is said here, once.
            _ = project.declared
        supervise(project, roles, announce=lambda doors: _announce(project, doors, as_json=given.json))


def _find_roles(project: OpenProject) -> list[str]:
    """Returns the roles that a project has work for: without a page there is nothing to serve and nothing to look at.

    Their doors would only take the ports from the project beside it.
    """
    declared = project.declared
    needs = {
        "endpoint": declared.pages,
        "console": declared.pages,
        "updater": declared.columns,
        "runner": declared.pipelines,
        "watcher": declared.pages,
    }
    return [role for role in ROLES if needs.get(role, True)]


def supervise(
    project: OpenProject,
    roles: Sequence[str],
    *,
    announce: Callable[[list[Door]], None],
    is_over: Callable[[], bool] = lambda: False,
    log: str = "",
) -> None:
    """Runs roles until SIGTERM or until `is_over`; `announce` is called once all of them are ready.

    The main thread's alone: signals come to it. What the roles log goes to `log`, or to this process's own stderr.
    """
    with contextlib.ExitStack() as stack:
        for role in roles:
            stack.enter_context(sole(project, role))
        with OpenProject(project.folder, project.profile) as probe:
            # What is wrong is said once and clearly here, rather than again and again by every worker.
            probe.make_topics()
        if "console" in roles:
            refuse_open_door(project)
        doors = [open_door(project, role) for role in roles if role in DOORS]
        crews = door_programs(project, doors) if doors else {}
        # After the doors: the first to come is the writer of the topics' file.
        names = tuple(dict.fromkeys(one.name for crew in crews.values() for one in crew))
        for kind, make in ((STREAM, stream_program), (WORK, work_program)):
            chosen = [role for role in roles if role in kind]
            if chosen:
                program = make(project, chosen, after=names)
                crews |= {role: [program] for role in chosen}
        crews = {role: [replace(program, log=log) for program in crew] for role, crew in crews.items()}
        ticker = _Ticker(project, doors, crews, announce=lambda: announce(doors))
        ticker.supervisor.run(
            tick=ticker.tick,
            is_over=is_over,
            # A door that nobody serves any more must refuse, not queue.
            stopping=lambda: _close_doors(doors),
        )


def _close_doors(doors: list[Door]) -> None:
    for door in doors:
        door.listener.close()


class _Ticker:
    """What a supervisor does beside watching: it announces once, and notes who runs and the world's time."""

    def __init__(
        self, project: OpenProject, doors: list[Door], crews: dict[str, list[Program]], *, announce: Callable[[], None]
    ) -> None:
        self._world = project.clock if isinstance(project.clock, WorldClock) else None
        self._project = project
        programs = {program.name: program for crew in crews.values() for program in crew}
        self.supervisor = Supervisor(list(programs.values()), changed=self._note_change)
        self._urls = {door.role: door.url for door in doors}
        self._crews = crews
        self._announce: Callable[[], None] | None = announce
        self._is_changed = False
        self._is_failing = False
        self._noted_at = time.monotonic()
        if self._world is not None:
            try:
                self._world.resume()
            except OSError as error:
                raise UnavailableError(f"cannot note the world's time: {error}") from error

    def tick(self) -> None:
        """Does what is due; what a full disk refuses is tried again at the next tick."""
        try:
            self._write()
        except OSError as error:
            if not self._is_failing:
                get_logger("up").warning("cannot write into %s: %s; trying on", self._project.profile.state, error)
            self._is_failing = True
        if self._announce is not None and self.supervisor.all_ready():
            self._announce()
            self._announce = None

    def _note_change(self) -> None:
        self._is_changed = True

    def _write(self) -> None:
        if self._is_changed:
            for role, crew in self._crews.items():
                pids = self.supervisor.pids()
                own = {program.name: pids[program.name] for program in crew if program.name in pids}
                write_state(self._project, role, self._urls.get(role), own)
            self._is_changed = self._is_failing = False
        if self._world is not None and time.monotonic() - self._noted_at > _NOTE_SECONDS:
            self._world.note()
            self._noted_at = time.monotonic()
            self._is_failing = False


def _announce(project: OpenProject, doors: list[Door], *, as_json: bool) -> None:
    if as_json:
        print_lines({"role": door.role, "url": door.url} for door in doors)
        return
    for door in doors:
        print(f"{door.role:<10} {door.url}", flush=True)
    print(f"profile    {project.profile.name} ({project.profile.url('topics')})", flush=True)
    for door in doors:
        if door.role == "collector":
            event = '{"anonymousId":"ann","event":"Product Clicked","messageId":"1"}'
            print(f"try        curl -u dev: {door.url}/v1/track -d '{event}'", flush=True)
        if door.role == "endpoint" and not project.declared.pages:
            print(f"pages      none: project {project.declared.name!r} declares no Page", flush=True)
        elif door.role == "endpoint":
            ask = f'{{"page":"{project.declared.pages[0].name}","anonymous_id":"ann"}}'
            print(f"try        curl {door.url}/v1/page -d '{ask}'", flush=True)
    print("stop       Ctrl-C", flush=True)


def status(given: argparse.Namespace) -> int:
    """Says what runs, how far readers lag, and what the disk holds; 1 if the audit log is not as it was written."""
    with open_project(given.project, profile=given.profile) as project:
        found = _Status(project)
    if given.json:
        print_lines([{"kind": "role", **one} for one in found.roles])
        print_lines([{"kind": "failure", **one} for one in found.failures])
        print_lines([{"kind": "topic", **one} for one in found.topics])
        print_lines([{"kind": "group", **one} for one in found.groups])
        print_lines([{"kind": "table", **one} for one in found.tables])
        print_lines([{"kind": "stream", **found.stream}])
        print_lines([{"kind": "disk", **found.disk}])
        print_lines([{**msgspec.to_builtins(one), "kind": "alert", "about": one.kind} for one in found.alerts])
        print_lines([{"kind": "audit", **found.audit}])
    else:
        _show_status(found)
    if found.error is not None:
        raise found.error
    return 0 if found.audit["whole"] else 1


class _Status:
    """What a project does at this moment, as far as it can be told."""

    def __init__(self, project: OpenProject) -> None:
        self.roles = [_role_status(project, role) for role in ROLES]
        self.failures = [one for role in ROLES if is_running(project, role) for one in _failures(project, role)]
        self.topics: list[dict[str, Any]] = []
        self.groups: list[dict[str, Any]] = []
        self.tables: list[dict[str, Any]] = []
        self.uncounted: tuple[int, float] | None = None
        self.error: OutsideError | None = None
        try:
            names = project.topics.names()
            self.topics = [describe(project, name) for name in names]
            self.groups = [group for name in names for group in list_groups(project, name)]
            self.tables = _read_tables(project)
            self.uncounted = _find_uncounted(project)
        except OutsideError as error:
            # The roles' own reasons are told all the same: now they are needed.
            self.error = error
        self.stream = self._read_stream()
        self.disk = _disk(project)
        self.alerts = [one for one in read_alerts(project.profile.state / ALERTS) if one.state == "open"]
        self.audit = describe_audit(project.profile.state)

    def _read_stream(self) -> dict[str, Any]:
        clicks = next((topic for topic in self.topics if topic["topic"] == CLICKS), None)
        positions = {
            g["partition"]: g["position"] for g in self.groups if (g["topic"], g["group"]) == (CLICKS, SETTLER)
        }
        bounds = zip(clicks["start"], clicks["end"], strict=True) if clicks else ()
        failed = next((topic for topic in self.topics if topic["topic"] == FAILED), None)
        return {
            "unsettled": sum(max(end - positions.get(p, start), 0) for p, (start, end) in enumerate(bounds)),
            "failed": failed["records"] if failed else 0,
            "uncounted": self.uncounted[0] if self.uncounted else None,
            "uncounted_seconds": self.uncounted[1] if self.uncounted else None,
        }


def _read_tables(project: OpenProject) -> list[dict[str, Any]]:
    # Imported when asked for: Arrow and Delta would cost `headrace up` 300 ms at start and 60 MB.
    list_table = import_module("headrace.console.tables").describe
    tables: list[dict[str, Any]] = [list_table(project, name) for name in project.tables.names()]
    now = machine_us()
    for table in tables:
        table["age_seconds"] = max(now - table["newest_us"], 0) / 1e6 if table["newest_us"] else None
    return tables


def _find_uncounted(project: OpenProject) -> tuple[int, float] | None:
    """Returns how many records of `events` the online store lacks, and how old the oldest of them is.

    None if no store was made yet, or if it counts in another topic: then the updater's failure says what to do.
    """
    state = project.online.read_state()
    if state is None or EVENTS not in project.topics.names():
        return None
    topic = project.topic(EVENTS)
    if topic.describe().incarnation != state.incarnation:
        return None
    bounds = topic.bounds()
    places = {p: max(offset, bounds[p].start) for p, offset in enumerate(state.offsets)}
    # On Kafka nothing but the marker of a transaction may stand before the end.
    firsts = [one for p, offset in places.items() for one in topic.read_to_ends({p: offset}, max_records=1)]
    records = sum(bounds[one.partition].end - places[one.partition] for one in firsts)
    oldest_us = min((one.time_us for one in firsts), default=None)
    return records, 0.0 if oldest_us is None else max(machine_us() - oldest_us, 0) / 1e6


def _show_status(found: _Status) -> None:
    reasons = {one["role"]: one["message"] for one in found.failures}
    rows = [(r["role"], r["state"], r["url"] or "-", ", ".join(map(str, r["pids"])) or "-") for r in found.roles]
    print_table(("role", "state", "url", "pids"), rows)
    for role, reason in reasons.items():
        print(f"{role:<10} is failing: {shown(reason)}")
    for role in found.roles:
        for text in _role_texts(role):
            print(f"{role['role']:<10} {shown(text)}")
    print()
    print_table(
        ("topic", "partitions", "records"),
        [(t["topic"], t["partitions"], t["records"]) for t in found.topics],
        empty="no topics yet",
    )
    if found.groups:
        print()
        print_table(
            ("group", "topic", "partition", "lag"),
            [(g["group"], g["topic"], g["partition"], g["lag"]) for g in found.groups],
        )
    _show_stream(found)
    disk = found.disk
    print(
        f"\ndisk       {format_bytes(disk['used_bytes'])} used by the project, {format_bytes(disk['free_bytes'])} free"
    )
    for alert in found.alerts:
        print(f"alert      {alert.kind}: {shown(alert.text)}. {shown(alert.advice)}")
    watches = any(role["role"] == "watcher" and role["pids"] for role in found.roles)
    if found.alerts and not watches:
        print("           nobody watches now: this is what was open when the watcher ended")
    show_audit(found.audit)


def _role_texts(role: dict[str, Any]) -> Iterator[str]:
    """Yields what a door has done, and why it is not ready."""
    for count, p99, text in (
        ("events", "ack_p99_seconds", "events acknowledged, ack"),
        ("pages", "page_p99_seconds", "pages answered,"),
    ):
        if role[p99] is not None:
            yield f"{role[count]:,} {text} p99 ≤ {role[p99] * 1000:g} ms"
    for reason in role["reasons"]:
        yield f"is not ready: {reason}"


def _show_stream(found: _Status) -> None:
    if found.tables:
        print()
        print_table(
            ("table", "rows", "lag", "newest commit"),
            [
                (
                    t["table"],
                    "?" if t["rows"] is None else t["rows"],
                    "-" if t["lag"] is None else t["lag"],
                    "-" if t["age_seconds"] is None else f"{format_seconds(t['age_seconds'])} ago",
                )
                for t in found.tables
            ],
        )
    if found.topics:
        stream = found.stream
        print(f"\nsettler    {stream['unsettled']:,} clicks to settle")
        if found.uncounted is not None:
            records, seconds = found.uncounted
            oldest = f", the oldest {format_seconds(seconds)} old" if records else ""
            print(f"updater    {records:,} events to count online{oldest}")
        print(f"failed     {stream['failed']:,} events, see: headrace table failed --group")


def _failures(project: OpenProject, role: str) -> list[dict[str, Any]]:
    """Returns why loops of a role stand still: what fails is begun anew, and noted, at least every 10 s."""
    found = []
    loops = [*(STREAM | WORK).get(role, ())]
    if role == "sink" and (project.folder / PROJECT_FILE).is_file():
        loops += [f"sink-{dimension.name}" for dimension in project.declared.dimensions]
    for loop in loops:
        with contextlib.suppress(OSError, ValueError):
            failure = json.loads((project.profile.state / "run" / f"{loop}.failure").read_text(encoding="utf-8"))
            if machine_us() - failure["at_us"] < _FAILING_SECONDS * 1e6:
                found.append({"role": role, **failure})
    return found


def _role_status(project: OpenProject, role: str) -> dict[str, Any]:
    stopped: dict[str, Any] = {
        "role": role,
        "state": "stopped",
        "url": None,
        "pids": [],
        "reasons": [],
        "events": 0,
        "ack_p99_seconds": None,
        "pages": 0,
        "page_p99_seconds": None,
    }
    if not is_running(project, role):
        return stopped
    try:
        state = read_state(project, role)
    except (OSError, ValueError):
        return {**stopped, "state": "starting"}
    pids = [state["supervisor"], *state["pids"].values()]
    if role not in DOORS:
        return {**stopped, "state": "failing" if _failures(project, role) else "ready", "pids": pids}
    reasons = _find_reasons(state["url"])
    door = {"state": "not ready" if reasons else "ready", "url": state["url"], "pids": pids, "reasons": reasons}
    return {**stopped, **door, **_read_work(project, role)}


def _read_work(project: OpenProject, role: str) -> dict[str, Any]:
    """Returns what a door has done since the project stands."""
    values = read_values(project.profile.state / "metrics")
    if role == "collector":
        events, p99 = (
            values.get("headrace_collect_events_total", 0),
            quantile(values, "headrace_collect_ack_seconds", 0.99),
        )
        return {"events": int(events), "ack_p99_seconds": p99}
    if role == "endpoint":
        pages, p99 = (
            values.get('headrace_endpoint_requests_total{status="200"}', 0),
            quantile(values, "headrace_endpoint_page_seconds", 0.99),
        )
        return {"pages": int(pages), "page_p99_seconds": p99}
    return {}


def _find_reasons(url: str) -> list[str]:
    """Returns why a door is not ready, nothing if it is."""
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=1):  # noqa: S310 - our own loopback door
            return []
    except urllib.error.HTTPError as error:
        with error, contextlib.suppress(OSError, ValueError):
            reasons: list[str] = json.loads(error.read())["reasons"]
            return reasons
        return [f"it answers {error.code}"]
    except OSError as error:
        return [f"nobody answers at {url}: {error}"]


def _disk(project: OpenProject) -> dict[str, int]:
    used = sum(path.stat().st_size for path in project.profile.state.rglob("*") if path.is_file())
    return {"used_bytes": used, "free_bytes": shutil.disk_usage(project.folder).free}

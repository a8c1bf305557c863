"""headrace init, up and status: a project's roles, started, supervised and looked at."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shlex
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from headrace.base.clock import WorldClock, machine_us
from headrace.base.errors import CallError, OutsideError, UnavailableError, unknown_name
from headrace.base.process import Program, Supervisor
from headrace.base.telemetry import get_logger, quantile, read_values, start_logging
from headrace.collect.app import CLICKS
from headrace.collect.keys import DEV_KEY, hash_key
from headrace.collect.settler import GROUP as SETTLER
from headrace.console.show import format_bytes, format_seconds, print_lines, print_table, shown
from headrace.console.topics import describe, list_groups
from headrace.events.settled import FAILED
from headrace.profile import FILE as PROFILE_FILE
from headrace.project import (
    DOORS,
    ROLES,
    STREAM,
    Door,
    OpenProject,
    door_programs,
    open_door,
    open_project,
    stream_program,
)
from headrace.project import FILE as PROJECT_FILE

_NOTE_SECONDS = 1.0
# What fails is begun anew after 10 s at most, and takes a few to fail again.
_FAILING_SECONDS = 15.0

_PROJECT = '''"""The project {name}: what it shows, and how that is tested. `headrace up` runs it."""

from headrace import Carousel, Event, Experiment, Metric, Page, Project
from headrace.models import popularity, taste

views = Event("Product List Viewed", item="products[].product_id")
clicks = Event("Product Clicked", item="product_id")

ctr = Metric.ratio("ctr", clicks, views, within="30m")
popular = popularity("popular", clicks, half_life="3d")
tastes = taste("tastes", clicks, base=popular)

home = Page("home", per_row=10, explore=0.1, fallback=popular, carousels=(
    Carousel("For you", candidates=(popular,), rank=tastes),
))
trial = Experiment("taste-home", on=home, goal=ctr, mde=0.25, power=0.8)

project = Project("{name}", pages=(home,), experiments=(trial,))
'''

_EMPTY = '''"""The project {name}. `headrace up` runs it; docs/tutorial.md goes on from here."""

from headrace import Project

project = Project("{name}")
'''

_TOML = """# Where everything lives. The project in Python stays the same in every profile.
[profile.laptop]
topics = "sqlite:///.headrace/topics"
tables = "file:///.headrace/lake"
clock = "{clock}"

[profile.cluster]
topics = "kafka://127.0.0.1:9092"
tables = "hdfs://127.0.0.1:8020/lake"
clock = "real://"

[collect]
host = "127.0.0.1"
port = {ports[0]}
workers = 1

[endpoint]
port = {ports[1]}

[console]
port = {ports[2]}

[sink]
flush_seconds = {flush_seconds}

# Write keys, hashed. `dev` is known to everybody: it works on this machine only.
[keys]
dev = "{dev}"
"""


def init(given: argparse.Namespace) -> None:
    """Writes the smallest useful project."""
    folder = Path(given.dir)
    write_project(folder, empty=given.empty)
    print(f"{folder / PROJECT_FILE}\n{folder / PROFILE_FILE}\n")
    print(f"next:\n  cd {shlex.quote(str(folder))}\n  headrace up")


def write_project(
    folder: Path,
    *,
    empty: bool = False,
    ports: tuple[int, int, int] = (7070, 7071, 7072),
    clock: str = "real://",
    flush_seconds: float = 5,
) -> None:
    """Writes project.py and headrace.toml; refuses to overwrite either."""
    for name in (PROJECT_FILE, PROFILE_FILE):
        if (folder / name).exists():
            raise CallError(f"{str(folder / name)!r} stands already; choose another folder")
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in folder.absolute().name).strip("-_") or "project"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PROJECT_FILE).write_text((_EMPTY if empty else _PROJECT).format(name=name), encoding="utf-8")
        (folder / PROFILE_FILE).write_text(
            _TOML.format(ports=ports, clock=clock, dev=hash_key(DEV_KEY), flush_seconds=flush_seconds), encoding="utf-8"
        )
    except OSError as error:
        raise CallError(f"cannot write into {str(folder)!r}: {error.strerror}") from error


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
    return [role for role in ROLES if role not in ("endpoint", "console") or project.declared.pages]


def supervise(project: OpenProject, roles: Sequence[str], *, announce: Callable[[list[Door]], None]) -> None:
    """Runs roles until SIGTERM; `announce` is called once all of them are ready."""
    with contextlib.ExitStack() as stack:
        for role in roles:
            stack.enter_context(_sole(project, role))
        with OpenProject(project.folder, project.profile) as probe:
            # What is wrong is said once and clearly here, rather than again and again by every worker.
            probe.make_topics()
        doors = [open_door(project, role) for role in roles if role in DOORS]
        crews = door_programs(project, doors) if doors else {}
        stream = [role for role in roles if role in STREAM]
        if stream:
            # After the doors: the first to come is the writer of the topics' file.
            names = dict.fromkeys(one.name for crew in crews.values() for one in crew)
            program = stream_program(project, stream, after=tuple(names))
            crews |= {role: [program] for role in stream}
        ticker = _Ticker(project, doors, crews, announce=lambda: announce(doors))
        ticker.supervisor.run(
            tick=ticker.tick,
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
                _write_state(self._project, role, self._urls.get(role), own)
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


def _state_path(project: OpenProject, role: str) -> Path:
    return project.profile.state / "run" / f"{role}.json"


def _write_state(project: OpenProject, role: str, url: str | None, pids: dict[str, int]) -> None:
    path = _state_path(project, role)
    state = {"role": role, "url": url, "supervisor": os.getpid(), "pids": pids}
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(state), encoding="utf-8")
    temporary.replace(path)


def read_state(project: OpenProject, role: str) -> dict[str, Any]:
    """Returns what the supervisor of a role wrote down last: its url and process ids."""
    state: dict[str, Any] = json.loads(_state_path(project, role).read_text(encoding="utf-8"))
    return state


@contextlib.contextmanager
def _sole(project: OpenProject, role: str) -> Iterator[None]:
    """Holds the role's lock: a second `up` of the same role would fight over its door."""
    path = _state_path(project, role).with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CallError(f"role {role!r} of {str(project.folder)!r} runs already. See: headrace status") from error
        yield


def is_running(project: OpenProject, role: str) -> bool:
    """Returns whether an `up` on this machine runs a role of the project."""
    path = _state_path(project, role).with_suffix(".lock")
    try:
        with path.open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def status(given: argparse.Namespace) -> None:
    """Says what runs, how far readers lag, and what the disk holds."""
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
    else:
        _show_status(found)
    if found.error is not None:
        raise found.error


class _Status:
    """What a project does at this moment, as far as it can be told."""

    def __init__(self, project: OpenProject) -> None:
        self.roles = [_role_status(project, role) for role in ROLES]
        self.failures = [one for role in ROLES if is_running(project, role) for one in _failures(project, role)]
        self.topics: list[dict[str, Any]] = []
        self.groups: list[dict[str, Any]] = []
        self.tables: list[dict[str, Any]] = []
        self.error: OutsideError | None = None
        try:
            names = project.topics.names()
            self.topics = [describe(project, name) for name in names]
            self.groups = [group for name in names for group in list_groups(project, name)]
            self.tables = _read_tables(project)
        except OutsideError as error:
            # The roles' own reasons are told all the same: now they are needed.
            self.error = error
        self.stream = self._read_stream()
        self.disk = _disk(project)

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
        }


def _read_tables(project: OpenProject) -> list[dict[str, Any]]:
    # Imported when asked for: Arrow and Delta would cost `headrace up` 300 ms at start and 60 MB.
    list_table = import_module("headrace.console.tables").describe
    tables: list[dict[str, Any]] = [list_table(project, name) for name in project.tables.names()]
    now = machine_us()
    for table in tables:
        table["age_seconds"] = max(now - table["newest_us"], 0) / 1e6 if table["newest_us"] else None
    return tables


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
        print(f"failed     {stream['failed']:,} events, see: headrace table failed --group")


def _failures(project: OpenProject, role: str) -> list[dict[str, Any]]:
    """Returns why loops of a role stand still: what fails is begun anew, and noted, at least every 10 s."""
    found = []
    for loop in STREAM.get(role, ()):
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

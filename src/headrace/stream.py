"""The roles of the stream, joined: settler, sinks and keeper, with the tables that they fill.

Apart from project.py, so that the doors need neither Arrow nor Delta.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial

import msgspec

from headrace.base.clock import machine_us
from headrace.base.errors import OutsideError
from headrace.base.process import Life, Loops
from headrace.base.telemetry import Metrics, get_logger
from headrace.collect.app import CLICKS
from headrace.collect.load import make_dimension
from headrace.collect.settler import GROUP, Settler
from headrace.collect.settler import METRICS as SETTLE_METRICS
from headrace.endpoints.serving import TRIAL
from headrace.events.decision import DECISIONS, Decision, decode_decision, is_decision
from headrace.events.dimension import Dimension, Member, decode_member, is_member
from headrace.events.settled import (
    EVENTS,
    FAILED,
    PROGRESS_HEADERS,
    FailedEvent,
    SettledEvent,
    decode_failed,
    decode_settled,
    is_ours,
)
from headrace.experiments.experiment import decode_trial
from headrace.experiments.promotion import CHAMPION, decode_champion
from headrace.features import Column
from headrace.features.updater import METRICS as UPDATE_METRICS
from headrace.features.updater import Sources, Updater
from headrace.project import STREAM, OpenProject, note_failure, open_project
from headrace.tables import Table
from headrace.tables.codec import Codec, make_codec
from headrace.tables.keeper import FAR, Care, Keeper, day_before
from headrace.tables.keeper import METRICS as KEEPER_METRICS
from headrace.tables.sink import INCARNATION, TOPIC, Flush, Sink
from headrace.tables.sink import METRICS as SINK_METRICS
from headrace.topics import Topic

CODECS = {
    EVENTS: make_codec(
        SettledEvent,
        decode_settled,
        without=("version", "session_first_us", "session_last_us"),
        sort_by="event_us",
        ours=(is_ours, PROGRESS_HEADERS),
    ),
    FAILED: make_codec(FailedEvent, decode_failed, without=("version",), ours=(is_ours, PROGRESS_HEADERS)),
    DECISIONS: make_codec(Decision, decode_decision, without=("version",), ours=(is_decision, None)),
}
"""The topics that have a table, and how their records become rows."""

_MEMBERS = make_codec(Member, decode_member, without=("version",), ours=(is_member, None))

METRICS = (*SETTLE_METRICS, *SINK_METRICS, *KEEPER_METRICS, *UPDATE_METRICS)

_DESCRIPTIONS = {
    EVENTS: "What happened: each event once, typed, in its session, at its true time.",
    DECISIONS: "What was shown to whom, and by which chances: one row for each page answered.",
    FAILED: "What could not be settled, with its reason and all that a replay needs.",
}
_DESCRIPTION = "What is known of each member, and from which offset on: the one with the highest offset holds."


def codec_of(topic: str) -> Codec:
    """Returns how the records of a topic become rows; what is none of ours is a dimension."""
    return CODECS.get(topic, _MEMBERS)


def list_dimensions(project: OpenProject) -> dict[str, Dimension]:
    """Returns the declared dimensions by name; none without a project file, as a role in a container may run."""
    return {event.of.name: event.of for event in project.events if event.of is not None}


def make_table(project: OpenProject, name: str) -> Table:
    """Returns the table of a topic, made of what that topic is now if it does not stand."""
    if name in project.tables.names():
        return project.tables.open(name)
    properties = {INCARNATION: project.topics.describe(name).incarnation, TOPIC: name}
    description = _DESCRIPTIONS.get(name, _DESCRIPTION)
    return project.tables.create(name, codec_of(name).schema, description=description, properties=properties)


def tail_offsets(project: OpenProject, topic: Topic) -> dict[int, int]:
    """Returns where each partition of a topic goes on for whoever has read its table."""
    starts = {p: bound.start for p, bound in enumerate(topic.bounds())}
    if topic.name not in project.tables.names():
        return starts
    table, incarnation = project.tables.open(topic.name), topic.describe().incarnation
    if table.properties.get(INCARNATION) != incarnation:
        return starts
    return {p: max(start, table.position(f"{incarnation}/{p}") or 0) for p, start in starts.items()}


def settled_offsets(project: OpenProject) -> dict[int, int]:
    """Returns where the settler goes on in each partition of `clicks`."""
    saved = {one.position.partition: one.position.offset for one in project.topics.groups(CLICKS) if one.group == GROUP}
    return {p: max(bound.start, saved.get(p, 0)) for p, bound in enumerate(project.topics.bounds(CLICKS))}


def run_stream(life: Life, *, folder: str, profile: str, roles: Sequence[str], name: str) -> None:
    """Runs roles of the stream in this process until it is told to stop."""
    with open_project(folder, profile=profile) as project:
        metrics = Metrics(METRICS, folder=project.profile.state / "metrics", process=name)
        names = [loop for role in roles for loop in STREAM[role]]
        if "sink" in roles:
            names += [f"sink-{name}" for name in list_dimensions(project)]
        loops = {loop: partial(_run_loop, folder, profile, loop, metrics) for loop in names}
        Loops(loops, noted=partial(note_failure, project)).run(life)


def _run_loop(folder: str, profile: str, loop: str, metrics: Metrics, stop: threading.Event) -> None:
    # Each with backends of its own: what one has broken, the others do not share.
    with open_project(folder, profile=profile) as project:
        project.make_topics()
        run = LOOPS.get(loop) or partial(_run_sink, topic=loop.removeprefix("sink-"))
        run(project, metrics, stop)


def _run_settler(project: OpenProject, metrics: Metrics, stop: threading.Event) -> None:
    folder = project.profile.state / "settler"
    Settler(project.topics, project.rules, folder, member=project.member, metrics=metrics).run(stop)


def _run_sink(project: OpenProject, metrics: Metrics, stop: threading.Event, *, topic: str) -> None:
    flush = Flush(seconds=project.profile.settings.sink.flush_seconds)
    if topic not in CODECS:
        make_dimension(project.topics, list_dimensions(project)[topic])
    table = make_table(project, topic)
    Sink(project.topics, topic, table, codec_of(topic), member=(project.member, flush), metrics=metrics).run(stop)


def _run_keeper(project: OpenProject, metrics: Metrics, stop: threading.Event) -> None:
    def oldest_day(name: str) -> date | None:
        days = project.profile.table(name).retention_days
        return day_before(project.clock.now_us(), days) if days else None

    Keeper(
        project.tables,
        project.topics,
        lease=(EVENTS, project.member),
        care=Care() if project.tables.capabilities.local else FAR,
        oldest_day=oldest_day,
        metrics=metrics,
    ).run(stop)


def find_sources(project: OpenProject) -> Sources:
    """Returns where the online store's features come from."""

    def find_lake() -> Table | None:
        return project.tables.open(EVENTS) if EVENTS in project.tables.names() else None

    return Sources(project.topics, find_lake)


def find_columns(project: OpenProject) -> tuple[Column, ...]:
    """Returns the columns that somebody reads: those of the project, of running trials and of champions.

    Arms are frozen: a feature that left the project file is counted as long as a bundle that serves has it.
    """
    found: dict[str, Column] = {}
    for columns in (project.declared.columns, *_find_serving(project)):
        for column in columns:
            found.setdefault(column.identity, column)
    return tuple(found.values())


def _find_serving(project: OpenProject) -> list[list[Column]]:
    """Returns the columns of each bundle in the newest trials and champions; none while no registry answers."""
    try:
        registry = project.registry
        trials = [decode_trial(entry.value) for entry in registry.newest(TRIAL).values()]
        champions = [decode_champion(entry.value) for entry in registry.newest(CHAMPION).values()]
        named = {*(one.bundle for one in champions), *(name for one in trials for name in (one.control, one.treatment))}
        fitted = registry.bundles() if named else []
    except OutsideError as error:
        get_logger("updater").warning("which bundles serve cannot be read at present: %s", error)
        return []
    return [_read_manifest(one.manifest).parameters.columns for one in fitted if one.hash in named]


class _Parameters(msgspec.Struct):
    columns: list[Column] = []


class _Manifest(msgspec.Struct):
    """What of a bundle's manifest says which features it reads."""

    parameters: _Parameters


_read_manifest = msgspec.json.Decoder(_Manifest).decode


def _run_updater(project: OpenProject, metrics: Metrics, stop: threading.Event) -> None:
    if not find_columns(project):
        stop.wait()
        return
    find, sources = partial(find_columns, project), find_sources(project)
    Updater(project.online, find, sources, clock=machine_us, metrics=metrics).run(stop)


LOOPS: dict[str, Callable[[OpenProject, Metrics, threading.Event], None]] = {
    "settler": _run_settler,
    **{f"sink-{name}": partial(_run_sink, topic=name) for name in CODECS},
    "keeper": _run_keeper,
    "updater": _run_updater,
}

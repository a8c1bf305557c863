"""The roles that listen, joined: collector, endpoint and console, each at its own door, by default in one process.

Apart from stream.py, so that they need neither Arrow nor Delta.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib import import_module

from headrace.base.errors import CallError, UnavailableError
from headrace.base.http import App, Limits, Request, Response, Service, run, serve
from headrace.base.process import Life
from headrace.base.telemetry import Metrics, get_logger
from headrace.collect.app import ACK_SECONDS, CLICKS, MAX_PENDING_BYTES, Collector, CollectorOptions
from headrace.collect.app import LIMITS as COLLECT_LIMITS
from headrace.collect.app import METRICS as COLLECT_METRICS
from headrace.collect.app import build_app as build_collector
from headrace.collect.cookies import CookieOptions
from headrace.collect.dimensions import Dimensions
from headrace.collect.keys import Keys
from headrace.endpoints.app import LIMITS as PAGE_LIMITS
from headrace.endpoints.app import METRICS as PAGE_METRICS
from headrace.endpoints.app import Endpoint, EndpointOptions, Readers
from headrace.endpoints.app import build_app as build_endpoint
from headrace.endpoints.follower import Follower
from headrace.endpoints.serving import Shelf
from headrace.endpoints.vectors import Lookup
from headrace.events.agent import read_agent
from headrace.project import DOORS, OpenProject, open_project
from headrace.topics import Sender

_DRAIN_SECONDS = 0.4


@dataclass(frozen=True)
class Behind:
    """What stands behind every door of a process."""

    project: OpenProject
    sender: Sender
    metrics: Metrics


Opener = Callable[[Behind], Awaitable[tuple[App, Limits]]]
"""Returns the application of a role and what its clients may ask; called inside the running loop."""


def run_doors(life: Life, *, folder: str, profile: str, listeners: Mapping[str, int], name: str) -> None:
    """Serves roles, each at its socket, until this process is told to stop."""
    with open_project(folder, profile=profile) as project:
        project.make_topics()
        run(_serve(life, project, listeners, name))


async def _serve(life: Life, project: OpenProject, listeners: Mapping[str, int], name: str) -> None:
    sender = project.topics.open_sender(deadline_seconds=ACK_SECONDS, max_pending_bytes=MAX_PENDING_BYTES)
    metrics = Metrics((*COLLECT_METRICS, *PAGE_METRICS), folder=project.profile.state / "metrics", process=name)
    behind = Behind(project, sender, metrics)
    doors = []
    for role, descriptor in listeners.items():
        app, limits = await _open(role, behind)
        doors.append(Service(app, socket.socket(fileno=descriptor), limits))
    try:
        await serve(doors, drain_seconds=_DRAIN_SECONDS, ready=life.tell_ready)
        await sender.close()
    finally:
        for door in doors:
            door.listener.close()


async def _open(role: str, behind: Behind) -> tuple[App, Limits]:
    """Returns the application of a role; one that cannot be opened says why to everybody who asks.

    A mistake in project.py must not close the collector, which needs none and stands in the same process.
    """
    module, _, function = DOORS[role].partition(":")
    opener: Opener = getattr(import_module(module), function)
    try:
        return await opener(behind)
    except CallError as error:
        if role == "collector":
            raise
        message = f"the {role} cannot be opened: {error}. Mend it and start headrace up again"
        get_logger("doors").error("%s", message)

        async def refuse(_: Request) -> Response:
            raise UnavailableError(message)

        return App({}, fallback=refuse, readiness=(lambda: message,), metrics_text=behind.metrics.text), Limits()


async def open_collector(behind: Behind) -> tuple[App, Limits]:
    """Returns the collector."""
    project, table = behind.project, behind.project.profile.settings.collect
    project.make_topic(CLICKS)
    keys = Keys.read(project.profile.settings.keys)
    options = CollectorOptions(_cookie(project), table.trust_proxy)
    collector = Collector(behind.sender, keys, project.clock, behind.metrics, options)
    return build_collector(collector, metrics_text=behind.metrics.text), COLLECT_LIMITS


def _cookie(project: OpenProject) -> CookieOptions:
    table = project.profile.settings.collect
    return CookieOptions(table.cookie_days, table.cookie_domain, table.cookie_same_site)


async def open_endpoint(behind: Behind) -> tuple[App, Limits]:
    """Returns the endpoint, which follows `events` and the registry from then on."""
    project = behind.project
    pages = project.declared.pages
    # The first user agent costs 0.2 s, in which the collector in the same process would stand still.
    read_agent("Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0")
    follower = Follower(project.topics, [event for page in pages for event in page.events])
    dimensions = Dimensions(project.topics, [one.name for one in project.declared.dimensions])
    lookup = Lookup(lambda: project.online, dimensions, project.declared.columns)
    shelf = Shelf(lambda: project.registry, pages, lookup.prepare)
    options = EndpointOptions(_cookie(project))
    readers = Readers(follower, lookup)
    endpoint = Endpoint(shelf, readers, behind.sender, project.clock, behind.metrics, options)
    return build_endpoint(endpoint, follower, metrics_text=behind.metrics.text), PAGE_LIMITS

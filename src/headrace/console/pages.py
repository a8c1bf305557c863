"""The role `console`: the home page as a visitor gets it, rendered from what the endpoint answers."""

from __future__ import annotations

import asyncio
import math
import os
import re
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from urllib.parse import urlsplit

import msgspec

from headrace.base.errors import HeadraceError, RequestError, UnavailableError
from headrace.base.http import Answer, App, Limits, Request, Response, nothing_answers
from headrace.base.ids import make_id
from headrace.base.telemetry import get_logger
from headrace.collect.cookies import CookieOptions, read_visitor, visitor_cookie
from headrace.collect.dimensions import Dimensions
from headrace.collect.keys import DEV_KEY, Keys
from headrace.console.desk import Desk, by_first
from headrace.console.figures import capitalise
from headrace.console.frame import ASSETS, asset_path, show_asset
from headrace.console.guard import guard, is_secure, needs
from headrace.console.markup import ICON, Frame, Named, write_empty, write_home, write_watch
from headrace.console.page_experiments import Experiments
from headrace.console.page_lineage import Lineage
from headrace.console.page_live import Live, Sampler
from headrace.console.page_models import Models
from headrace.console.page_tables import Tables
from headrace.console.page_verify import Verify
from headrace.console.posters import draw_poster, draw_wide
from headrace.console.reader import CHANGE_SECONDS, Reader
from headrace.console.state import read_state
from headrace.doors import Behind
from headrace.endpoints.endpoint import Ask, Context, Shown
from headrace.events.dimension import text_of
from headrace.events.settled import MAX_ID
from headrace.profile import DoorTable
from headrace.project import OpenProject

# A login's form, its 256 characters written in percents, is the longest that is sent.
LIMITS = Limits(max_body_bytes=8192)

_TITLE, _GENRE = "title", "genre"
"""The attributes that tell a page what an item is called."""

_TITLES_SECONDS = 0.5
_PATIENCE_SECONDS = 2.0
_AGAIN_SECONDS = 5
_SVG = (b"content-type", b"image/svg+xml")
_ANYWHERE = ("0.0.0.0", "::")  # noqa: S104 - recognised, not listened at
_HOST = re.compile(r"[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\]")

_read_shown = msgspec.json.Decoder(Shown).decode


class _Refusal(msgspec.Struct):
    message: str


_read_refusal = msgspec.json.Decoder(_Refusal).decode


async def open_console(behind: Behind) -> tuple[App, Limits]:
    """Returns the console's pages."""
    changer = Reader(behind.project, deadline_seconds=CHANGE_SECONDS)
    desk = Desk(behind.project, Reader(behind.project), changer, os.urandom)
    live = Live(desk, Sampler(behind.project))
    models = Models(desk)
    routes, others = _list_routes(desk, Pages(behind.project), (live, models))

    async def close() -> None:
        await live.close()
        await models.close()
        await desk.reader.close()
        await changer.close()

    fallback = needs("viewer", by_first(others))
    app = guard(behind.project, App(routes, fallback, metrics_text=behind.metrics.text, close=close))
    # Last: what refuses to open leaves nothing running.
    live.begin()
    return app, LIMITS


Routes = dict[tuple[str, str], Answer]


def _list_routes(desk: Desk, pages: Pages, running: tuple[Live, Models]) -> tuple[Routes, dict[str, Answer]]:
    """Returns what answers a path, and what answers /PLACE/NAME by its place; each says who may ask."""
    (live, models), tables, experiments = running, Tables(desk), Experiments(desk)
    routes: Routes = {
        ("GET", "/"): needs("viewer", pages.home),
        ("GET", "/poster"): needs("viewer", show_poster),
        ("GET", "/favicon.ico"): needs("anybody", show_icon),
        **{("GET", asset_path(name)): needs("anybody", partial(show_asset, name)) for name in ASSETS},
        ("GET", "/live"): desk.reads(live.page),
        ("GET", "/live/stream"): needs("viewer", live.stream),
        ("GET", "/tables"): desk.reads(tables.all),
        ("GET", "/models"): desk.reads(models.all),
        ("POST", "/models/roll-back"): desk.acts(models.roll_back),
        ("POST", "/pipelines/run"): desk.acts(models.run_pipeline),
        ("GET", "/experiments"): desk.reads(experiments.all),
        ("POST", "/experiments/stop"): desk.acts(experiments.stop),
        ("GET", "/lineage"): desk.reads(Lineage(desk).page),
        ("GET", "/verify"): desk.reads(Verify(desk).page),
    }
    others: dict[str, Answer] = {
        "watch": needs("viewer", pages.watch),
        "tables": desk.reads(tables.one),
        "models": desk.reads(models.one),
        "experiments": desk.reads(experiments.one),
    }
    return routes, others


@dataclass
class Pages:
    """The pages of one project."""

    project: OpenProject
    entropy: Callable[[int], bytes] = os.urandom
    _read_at: float = -math.inf
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    @cached_property
    def _dimensions(self) -> Dimensions:
        return Dimensions(self.project.topics, [one.name for one in self.project.declared.dimensions])

    async def home(self, request: Request) -> Response:
        """Returns the first page of the project, always with 200: whatever is missing, the page says so."""
        frame = self._frame(request)
        try:
            shown = await self._ask(frame, request.header(b"user-agent"))
        except HeadraceError as error:
            return _respond(request, frame, _explain(frame, error))
        names = [await self._names((item.id, item.category) for item in row.items) for row in shown.rows]
        return _respond(request, frame, write_home(frame, shown, names))

    async def watch(self, request: Request) -> Response:
        """Returns the page on which a title is played."""
        item = request.path.removeprefix("/watch/")
        if not item or item == request.path:
            return await nothing_answers(request)
        frame = self._frame(request)
        (named,) = await self._names([(item, "")])
        recommendation = request.query.get("recommendation", "")
        return _respond(
            request, frame, write_watch(frame, named, recommendation=recommendation, session=self._make_id())
        )

    def _frame(self, request: Request) -> Frame:
        """Returns what stands around a page, with a visitor who has an id before the first event."""
        chosen = request.query.get("visitor")
        if chosen is not None and len(chosen) > MAX_ID:
            raise RequestError(400, f"the visitor has {len(chosen):,} characters, an id has at most {MAX_ID:,}")
        known = read_visitor(request.header(b"cookie"))
        # Refused for its cookie a browser would be refused for as long as it keeps it.
        kept = known if len(known) <= MAX_ID else ""
        visitor = (kept if chosen is None else chosen.strip()) or self._make_id()
        return Frame(
            project=self.project.declared.name,
            visitor=visitor,
            nonce=self.entropy(12).hex(),
            collector=self._find_collector(request),
            is_chosen=bool(chosen),
        )

    def _make_id(self) -> str:
        return make_id(self.project.clock.now_us(), self.entropy(10))

    def _find_collector(self, request: Request) -> str:
        """Returns where a browser finds the collector, or nothing if none takes the key of these pages."""
        settings = self.project.profile.settings
        url = self._find("collector", settings.collect)
        if not url or not Keys.read(settings.keys).name_of(DEV_KEY):
            return ""
        parts = urlsplit(url)
        asked = _HOST.match(request.header(b"host"))
        if parts.hostname in _ANYWHERE and asked:
            return f"{parts.scheme}://{asked[0]}:{parts.port}"
        return url

    def _find(self, role: str, table: DoorTable) -> str:
        """Returns where a role listens: as this machine's supervisor wrote down, else as headrace.toml says."""
        try:
            url: str = read_state(self.project, role)["url"] or ""
        except (OSError, ValueError, KeyError):
            host = f"[{table.host}]" if ":" in table.host else table.host
            url = f"http://{host}:{table.port}" if table.port else ""
        return url

    async def _ask(self, frame: Frame, agent: str) -> Shown:
        """Returns the endpoint's answer for the first page; raises what is in its way."""
        pages = self.project.declared.pages
        if not pages:
            raise RequestError(404, "no page is declared in project.py. Give the project one: pages=(Page(...),)")
        url = self._find("endpoint", self.project.profile.settings.endpoint)
        ask = Ask(page=pages[0].name, anonymous_id=frame.visitor, context=Context(user_agent=agent), explain=True)
        status, body = await _post(url, "/v1/page", msgspec.json.encode(ask))
        try:
            if status == 200:
                return _read_shown(body)
            message = _read_refusal(body).message
        except msgspec.MsgspecError as error:
            raise UnavailableError(f"what answers at {url} is no endpoint: {error}") from error
        raise RequestError(status, message)

    async def _names(self, items: Iterable[tuple[str, str]]) -> list[Named]:
        """Returns what items are called, as far as a dimension knows, given their ids and categories."""
        # One at a time: two would add the same members to one history.
        if not self._reading.locked() and time.monotonic() - self._read_at > _TITLES_SECONDS:
            async with self._reading:
                try:
                    await asyncio.to_thread(self._dimensions.refresh)
                except HeadraceError as error:
                    get_logger("console").warning("titles are as they were: %s", error)
                self._read_at = time.monotonic()
        return [self._name(item, category) for item, category in items]

    def _name(self, item: str, category: str) -> Named:
        for dimension in self.project.declared.dimensions:
            history = self._dimensions.history(dimension.name)
            known = history.at(item, history.end)
            if known is not None:
                return Named(item, text_of(known.get(_TITLE)) or item, text_of(known.get(_GENRE)) or category)
        return Named(item, item, category)


async def show_poster(request: Request) -> Response:
    """Returns a poster, which follows from its address alone."""
    query = request.query
    item, title, genre = (query.get(name, "") for name in ("item", "title", "genre"))
    text = draw_wide(item, genre) if "wide" in query else draw_poster(item, title or item, genre)
    cached = (b"cache-control", b"public, max-age=3600")
    # Opened by itself a drawing is a document, which could hold scripts.
    policy = (b"content-security-policy", b"default-src 'none'")
    return Response(200, text.encode(), (_SVG, cached, policy))


async def show_icon(request: Request) -> Response:  # noqa: ARG001 - a route is given the request
    """Returns the icon of the pages."""
    return Response(200, ICON.encode(), (_SVG, (b"cache-control", b"public, max-age=86400")))


async def _post(url: str, path: str, body: bytes) -> tuple[int, bytes]:
    """Returns status and body of an answer; raises UnavailableError if there is none in time."""
    address = urlsplit(url)
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    try:
        if not url:
            raise ConnectionError("nobody listens")
        async with asyncio.timeout(_PATIENCE_SECONDS):
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            with closing(writer):
                writer.write(head.encode() + body)
                answer = await reader.read(-1)
        front, _, content = answer.partition(b"\r\n\r\n")
        return int(front.split(b" ", 2)[1]), content
    except (OSError, ValueError, IndexError) as error:
        where = f" at {url}" if url else ""
        raise UnavailableError(f"nobody answers{where}. Start it with: headrace up endpoint") from error


def _explain(frame: Frame, error: HeadraceError) -> str:
    """Returns the page for when there is nothing to show."""
    if isinstance(error, UnavailableError):
        poster = Named("away", "Please Stand By", "mystery").poster()
        return write_empty(frame, "The endpoint is away", capitalise(str(error)), poster=poster, seconds=_AGAIN_SECONDS)
    poster = Named("empty", "Coming Soon", "drama").poster()
    return write_empty(frame, "Nothing to show yet", capitalise(str(error)), poster=poster, seconds=_AGAIN_SECONDS)


def _respond(request: Request, frame: Frame, text: str) -> Response:
    """Returns a page that only its visitor may keep, and which asks nobody but this door and the collector."""
    nonce, collector = f"'nonce-{frame.nonce}'", frame.collector or "'none'"
    policy = "; ".join(
        (
            "default-src 'self'",
            f"script-src {nonce} {frame.collector}",
            f"connect-src {collector}",
            f"style-src {nonce}",
            "object-src 'none'",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        )
    )
    headers = [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-security-policy", policy.encode("latin-1")),
    ]
    if read_visitor(request.header(b"cookie")) != frame.visitor:
        cookie = visitor_cookie(frame.visitor, CookieOptions(), secure=is_secure(request))
        headers += [(b"set-cookie", cookie)] if cookie else []
    return Response(200, text.encode("utf-8", "replace"), headers)

"""The endpoint: answers a request for a page, and writes the decision down before the answer leaves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from headrace.base import fault
from headrace.base.clock import Clock
from headrace.base.errors import HeadraceError, OutsideError, RequestError, UnavailableError, did_you_mean
from headrace.base.http import JSON, App, Limits, Request, Response, cors, error_response, nothing_answers, preflight
from headrace.base.ids import make_id
from headrace.base.telemetry import LATENCY_BUCKETS, Metric, Metrics, get_logger
from headrace.collect.cookies import CookieOptions, read_visitor, visitor_cookie
from headrace.endpoints.carousel import Chosen, choose
from headrace.endpoints.endpoint import Ask, Carousel, Row, Shown, ShownItem
from headrace.endpoints.follower import Follower
from headrace.endpoints.serving import Served, Serving, Shelf
from headrace.endpoints.vectors import Lookup, Vectors
from headrace.events.agent import read_agent
from headrace.events.decision import DECISIONS, DEGRADED, VERSION, Decision, encode
from headrace.events.settled import MAX_ID
from headrace.experiments.assign import assign
from headrace.experiments.experiment import ARMS
from headrace.topics import Record, Sender

LIMITS = Limits(max_body_bytes=64 * 1024)

_REFRESH_SECONDS = 0.2
_MOST_MS = 10_000
_MOST_WITHDRAWN = 4_096
_AGAIN_SECONDS = 0.5
_ANSWERS = ("200", "400", "404", "503", "500")

METRICS = (
    Metric("headrace_endpoint_requests_total", "Requests for pages, by answer.", labels={"status": _ANSWERS}),
    Metric(
        "headrace_endpoint_degraded_total",
        "Pages that were answered other than planned, by what and arm.",
        labels={"what": tuple(DEGRADED), "arm": ("none", *ARMS)},
    ),
    Metric("headrace_endpoint_page_seconds", "Time to answer a page.", "histogram", buckets=LATENCY_BUCKETS),
)

_read_ask = msgspec.json.Decoder(Ask).decode
_write = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class _Asked:
    """One request, as far as it is known before anything is ranked."""

    visitor: str | None
    user_id: str | None
    bot: bool
    received_us: int
    ends_at: float
    """When the answer is due, by the loop's clock."""

    @property
    def person(self) -> str:
        return self.user_id or self.visitor or ""


@dataclass(frozen=True)
class _Picked:
    """Which bundle ranks for a request, and what is wrong about that."""

    served: Served
    arm: str | None
    degraded: tuple[str, ...]


@dataclass(frozen=True)
class _Given:
    """What a row is made for."""

    carousel: Carousel
    person: str
    seen: Sequence[str]
    above: tuple[str, ...]
    seed: int
    vectors: Vectors


@dataclass(frozen=True)
class _Rung:
    """A bundle that may rank."""

    served: Served
    degraded: tuple[str, ...]
    vectors: Vectors


@dataclass(frozen=True)
class _Made:
    """A row, what made it, and what for."""

    chosen: Chosen
    served: Served
    degraded: tuple[str, ...]
    vectors: Vectors
    given: _Given

    @property
    def whys(self) -> Sequence[str]:
        """The feature that speaks most for each item."""
        return self.served.scorer.whys(self.chosen.places, self.vectors.values)


@dataclass(frozen=True)
class Readers:
    """What tells an endpoint of people and items."""

    follower: Follower
    lookup: Lookup


@dataclass(frozen=True)
class EndpointOptions:
    """What an endpoint may be told beside what it serves."""

    cookie: CookieOptions = field(default_factory=CookieOptions)
    entropy: Callable[[int], bytes] = os.urandom
    """What seeds and ids are made of."""


class Endpoint:
    """Answers requests for pages."""

    def __init__(
        self,
        shelf: Shelf,
        readers: Readers,
        sender: Sender,
        clock: Clock,
        metrics: Metrics,
        options: EndpointOptions = EndpointOptions(),
    ) -> None:
        self._shelf = shelf
        self._follower, self._lookup = readers.follower, readers.lookup
        self._sender = sender
        self._clock = clock
        self._options = options
        self._entropy = options.entropy
        self._withdrawn: list[list[Record]] = []
        self._withdrawing: asyncio.Task[None] | None = None
        self._answers = {status: metrics.count("headrace_endpoint_requests_total", status) for status in _ANSWERS}
        self._degraded = {
            (what, arm): metrics.count("headrace_endpoint_degraded_total", what, arm)
            for what in DEGRADED
            for arm in ("none", *ARMS)
        }
        self._seconds = metrics.measure("headrace_endpoint_page_seconds")

    async def page(self, request: Request) -> Response:
        """Returns the answer to a request for a page."""
        started_at = time.perf_counter()
        try:
            shown = await self._show(request)
            response = Response(200, _write(shown), self._headers(request, shown))
        except HeadraceError as error:
            refused = error_response(error)
            response = Response(refused.status, refused.body, (*refused.headers, *cors(request)))
        self._answers.get(str(response.status), self._answers["500"]).add()
        self._seconds.observe(time.perf_counter() - started_at)
        return response

    async def refresh(self) -> None:
        """Swaps what serves whenever the registry has changed, for ever."""
        told = ""
        while True:
            with contextlib.suppress(HeadraceError):
                await asyncio.to_thread(self._shelf.refresh)
            trouble = self._shelf.trouble
            if trouble and trouble != told:
                get_logger("endpoint").warning("what serves goes on, the registry cannot be read: %s", trouble)
            told = trouble
            await asyncio.sleep(_REFRESH_SECONDS)

    def unserved(self) -> str:
        """Returns which pages nothing can serve and why, or nothing."""
        lacking = [serving for serving in self._shelf.servings.values() if serving.usual is None]
        return "; ".join(self._lack(serving) for serving in lacking)

    def _lack(self, serving: Serving) -> str:
        page = serving.page
        if self._shelf.trouble:
            return f"the page {page.name!r} has nothing to show, for the registry cannot be read: {self._shelf.trouble}"
        why = "; ".join(serving.problems) or f"there is no bundle of {page.fallback.name!r} yet"
        return (
            f"the page {page.name!r} has nothing to show: {why}. Fit one with: headrace model fit {page.fallback.name}"
        )

    async def _show(self, request: Request) -> Shown:
        ask = _read(request.body)
        serving = self._find(ask.page)
        asked = self._asked(ask, request)
        picked = _pick(serving, asked)
        if picked is None:
            raise UnavailableError(self._lack(serving))
        rows, degraded = self._make_page(serving, asked, picked)
        decisions = self._write_down(serving, asked, rows, (picked.arm, degraded))
        fault.point("endpoint.decided")
        if not await self._log(decisions, asked):
            decisions = [
                msgspec.structs.replace(one, recommendation_id="", degraded=(*one.degraded, "unlogged"))
                for one in decisions
            ]
        fault.point("endpoint.answering")
        shown = _shown(decisions, [row.whys if ask.explain else () for row in rows])
        for what in shown.degraded:
            self._degraded[what, shown.arm or "none"].add()
        return shown

    def _find(self, name: str) -> Serving:
        serving = self._shelf.servings.get(name)
        if serving is None:
            known = list(self._shelf.servings)
            hint = did_you_mean(name, known)
            raise RequestError(404, f"no page {name!r}.{hint}  known: {', '.join(known) or 'none'}")
        return serving

    def _asked(self, ask: Ask, request: Request) -> _Asked:
        visitor = ask.anonymous_id or read_visitor(request.header(b"cookie")) or None
        for name, value in (("anonymous_id", visitor), ("user_id", ask.user_id)):
            if value is not None and len(value) > MAX_ID:
                raise RequestError(400, f"{name} has {len(value):,} characters, an id has at most {MAX_ID:,}")
        if not 1 <= ask.deadline_ms <= _MOST_MS:
            raise RequestError(400, f"deadline_ms is {ask.deadline_ms}, must be 1 to {_MOST_MS:,}")
        agent = ask.context.user_agent
        bot = read_agent(agent if agent is not None else request.header(b"user-agent")).bot
        ends_at = asyncio.get_running_loop().time() + ask.deadline_ms / 1000
        user_id = ask.user_id or self._follower.seen.user_of(visitor)
        return _Asked(visitor, user_id, bot, self._clock.now_us(), ends_at)

    def _make_page(self, serving: Serving, asked: _Asked, picked: _Picked) -> tuple[list[_Made], tuple[str, ...]]:
        """Returns the rows of a page from above, and what is wrong with the page; there is a first row always.

        A row below that has nothing to show is left out, so is one that cannot be ranked, or comes too late.
        """
        # One portion of `events` is applied between requests, never within one: set and offsets belong together.
        first, *below = serving.page.carousels
        rows = [self._make_row(serving, asked, picked, (first, ()))]
        lacking: tuple[str, ...] = ()
        for carousel in below:
            own = serving.own.get(carousel.title)
            above = tuple(item for row in rows for item in row.chosen.items)
            mine = picked if own is None else _Picked(own, picked.arm, ())
            row = self._make_below(serving, asked, mine, (carousel, above))
            if row is None:
                lacking = ("rows",)
            elif row.chosen.items:
                rows.append(row)
        return rows, (*(("behind",) if self._follower.is_behind else ()), *lacking)

    def _make_below(
        self, serving: Serving, asked: _Asked, picked: _Picked, place: tuple[Carousel, tuple[str, ...]]
    ) -> _Made | None:
        """Returns a row below the first; None if it cannot be ranked, or no time is left for it."""
        if asyncio.get_running_loop().time() < asked.ends_at:
            with contextlib.suppress(UnavailableError):
                return self._make_row(serving, asked, picked, place)
        return None

    def _make_row(
        self, serving: Serving, asked: _Asked, picked: _Picked, place: tuple[Carousel, tuple[str, ...]]
    ) -> _Made:
        seen, person = self._follower.seen, asked.person
        now_us = max(asked.received_us, seen.newest_us(person) + 1)
        picked, vectors = self._read(serving, picked, person, now_us)
        seed = int.from_bytes(self._entropy(7), "big")
        given = _Given(place[0], person, seen.at(person, vectors.at_us), place[1], seed, vectors)
        return self._choose(serving, picked, given, asked.ends_at)

    def _write_down(
        self, serving: Serving, asked: _Asked, rows: Sequence[_Made], page: tuple[str | None, tuple[str, ...]]
    ) -> list[Decision]:
        """Returns the decisions of a page, one for each of its rows, given its arm and what is wrong with it."""
        arm, degraded = page
        follower, trial = self._follower, serving.trial if arm else None
        recommendation_id, rule = make_id(asked.received_us, self._entropy(10)), serving.rule()
        return [
            Decision(
                version=VERSION,
                recommendation_id=recommendation_id,
                page=serving.page.name,
                list_id=row.given.carousel.title,
                at_us=row.vectors.at_us,
                received_us=asked.received_us,
                person=asked.person,
                items=row.chosen.items,
                categories=row.chosen.categories,
                propensities=row.chosen.propensities,
                scores=row.chosen.scores,
                num_candidates=row.chosen.num_candidates,
                seed=row.given.seed,
                explore=rule.explore,
                per_row=rule.per_row,
                bundle=row.served.hash,
                events=follower.incarnation,
                applied=follower.applied,
                seen=tuple(row.given.seen),
                visitor=asked.visitor,
                user_id=asked.user_id,
                bot=asked.bot,
                experiment=trial.experiment if trial else None,
                trial=trial.id if trial else None,
                arm=arm,
                degraded=(*row.degraded, *(("all_seen",) if row.chosen.all_seen else ()), *degraded),
                known=row.vectors.known,
                dimensions=row.vectors.dimensions,
                vectors=row.vectors.of(row.chosen.places),
                above=row.given.above,
            )
            for row in rows
        ]

    def _read(self, serving: Serving, picked: _Picked, person: str, now_us: int) -> tuple[_Picked, Vectors]:
        """Returns the features for a person; where they cannot be read, those of the fallback."""
        try:
            return picked, self._lookup.read(picked.served, person, now_us)
        except HeadraceError as error:
            if serving.fallback is None or serving.fallback.hash == picked.served.hash:
                raise UnavailableError(f"the page {serving.page.name!r} cannot be ranked: {error}") from error
            rest = _Picked(serving.fallback, picked.arm, (*picked.degraded, "features"))
            return rest, self._lookup.read(serving.fallback, person, now_us)

    def _choose(self, serving: Serving, picked: _Picked, given: _Given, ends_at: float) -> _Made:
        """Returns the row, by the fallback if ranking fails or its time is over."""
        rungs = [_Rung(picked.served, picked.degraded, given.vectors)]
        fallback = serving.fallback
        if fallback is not None and fallback.hash != picked.served.hash and not fallback.scorer.columns:
            rungs.append(_Rung(fallback, (*picked.degraded, "fallback"), Vectors(given.vectors.at_us)))
        if asyncio.get_running_loop().time() >= ends_at:
            rungs = rungs[-1:]
        for rung in rungs:
            scorer, values, rule = rung.served.scorer, rung.vectors.values, serving.rule(given.above)
            try:
                chosen = choose(scorer, given.person, given.seen, rule=rule, seed=given.seed, values=values)
            except Exception:  # noqa: BLE001 - whatever a bundle does wrong, the page must not be empty
                get_logger("endpoint").exception("the bundle %s cannot rank", rung.served.hash)
            else:
                return _Made(chosen, rung.served, rung.degraded, rung.vectors, given)
        raise UnavailableError(f"no bundle can rank for the page {serving.page.name!r}; the log says why")

    async def _log(self, decisions: Sequence[Decision], asked: _Asked) -> bool:
        """Returns whether the decisions are durable."""
        key = (asked.visitor or asked.user_id or decisions[0].recommendation_id).encode()
        left = asked.ends_at - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(left):
                await self._sender.append(DECISIONS, [Record(key, encode(one)) for one in decisions])
        except (HeadraceError, TimeoutError):
            self._withdraw(key, decisions)
            return False
        return True

    def _withdraw(self, key: bytes, decisions: Sequence[Decision]) -> None:
        """Takes decisions back that may have become durable after all: nobody has their id, so nothing may count them.

        What was on its way when the log fell silent is written when it wakes, however late. Of a long silence the
        first pages are remembered: what came after them was never on its way.
        """
        if len(self._withdrawn) < _MOST_WITHDRAWN:
            withdrawn = [msgspec.structs.replace(one, degraded=(*one.degraded, "unlogged")) for one in decisions]
            self._withdrawn.append([Record(key, encode(one)) for one in withdrawn])
        if self._withdrawing is None or self._withdrawing.done():
            self._withdrawing = asyncio.get_running_loop().create_task(self._take_back())

    async def _take_back(self) -> None:
        """Says which pages are withdrawn, until the log has heard it."""
        while self._withdrawn:
            try:
                await self._sender.append(DECISIONS, self._withdrawn[0])
            except OutsideError:
                await asyncio.sleep(_AGAIN_SECONDS)
                continue
            except HeadraceError:
                get_logger("endpoint").exception("a page without an id is not withdrawn: the log will never take it")
            del self._withdrawn[0]

    def _headers(self, request: Request, shown: Shown) -> Sequence[tuple[bytes, bytes]]:
        headers = [JSON, (b"cache-control", b"private, no-store"), *cors(request)]
        known = read_visitor(request.header(b"cookie"))
        if b"origin" in request.headers and shown.anonymous_id and not known:
            cookie = visitor_cookie(shown.anonymous_id, self._options.cookie, secure=request.scope["scheme"] == "https")
            # An id may be too long to be remembered.
            headers += [(b"set-cookie", cookie)] if cookie else []
        return headers


def _read(body: bytes) -> Ask:
    try:
        return _read_ask(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is no request for a page: {error}") from error


def _pick(serving: Serving, asked: _Asked) -> _Picked | None:
    """Returns the bundle of the visitor's arm, else what serves everybody, else None."""
    trial = serving.trial
    degraded: tuple[str, ...] = ()
    arm = None
    if trial is not None and asked.visitor:
        place = assign(trial.seed, asked.visitor, trial.weights)
        arm = None if place is None else ARMS[place]
    served = serving.arms.get(arm) if arm else None
    if served is None:
        # A visitor of a trial should have had a bundle of the arm; others the champion's, else the fallback's.
        served, degraded = serving.usual, ("bundle",) if arm or serving.is_older else ()
    return None if served is None else _Picked(served, arm, degraded)


def _shown(decisions: Sequence[Decision], whys: Sequence[Sequence[str]]) -> Shown:
    first = decisions[0]
    return Shown(
        recommendation_id=first.recommendation_id or None,
        page=first.page,
        anonymous_id=first.visitor,
        served_us=first.received_us,
        bundle=first.bundle,
        experiment=first.experiment,
        arm=first.arm,
        degraded=tuple(dict.fromkeys(what for one in decisions for what in one.degraded)),
        rows=[_row(*one) for one in zip(decisions, whys, strict=True)],
    )


def _row(decision: Decision, whys: Sequence[str]) -> Row:
    columns = zip(decision.items, decision.scores, decision.propensities, decision.categories, strict=True)
    items = [
        ShownItem(item, position, score, propensity, category)
        for position, (item, score, propensity, category) in enumerate(columns, 1)
    ]
    for item, why in zip(items, whys, strict=bool(whys)):
        item.why = why
    return Row(decision.list_id, items, decision.bundle)


def build_app(endpoint: Endpoint, follower: Follower, *, metrics_text: Callable[[], str]) -> App:
    """Returns the application, whose tasks run until it is closed; call it inside a running loop."""
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(endpoint.refresh()), loop.create_task(follower.run())]

    async def close() -> None:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def other(request: Request) -> Response:
        if request.method == "OPTIONS":
            return await preflight(request)
        return await nothing_answers(request)

    return App(
        {("POST", "/v1/page"): endpoint.page},
        fallback=other,
        readiness=(endpoint.unserved,),
        metrics_text=metrics_text,
        close=close,
    )

"""A world played from its first click to the verdict, in this process, by a clock that is stepped and not waited for.

Doors, settler, sinks, updater, fits and promotion are those that serve, with real HTTP in between; only their loops
are left out: each gets its turn when there is something for it to do.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from itertools import count

import msgspec

from headrace import learn
from headrace.base.clock import SteppedClock
from headrace.base.errors import CallError, DeadlineError, StopError
from headrace.base.http import Service, answering, listen, run
from headrace.base.telemetry import Metrics
from headrace.collect.app import MAX_PENDING_BYTES
from headrace.collect.app import METRICS as COLLECT_METRICS
from headrace.collect.load import load_members
from headrace.doors import Behind, open_collector, open_endpoint
from headrace.endpoints.app import METRICS as PAGE_METRICS
from headrace.endpoints.endpoint import Ask, Context, Shown
from headrace.events.decision import DECISIONS
from headrace.events.visit import PageWanted, Visiting
from headrace.events.world import DAY, HOUR, MINUTE, Delivery, Visit, World, encode
from headrace.experiments.verdict import Verdict
from headrace.loop import find_champion, find_verdict, start, stop
from headrace.models.gate import GATE, decode_gate, encode_gate
from headrace.project import OpenProject
from headrace.promote import advance
from headrace.topics import Record as TopicRecord
from headrace.topics import Sender
from headrace.verify.audience import (
    AUTHORIZATION,
    FAULTY_EVERY,
    Pool,
    Record,
    ask_for,
    make_faulty,
    past_deliveries,
    shown_of,
)
from headrace.verify.stream import Stream

_CONNECTIONS = 16
_DEADLINE_MS = 10_000
_TAKEN_SECONDS = 10.0
_CRAWLER = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
PROBE = "verify-probe"
"""Who asks only to see what serves; a robot, so that nobody counts it."""


@dataclass(frozen=True)
class Script:
    """How a world is played."""

    past_us: int = DAY
    """What the site had seen before it joined."""
    portion_us: int = 2 * MINUTE
    """In which steps time goes on: what falls into one happens at once."""
    most_nights: int = 4
    """After so many without a verdict it ends."""
    forced_us: int = 0
    """How long a trial lasts that is begun without asking any gate, after half of that; 0 lets promotion decide."""
    late_every: int = 97
    """Of so many pages one is confirmed too late: its visitor gets it without an id."""


@dataclass
class Played:
    """What a play has come to."""

    record: Record = field(default_factory=Record)
    verdict: Verdict | None = None
    """None if no bundle came past the gate, or nobody could be tested."""
    served: Shown | None = None
    """What a page is in the end."""


class LateSender:
    """A log that now and then confirms a decision after its deadline, as one on a busy disk does."""

    def __init__(self, sender: Sender, *, every: int) -> None:
        self._sender = sender
        self._every = every
        self._numbers = count(1)
        self._open = 0

    async def append(self, name: str, records: Sequence[TopicRecord]) -> None:
        """Returns once the records are durable, or raises DeadlineError though they are."""
        self._open += 1
        try:
            await self._sender.append(name, records)
        finally:
            self._open -= 1
        # What takes a page back is heard at once: it would be said again, when the world is at rest.
        is_page = name == DECISIONS and not any(b'"unlogged"' in (one.value or b"") for one in records)
        if is_page and not next(self._numbers) % self._every:
            raise DeadlineError("the log has confirmed too late")

    async def rest(self) -> None:
        """Returns once nothing is on its way: a page is taken back after it was answered."""
        while self._open:
            await asyncio.sleep(0.001)

    def stalled_seconds(self) -> float:
        """Returns for how long the topic has not answered."""
        return self._sender.stalled_seconds()

    async def close(self) -> None:
        """Waits for what was handed over."""
        await self._sender.close()


def play(project: OpenProject, world: World, script: Script) -> Played:
    """Returns what came of a world in a project made for it, whose time is stepped."""
    if not isinstance(project.clock, SteppedClock):
        raise CallError(f"a world is played by a stepped clock, this project's is {project.profile.urls.clock!r}")
    project.make_topics()
    with closing(Stream(project)) as stream:
        return run(_run(project, world, script, stream))


async def _run(project: OpenProject, world: World, script: Script, stream: Stream) -> Played:
    async with (
        _doors(project, script) as (collector, endpoint, sender),
        Pool(collector, _CONNECTIONS) as sends,
        Pool(endpoint, _CONNECTIONS) as pages,
    ):
        playing = _Play(project, world, script, (stream, sender, sends, pages))
        await playing.run()
        return playing.played


@asynccontextmanager
async def _doors(project: OpenProject, script: Script) -> AsyncIterator[tuple[str, str, LateSender]]:
    """Opens collector and endpoint in this loop; the addresses at which they answer, and what they append to."""
    # No world may depend on how busy the machine is: what comes late does so by number.
    opened = project.topics.open_sender(deadline_seconds=_DEADLINE_MS / 1000, max_pending_bytes=MAX_PENDING_BYTES)
    sender = LateSender(opened, every=script.late_every)
    behind = Behind(project, sender, Metrics((*COLLECT_METRICS, *PAGE_METRICS)))
    apps = [await open_collector(behind), await open_endpoint(behind)]
    doors = [Service(app, listen("127.0.0.1", 0), limits) for app, limits in apps]
    collector, endpoint = (f"http://127.0.0.1:{door.listener.getsockname()[1]}" for door in doors)
    try:
        async with answering(doors, drain_seconds=1.0):
            yield collector, endpoint, sender
    finally:
        await sender.close()


@dataclass(frozen=True)
class _Wanted:
    """A visitor who waits for a page."""

    at_us: int
    """When the visit began."""
    visitor: int
    visiting: Visiting
    wanted: PageWanted


class _Play:
    """One world while it is played."""

    def __init__(
        self, project: OpenProject, world: World, script: Script, parts: tuple[Stream, LateSender, Pool, Pool]
    ) -> None:
        self.played = Played()
        self._project, self._world, self._script = project, world, script
        self._stream, self._sender, self._sends, self._pages = parts
        assert isinstance(project.clock, SteppedClock)
        self._clock = project.clock
        self._page = project.declared.pages[0]
        self._experiment = project.declared.experiments[0].name
        self._pipeline = project.declared.pipelines[0]
        self._numbers, self._ended = count(), count()
        self._due: list[tuple[int, int, _Wanted | Delivery]] = []
        """What is wanted and sent, by its instant."""
        self._visits: Iterator[tuple[int, int]] = iter(())
        self._coming: tuple[int, int] = (0, 0)
        """Instant and visitor of the next visit."""

    async def run(self) -> None:
        """Plays to the end."""
        now_us = self._clock.now_us()
        (items,) = self._project.declared.dimensions
        titles = {item.product_id: {"title": item.title, "genre": item.genre} for item in self._world.items}
        load_members(self._project.topics, items, members=titles, now_us=now_us)
        for delivery in past_deliveries(self._world, now_us - self._script.past_us, now_us):
            await self._send(delivery)
        await self._rest()
        self._visits = self._world.schedule(now_us, now_us + 366 * DAY)
        self._coming = next(self._visits)
        await self._fit(self._page.fallback.name)
        await (self._force() if self._script.forced_us else self._promote())
        await self._live(self._clock.now_us() + HOUR)
        self.played.served = await self._probe(lambda _: True)
        # What phones held back comes half a day later.
        await self._deliver_rest()
        await self._rest()

    async def _rest(self) -> None:
        """Lets all that has come arrive in the lake."""
        await self._sender.rest()
        self._stream.rest()

    async def _promote(self) -> None:
        """Lives from night to night until one has led to a verdict."""
        for _ in range(self._script.most_nights):
            await self._live((self._clock.now_us() // DAY + 1) * DAY)
            await self._rest()
            for step in self._pipeline.steps:
                await self._fit(step.name)
            if await self._try():
                return

    async def _try(self) -> bool:
        """Takes what was fitted as far as it goes; returns whether there is a verdict."""
        while True:
            await self._rest()
            standing = advance(self._project, self._experiment)
            if standing.state == "started":
                await self._probe(lambda shown: shown.arm is not None)
            elif standing.state == "decided":
                await self._conclude()
                return True
            elif standing.state != "runs":
                return False
            await self._live(max(standing.again_us or 0, self._clock.now_us() + MINUTE))

    async def _force(self) -> None:
        """Tests what the pipeline fits, whatever the gates say of it."""
        await self._live(self._clock.now_us() + self._script.forced_us // 2)
        await self._rest()
        for step in self._pipeline.steps:
            await self._fit(step.name)
        challenger = self._project.registry.bundles(self._page.ranker.name)[0].hash
        self._let_past(challenger)
        start(self._project, self._experiment, gate=False, challenger=challenger)
        await self._probe(lambda shown: shown.arm is not None)
        await self._live(self._clock.now_us() + self._script.forced_us)
        await self._rest()
        stop(self._project, self._experiment)
        await self._conclude()

    def _let_past(self, challenger: str) -> None:
        """Writes that the offline gate has passed a bundle."""
        newest = self._project.registry.newest(GATE)[challenger]
        passed = encode_gate(msgspec.structs.replace(decode_gate(newest.value), passed=True))
        self._project.registry.write(learn.make_entry(self._project, GATE, challenger, passed, over=newest.id))

    async def _conclude(self) -> None:
        """Notes the verdict, and waits until pages are served by it."""
        self.played.verdict = verdict = find_verdict(self._project, self._experiment)
        assert verdict is not None
        champion = find_champion(self._project, verdict.page)
        fallback = self._project.registry.bundles(self._page.fallback.name)[0].hash
        serves = champion.bundle if champion is not None and champion.bundle else fallback
        await self._probe(lambda shown: shown.arm is None and shown.bundle == serves)

    async def _fit(self, name: str) -> None:
        bundle = learn.fit(self._project, name)
        if name == self._page.fallback.name and find_champion(self._project, self._page.name) is None:
            await self._probe(lambda shown: shown.arm is not None or shown.bundle == bundle.hash)

    async def _probe(self, is_taken: Callable[[Shown], bool]) -> Shown:
        """Asks until the endpoint has taken over what the registry says, and returns the page."""
        body = msgspec.json.encode(Ask(self._page.name, PROBE, None, Context(_CRAWLER), deadline_ms=_DEADLINE_MS))
        latest_at = time.monotonic() + _TAKEN_SECONDS
        while True:
            status, answer = await self._pages.post(b"/v1/page", body)
            if status == 200:
                shown = self.played.record.note_page(answer)
                if is_taken(shown) or time.monotonic() > latest_at:
                    return shown
            elif time.monotonic() > latest_at:
                raise StopError(f"the endpoint answers {status} to a page: {answer.decode('utf-8', 'replace')[:500]}")
            await asyncio.sleep(0.02)

    # What the audience does.

    async def _live(self, until_us: int) -> None:
        """Lets time go on until an instant, and happen what falls into it."""
        while (next_us := self._find_next()) <= until_us:
            portion_us = self._script.portion_us
            end_us = min(max(-(-next_us // portion_us) * portion_us, self._clock.now_us()), until_us)
            self._step(end_us)
            while self._find_next() <= end_us:
                await asyncio.gather(*[self._happen(one) for one in self._take(end_us)])
            self._stream.turn()
        self._step(until_us)

    def _find_next(self) -> int:
        return min(self._coming[0], self._due[0][0]) if self._due else self._coming[0]

    def _step(self, to_us: int) -> None:
        self._clock.step(max(to_us - self._clock.now_us(), 0) / 1e6)

    def _take(self, end_us: int) -> list[_Wanted | Delivery]:
        """Returns what happens until an instant, as far as it is known yet."""
        while self._coming[0] <= end_us:
            self._arrive(*self._coming)
            self._coming = next(self._visits)
        wanted: list[_Wanted | Delivery] = []
        sent: dict[int, Delivery] = {}
        while self._due and self._due[0][0] <= end_us:
            one = heapq.heappop(self._due)[2]
            if isinstance(one, Delivery):
                # What a client sends at one instant goes in one request: 25,000 requests of a world become 6,000.
                before = sent.get(one.visitor)
                sent[one.visitor] = one._replace(events=[*before.events, *one.events]) if before else one
            else:
                wanted.append(one)
        return [*wanted, *sent.values()]

    def _arrive(self, at_us: int, visitor: int) -> None:
        visiting = self._world.visiting(visitor, at_us)
        self._wait(_Wanted(at_us, visitor, visiting, next(visiting)))

    def _wait(self, one: _Wanted | Delivery) -> None:
        at_us = one.wanted.at_us if isinstance(one, _Wanted) else one.at_us
        heapq.heappush(self._due, (at_us, next(self._numbers), one))

    async def _happen(self, one: _Wanted | Delivery) -> None:
        await (self._show(one) if isinstance(one, _Wanted) else self._send(one))

    async def _show(self, one: _Wanted) -> None:
        """Asks for a page, and lets its visitor go on."""
        status, answer = await self._pages.post(
            b"/v1/page", ask_for(one.wanted, self._page.name, deadline_ms=_DEADLINE_MS)
        )
        if status != 200:
            raise StopError(f"the endpoint answers {status} to a page: {answer.decode('utf-8', 'replace')[:500]}")
        page = self.played.record.note_page(answer)
        shown = shown_of(page, delay_us=max(self._clock.now_us() - one.wanted.at_us, 0))
        try:
            self._wait(replace(one, wanted=one.visiting.send(shown)))
        except StopIteration as done:
            visit = Visit(one.at_us, one.visitor, done.value)
            deliveries = list(self._world.deliveries(visit))
            if not next(self._ended) % FAULTY_EVERY:
                deliveries.append(make_faulty(deliveries[0]))
            for delivery in deliveries:
                self._wait(delivery)

    async def _send(self, delivery: Delivery) -> None:
        status, answer = await self._sends.post(b"/v1/batch", encode(delivery), AUTHORIZATION)
        if status != 200:
            raise StopError(f"the collector answers {status} to a batch: {answer.decode('utf-8', 'replace')[:500]}")
        self.played.record.note_acknowledged(delivery.events)

    async def _deliver_rest(self) -> None:
        """Sends what is still on its way; nobody comes any more."""
        left = [one for _, _, one in self._due if isinstance(one, Delivery)]
        self._due.clear()
        for one in left:
            self._step(one.at_us)
        await asyncio.gather(*map(self._send, left))

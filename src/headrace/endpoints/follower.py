"""What people have clicked within a day, followed from the topic `events` while it grows."""

from __future__ import annotations

import asyncio
import contextlib
import math
import operator
import time
from collections import deque
from collections.abc import Collection, Iterable, Sequence

import msgspec
from msgspec import UNSET, Raw, UnsetType

from headrace.base.clock import machine_us
from headrace.base.errors import HeadraceError, PositionError
from headrace.base.telemetry import get_logger
from headrace.events.event import Event, read_items
from headrace.events.settled import EVENTS, is_row
from headrace.topics import Message, Topics

SEEN_US = 86_400_000_000
"""How long something clicked counts as seen."""

_BEHIND_SECONDS = 5.0
_RETRY_SECONDS = 0.5
_CHECK_SECONDS = 1.0
_POLL_SECONDS = 0.2
MOST_SEEN = 1_000
"""So many of what a person clicked count as seen, the newest ones: nobody may make his pages too long to be logged."""

# So many events are applied before requests get their turn.
_PORTION = 500
_MAX_RECORDS = 5_000


class _Click(msgspec.Struct):
    """What of a settled event the seen set needs."""

    event: str
    type: str
    person: str
    event_us: int
    visitor: str | None = None
    user_id: str | None = None
    bot: bool = False
    properties: Raw | UnsetType = UNSET


_decode = msgspec.json.Decoder(_Click).decode


class Seen:
    """What each person clicked, and when; a pure fold of `events`, of which it forgets what is a day old."""

    def __init__(self, events: Iterable[Event]) -> None:
        self._paths = {event.name: event.item or "" for event in events}
        self._clicks: dict[str, dict[str, int]] = {}
        self._users: dict[str, str] = {}
        self._order: deque[tuple[int, str]] = deque()
        self._newest_us = 0

    def apply(self, value: bytes) -> None:
        """Takes in one settled event."""
        click = _decode(value)
        if click.visitor and click.user_id:
            self._users[click.visitor] = click.user_id
        path = self._paths.get(click.event)
        if path is None or click.bot or click.type != "track" or isinstance(click.properties, UnsetType):
            return
        for item in read_items(click.properties, path):
            mine = self._clicks.setdefault(click.person, {})
            mine[item] = max(mine.get(item, 0), click.event_us)
            if len(mine) > 2 * MOST_SEEN:
                self._clicks[click.person] = dict(_newest(mine.items()))
        self._newest_us = max(self._newest_us, click.event_us)
        self._order.append((click.event_us, click.person))
        self._forget()

    def at(self, person: str, at_us: int) -> tuple[str, ...]:
        """Returns what a person clicked in the day before an instant, sorted; of very much the newest."""
        mine = self._clicks.get(person)
        if not mine:
            return ()
        within = [(item, event_us) for item, event_us in mine.items() if at_us - SEEN_US <= event_us < at_us]
        return tuple(sorted(item for item, _ in _newest(within)))

    def user_of(self, visitor: str | None) -> str | None:
        """Returns the user that a visitor was last known as, as the settler knows it."""
        return self._users.get(visitor) if visitor else None

    def newest_us(self, person: str) -> int:
        """Returns when a person's newest click happened, 0 if none is known."""
        return max(self._clicks.get(person, {}).values(), default=0)

    def __len__(self) -> int:
        return len(self._clicks)

    def _forget(self) -> None:
        # An event may be taken in late: it goes when those that came before it have gone.
        while self._order and self._order[0][0] < self._newest_us - 2 * SEEN_US:
            _, person = self._order.popleft()
            mine = self._clicks.get(person, {})
            old = [item for item, event_us in mine.items() if event_us < self._newest_us - 2 * SEEN_US]
            for item in old:
                del mine[item]
            if not mine:
                self._clicks.pop(person, None)


def _newest(clicks: Collection[tuple[str, int]]) -> Collection[tuple[str, int]]:
    """Returns the newest of what was clicked, no more than count as seen."""
    if len(clicks) <= MOST_SEEN:
        return clicks
    return sorted(clicks, key=lambda one: (one[1], one[0]), reverse=True)[:MOST_SEEN]


class Follower:
    """Keeps a `Seen` up with the topic, in a task of the server's own loop: a request sees whole portions only."""

    def __init__(self, topics: Topics, events: Collection[Event]) -> None:
        self._topics = topics
        self._events = events
        self.seen = Seen(events)
        self.incarnation = ""
        self.applied: tuple[int, ...] = ()
        """Of each partition the offset that comes next."""
        self._fresh_at = time.monotonic() - 2 * _BEHIND_SECONDS
        self._checked_at = -math.inf
        self._ends: tuple[int, ...] = ()

    @property
    def is_behind(self) -> bool:
        """Whether more may have happened than is known here."""
        return time.monotonic() - self._fresh_at > _BEHIND_SECONDS

    async def run(self) -> None:
        """Follows for ever; what is unavailable is tried again."""
        while True:
            try:
                if not self.applied:
                    self._begin(*await asyncio.to_thread(self._find_start))
                await self._follow()
            except PositionError as error:
                # What it knows is of another topic, or has a hole: it begins anew and says so meanwhile.
                get_logger("endpoint").warning("events are followed anew: %s", error)
                self.applied = ()
                self._fresh_at = time.monotonic() - 2 * _BEHIND_SECONDS
            except HeadraceError as error:
                get_logger("endpoint").warning("events cannot be followed at present: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)

    def _find_start(self) -> tuple[str, tuple[int, ...]]:
        incarnation = self._topics.describe(EVENTS).incarnation
        # A day of the machine's time is a day of the project's at least.
        return incarnation, tuple(self._topics.offsets_at(EVENTS, machine_us() - 2 * SEEN_US))

    def _begin(self, incarnation: str, offsets: tuple[int, ...]) -> None:
        self.seen = Seen(self._events)
        self.incarnation, self.applied = incarnation, offsets
        self._checked_at = -math.inf

    async def _follow(self) -> None:
        while True:
            messages = await asyncio.to_thread(self._read)
            for start in range(0, len(messages), _PORTION):
                self._apply(messages[start : start + _PORTION])
                await asyncio.sleep(0)
            self._note_fresh(came=len(messages))

    def _read(self) -> Sequence[Message]:
        now = time.monotonic()
        if now - self._checked_at > _CHECK_SECONDS:
            found = self._topics.describe(EVENTS).incarnation
            if found != self.incarnation:
                raise PositionError(f"the topic {EVENTS!r} was made anew")
            self._ends = tuple(bound.end for bound in self._topics.bounds(EVENTS))
            self._checked_at = now
            self._note_fresh()
        return self._topics.read(
            EVENTS, dict(enumerate(self.applied)), max_records=_MAX_RECORDS, wait_seconds=_POLL_SECONDS
        )

    def _note_fresh(self, *, came: int = 1) -> None:
        # A read may be cut short by its bytes or by one partition's share: fresh is who has all that was there at the
        # last check, or whom nothing more reached.
        if not came or all(map(operator.ge, self.applied, self._ends)):
            self._fresh_at = self._checked_at

    def _apply(self, messages: Sequence[Message]) -> None:
        applied = list(self.applied)
        for message in messages:
            if is_row(message.value or b"", message.headers):
                # What no settler wrote may be no UTF-8, or nested without end.
                with contextlib.suppress(ValueError, RecursionError):
                    self.seen.apply(message.value or b"")
            applied[message.partition] = message.offset + 1
        self.applied = tuple(applied)

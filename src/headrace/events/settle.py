"""The fold that turns raw clicks into events: each once, typed, in its session, at its true time.

`settle` depends on the records of one partition at lower offsets and on their times, and on nothing
else: not on the clock, nor on how the records are cut into portions. Whoever settles the same
records under the same definitions gets the same bytes.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import Any, Protocol

import msgspec
from msgspec import UNSET, Raw, UnsetType

from headrace.base.errors import FormatError
from headrace.events.agent import read_agent
from headrace.events.click import HEADER, Door, decode_door
from headrace.events.event import Envelope, Event, describe, read_envelope, read_properties
from headrace.events.session import Session, join_session
from headrace.events.settled import REPLAY, VERSION, FailedEvent, Progress, SettledEvent

WINDOW_US = 7 * 24 * 3600 * 1_000_000
"""For how long, by the time in the topic, an id and a visitor are remembered."""
SHORTEST_WINDOW_US = 24 * 3600 * 1_000_000
TOLERANCE_US = 2_000_000
"""How far a client's clock may be off before its times are corrected."""

_PORTION = 512
_LATEST_US = 253_402_300_799_999_999  # the end of the year 9999
_CALLS = frozenset({"track", "page", "screen", "identify", "group", "alias"})


class RawClick(Protocol):
    """A record of the topic `clicks`."""

    @property
    def key(self) -> bytes | None:
        """The key."""

    @property
    def value(self) -> bytes | None:
        """The event's JSON, as it arrived."""

    @property
    def time_us(self) -> int:
        """When it was appended."""

    @property
    def headers(self) -> tuple[tuple[str, bytes], ...]:
        """The door's header, and that of a replay."""

    @property
    def offset(self) -> int:
        """Its offset in the partition."""


class Seen(Protocol):
    """Which ids were settled or failed, and when: log_us * 2, plus 1 if failed."""

    def find(self, keys: Sequence[bytes]) -> Mapping[bytes, int]:
        """Returns the values of those keys that are known."""

    def add(self, entries: Mapping[bytes, int]) -> None:
        """Notes values; a later one replaces an earlier one."""


class Visitor(msgspec.Struct, array_like=True, gc=False):
    """What is remembered of a visitor: the user, and the open session."""

    log_us: int
    user: str | None = None
    session: Session | None = None


@dataclass
class State:
    """What settling remembers of a partition: a function of the events settled in the last window."""

    seen: Seen
    visitors: MutableMapping[str, Visitor]
    partition: int = 0
    offset: int = 0
    """The next offset of `clicks`."""
    newest_us: int = 0
    """The largest time seen so far."""
    settled: int = 0
    """How many events were settled."""
    failed: int = 0
    """How many events failed."""


@dataclass(frozen=True)
class Rules:
    """What the fold judges by."""

    declared: Mapping[str, Event] = field(default_factory=dict)
    tolerance_us: int = TOLERANCE_US
    window_us: int = WINDOW_US

    @cached_property
    def definitions(self) -> str:
        """The hash of these rules, which every row names."""
        text = repr((VERSION, sorted(map(describe, self.declared.values())), self.tolerance_us, self.window_us))
        return blake2b(text.encode(), digest_size=6).hexdigest()


@dataclass
class Outcome:
    """What came of some records."""

    events: list[SettledEvent] = field(default_factory=list)
    failures: list[FailedEvent] = field(default_factory=list)
    repeats: int = 0
    is_silent: bool = True
    """Whether the last record brought neither event nor failure."""


class _Failure(Exception):  # noqa: N818 - it is no error of the program's
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True)
class _Click:
    """A raw click, read as far as it can be."""

    record: RawClick
    log_us: int
    id: str = ""
    source: str = ""
    key: bytes = b""
    door: Door | None = None
    envelope: Envelope | None = None
    replay_of: str | None = None
    failure: _Failure | None = None


def settle(state: State, records: Sequence[RawClick], rules: Rules) -> Outcome:
    """Returns what came of the records, which must go on at the state's offset; the state is moved on."""
    outcome = Outcome()
    fold = _Fold(state, rules, outcome)
    for start in range(0, len(records), _PORTION):
        fold.take(records[start : start + _PORTION])
    return outcome


def id_key(source: str, message_id: str) -> bytes:
    """Returns the key under which an id is remembered."""
    return blake2b(f"{source}\0{message_id}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def restore(state: State, rows: Iterable[SettledEvent | FailedEvent | Progress]) -> None:
    """Moves the state on by what it once brought forth, in the order of `src_offset`."""
    entries: dict[bytes, int] = {}
    for row in rows:
        if isinstance(row, SettledEvent):
            _restore_visitor(state, row)
            state.settled = row.seq + 1
            entries[id_key(row.source, row.message_id)] = row.log_us << 1
        elif isinstance(row, FailedEvent):
            state.failed = row.seq + 1
            entries[id_key(row.source, row.message_id)] = row.log_us << 1 | 1
        state.newest_us = max(state.newest_us, row.log_us)
        state.offset = row.src_offset + 1
        if len(entries) >= _PORTION:
            state.seen.add(entries)
            entries = {}
    state.seen.add(entries)


def _restore_visitor(state: State, row: SettledEvent) -> None:
    key = visitor_key(row.visitor, row.user_id)
    known = state.visitors.get(key)
    session = known.session if known else None
    if row.session_first_us is not None and row.session_last_us is not None:
        session = Session(row.session_id, row.session_first_us, row.session_last_us)
    state.visitors[key] = Visitor(row.log_us, row.user_id, session)


class _Fold:
    """The state with what every record needs at hand."""

    def __init__(self, state: State, rules: Rules, outcome: Outcome) -> None:
        self.state = state
        self.rules = rules
        self.outcome = outcome
        self.definitions = rules.definitions

    def take(self, records: Sequence[RawClick]) -> None:
        """Settles a portion: all are decoded, looked up together, then judged one after the other."""
        state = self.state
        newest_us = state.newest_us
        clicks = []
        for record in records:
            newest_us = max(newest_us, record.time_us)
            clicks.append(_read(record, newest_us, state.partition))
        known = dict(state.seen.find([click.key for click in clicks]))
        fresh: dict[bytes, int] = {}
        for click in clicks:
            value = known.get(click.key)
            if self._is_repeat(click, value):
                self.outcome.repeats += 1
                self.outcome.is_silent = True
            else:
                fresh[click.key] = known[click.key] = click.log_us << 1 | self._judge(click)
                self.outcome.is_silent = False
        state.seen.add(fresh)
        state.newest_us = newest_us
        state.offset = records[-1].offset + 1

    def _is_repeat(self, click: _Click, value: int | None) -> bool:
        stands = value is not None and (value >> 1) >= click.log_us - self.rules.window_us
        if click.replay_of is not None:
            # Taken once, while the id stands as failed; a forgotten one may have been taken already.
            return not (stands and value is not None and value & 1)
        return stands

    def _judge(self, click: _Click) -> bool:
        """Adds an event or a failure to the outcome; returns whether it failed."""
        try:
            if click.failure is not None:
                raise click.failure
            event = self._settle(click)
        except _Failure as failure:
            self.outcome.failures.append(self._fail(click, failure))
            self.state.failed += 1
            return True
        self.outcome.events.append(event)
        self.state.settled += 1
        return False

    def _settle(self, click: _Click) -> SettledEvent:
        door, envelope = click.door, click.envelope
        if door is None or envelope is None:
            raise _Failure("json", "the event could not be read")
        visitor, user = envelope.anonymous_id or None, envelope.user_id or None
        if visitor is None and user is None:
            raise _Failure("identity", "it has neither anonymousId nor userId")
        kind = _kind(envelope, door)
        event = envelope.event if kind == "track" else kind
        if not event:
            raise _Failure("name", "a tracked event needs a name in $.event")
        properties = _json_object(envelope.properties, "properties")
        self._check_properties(event if kind == "track" else "", properties)
        traits, context = _json_object(envelope.traits, "traits"), _json_object(envelope.context, "context")
        # From here on nothing fails: a failed event moves nothing on.
        event_us, client_us, flags = _event_time(envelope, door, self.rules.tolerance_us)
        user, session_id, session = self._visit(click, visitor, user, event_us)
        agent = read_agent(_user_agent(context) or door.user_agent, door.hints)
        return SettledEvent(
            version=VERSION,
            message_id=click.id,
            source=click.source,
            type=kind,
            event=event,
            event_us=event_us,
            received_us=door.received_us,
            log_us=click.log_us,
            person=user or visitor or "",
            session_id=session_id,
            src_offset=click.record.offset,
            seq=self.state.settled,
            definitions=self.definitions,
            visitor=visitor,
            user_id=user,
            recommendation_id=_recommendation(properties),
            client_us=client_us,
            flags=flags,
            door=door.source,
            address=door.address,
            device=agent.device,
            os=agent.os,
            browser=agent.browser,
            bot=agent.bot,
            name=envelope.name,
            group_id=envelope.group_id,
            previous_id=envelope.previous_id,
            properties=properties,
            traits=traits,
            context=context,
            session_first_us=session.first_us if session else None,
            session_last_us=session.last_us if session else None,
        )

    def _visit(
        self, click: _Click, visitor: str | None, user: str | None, event_us: int
    ) -> tuple[str | None, str, Session | None]:
        """Returns the user, the session's id, and the open session if the event has joined it; notes all three."""
        key = visitor_key(visitor, user)
        known = self._visitor(key, click.log_us)
        open_session = known.session if known else None
        fresh_id = f"{self.state.partition}-{click.record.offset}"
        session_id, session = join_session(open_session, event_us, fresh_id)
        user = user or (known.user if known else None)
        self.state.visitors[key] = Visitor(click.log_us, user, session or open_session)
        return user, session_id, session

    def _check_properties(self, event: str, properties: Raw | UnsetType) -> None:
        declared = self.rules.declared.get(event)
        if declared is None:
            return
        try:
            read_properties(declared, properties)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise _Failure("properties", str(error)) from error

    def _visitor(self, key: str, log_us: int) -> Visitor | None:
        found = self.state.visitors.get(key)
        return found if found is not None and found.log_us >= log_us - self.rules.window_us else None

    def _fail(self, click: _Click, failure: _Failure) -> FailedEvent:
        door, envelope, record = click.door, click.envelope, click.record
        visitor = user = known = None
        if envelope is not None:
            visitor, user = envelope.anonymous_id or None, envelope.user_id or None
            known = self._visitor(visitor_key(visitor, user), click.log_us) if visitor or user else None
        raw, raw_base64 = _text_or_base64(record.value or b"")
        session = known.session if known else None
        return FailedEvent(
            version=VERSION,
            message_id=click.id,
            source=click.source,
            reason=failure.reason,
            message=str(failure),
            received_us=door.received_us if door else record.time_us,
            log_us=click.log_us,
            src_offset=record.offset,
            seq=self.state.failed,
            definitions=self.definitions,
            event=envelope.event if envelope else None,
            visitor=visitor,
            user_id=user or (known.user if known else None),
            session_id=session.id if session else None,
            replay_of=click.replay_of,
            key=record.key.decode("utf-8", "replace") if record.key is not None else None,
            door=next((value.decode("utf-8", "replace") for name, value in record.headers if name == HEADER), None),
            raw=raw,
            raw_base64=raw_base64,
        )


def _read(record: RawClick, log_us: int, partition: int) -> _Click:
    """Returns a record with its id, and why it fails if that is clear already."""
    click = _Click(record, log_us)
    try:
        if len(record.headers) > 1:
            click.replay_of = next((value.decode() for name, value in record.headers if name == REPLAY), None)
        click.door = _door(record.headers)
        click.source = click.door.write_key or ("" if click.door.source.startswith("http/") else click.door.source)
        if not click.source:
            click.failure = _Failure("key", "its write key is unknown: it is not in [keys] of headrace.toml")
        click.envelope = read_envelope(record.value or b"")
        click.id = click.envelope.message_id or ""
    except FormatError as error:
        click.failure = _Failure("record", str(error))
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        click.failure = click.failure or _Failure("json", str(error))
    click.id = click.id or click.replay_of or f"{partition}/{record.offset}"
    click.key = id_key(click.source, click.id)
    return click


@lru_cache(maxsize=4096)
def _door(headers: tuple[tuple[str, bytes], ...]) -> Door:
    return decode_door(headers)


def _kind(envelope: Envelope, door: Door) -> str:
    """Returns the kind of call: as the event says, else by its door, else by what it has."""
    if envelope.type is not None:
        return envelope.type
    door_kind = door.source.removeprefix("http/")
    if door_kind in _CALLS:
        return door_kind
    if envelope.event:
        return "track"
    raise _Failure("name", "neither $.type nor $.event says what it is")


def _event_time(envelope: Envelope, door: Door, tolerance_us: int) -> tuple[int, int | None, tuple[str, ...]]:
    """Returns when it happened, what the client said, and what was odd."""
    received_us = door.received_us
    client_us = _instant(envelope.original_timestamp or envelope.timestamp)
    event_us = received_us if client_us is None else client_us
    sent_us = _sent(envelope.sent_at or door.sent_at)
    is_skewed = client_us is not None and sent_us is not None and abs(received_us - sent_us) > tolerance_us
    if is_skewed and sent_us is not None:
        event_us += received_us - sent_us
    odd = (
        ("clamped", event_us > received_us),
        ("no_message_id", not envelope.message_id),
        ("no_time", client_us is None),
        ("repaired", door.repaired),
        ("skewed", is_skewed),
    )
    return max(min(event_us, received_us), 0), client_us, tuple([flag for flag, holds in odd if holds])


def _instant(text: str | None) -> int | None:
    """Returns the microseconds of an ISO 8601 instant; one without a zone is in UTC."""
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
        if at.tzinfo is None:
            at = at.replace(tzinfo=UTC)
        found = round(at.timestamp() * 1_000_000)
    except (ValueError, OverflowError):
        return None
    return found if 0 <= found <= _LATEST_US else None


_sent = lru_cache(maxsize=4096)(_instant)


class _Context(msgspec.Struct):
    user_agent: Any = msgspec.field(default=None, name="userAgent")


_read_context = msgspec.json.Decoder(_Context).decode


def _user_agent(context: Raw | UnsetType) -> str:
    if isinstance(context, UnsetType) or b'"userAgent"' not in bytes(context):
        return ""
    found = _read_context(context).user_agent
    return found if isinstance(found, str) else ""


class _Thread(msgspec.Struct):
    recommendation_id: Any = None


_read_thread = msgspec.json.Decoder(_Thread).decode


def _recommendation(properties: Raw | UnsetType) -> str | None:
    if isinstance(properties, UnsetType) or b'"recommendation_id"' not in bytes(properties):
        return None
    found = _read_thread(properties).recommendation_id
    return found if isinstance(found, str) and found else None


def _json_object(member: Raw | UnsetType, name: str) -> Raw | UnsetType:
    """Returns the JSON of an object, nothing for none; fails for what is something else."""
    if member is UNSET or memoryview(member)[:1] == b"{":
        return member
    text = bytes(member)
    if text == b"null":
        return UNSET
    raise _Failure("json", f"Expected `object`, got {text[:40]!r} - at `$.{name}`")


def visitor_key(visitor: str | None, user: str | None) -> str:
    """Returns the key under which a visitor is remembered, or a user without one."""
    return visitor if visitor is not None else f"\0{user}"


def _text_or_base64(value: bytes) -> tuple[str | None, str | None]:
    try:
        return value.decode(), None
    except UnicodeDecodeError:
        return None, base64.b64encode(value).decode()

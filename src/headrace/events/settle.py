"""The fold that turns raw clicks into events: each once, typed, in its session, at its true time.

`settle` depends on the records of one partition at lower offsets and on their times, on the dimensions
up to the offsets that those records name, and on nothing else: not on the clock, nor on how the records
are cut into portions. Whoever settles the same records under the same definitions gets the same bytes.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import Any, Final, Protocol, get_args

import msgspec
from msgspec import UNSET, Raw, UnsetType

from headrace.events.agent import Agent, read_agent
from headrace.events.click import HEADER, Door
from headrace.events.dimension import Dimension, History, read_marker
from headrace.events.event import Call, Envelope, Event, Reader, describe, properties_reader, read_items
from headrace.events.raw import (
    LATEST_US,
    Click,
    Failure,
    RawClick,
    id_key,
    json_object,
    place_key,
    read_click,
    read_instant,
    read_request,
    who,
)
from headrace.events.session import Session, join_session
from headrace.events.settled import (
    FAILED_VERSION,
    FLAGS,
    MAX_ATTRIBUTES_BYTES,
    MAX_ID,
    MAX_ROW_BYTES,
    MAX_VALUE_BYTES,
    VERSION,
    FailedEvent,
    Progress,
    SettledEvent,
    encode,
)

WINDOW_US = 7 * 24 * 3600 * 1_000_000
"""For how long, by the time in the topic, an id and a visitor are remembered."""
SHORTEST_WINDOW_US = 24 * 3600 * 1_000_000
TOLERANCE_US = 2_000_000
"""How far a client's clock may be off before its times are corrected."""

_PORTION = 512
_KINDS = {f"http/{call}": call for call in get_args(Call)}
_CLAMPED, _NO_ID, _NO_TIME, _REPAIRED, _SKEWED = (1 << bit for bit in range(len(FLAGS)))
_FLAGS: Final = tuple(
    tuple(flag for bit, flag in enumerate(sorted(FLAGS)) if bits >> bit & 1) for bits in range(1 << len(FLAGS))
)


class Seen(Protocol):
    """Which ids were settled or failed, and when: log_us * 2, plus 1 if failed."""

    def find(self, keys: Sequence[bytes]) -> Mapping[bytes, int]:
        """Returns the values of those keys that are known."""

    def add(self, entries: Mapping[bytes, int]) -> None:
        """Notes values; a later one replaces an earlier one."""


class Histories(Protocol):
    """What is known of the members of dimensions, followed as they grow."""

    def at_least(self, name: str, end: int) -> History:
        """Returns all members of a dimension below `end` and maybe more; raises if they do not come."""


class Visitor(msgspec.Struct, array_like=True, gc=False):
    """What is remembered of a visitor: the user, and the open session."""

    log_us: int
    """The newest event."""
    user: str | None = None
    session: Session | None = None
    session_log_us: int = 0
    """The newest event of that session; a late one outside of it does not keep it from being forgotten."""


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
    dimensions: dict[str, int] = field(default_factory=dict)
    """Up to which offset of its topic each dimension is known, by the newest marker."""
    histories: Histories | None = field(default=None, compare=False)
    """What the dimensions hold; needed once a marker names one."""


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

    @cached_property
    def readers(self) -> Mapping[str, Reader]:
        """What reads the properties of each declared event."""
        return {name: properties_reader(event) for name, event in self.declared.items()}

    @cached_property
    def items(self) -> Mapping[str, tuple[str, Dimension]]:
        """By event the path of its item, and the dimension that knows it."""
        found = ((name, event.item, event.of) for name, event in self.declared.items())
        return {name: (item, of) for name, item, of in found if item is not None and of is not None}

    @cached_property
    def dimensions(self) -> Mapping[str, Dimension]:
        """The dimensions that the events name."""
        return {of.name: of for _, of in self.items.values()}


@dataclass
class Outcome:
    """What came of some records."""

    events: list[SettledEvent] = field(default_factory=list)
    failures: list[FailedEvent] = field(default_factory=list)
    repeats: int = 0
    markers: int = 0
    """How many records were no events but marked how far a dimension is known."""
    is_silent: bool = True
    """Whether the last record brought neither event nor failure."""


def settle(state: State, records: Sequence[RawClick], rules: Rules) -> Outcome:
    """Returns what came of the records, which must go on at the state's offset; the state is moved on.

    No record raises. If `state.seen`, `state.visitors` or `state.histories` does, the state is moved on in part:
    throw it away.
    """
    outcome = Outcome()
    fold = _Fold(state, rules, outcome)
    for start in range(0, len(records), _PORTION):
        fold.take(records[start : start + _PORTION])
    return outcome


def restore(state: State, rows: Iterable[SettledEvent | FailedEvent | Progress]) -> None:
    """Moves the state on by what it once brought forth, in the order of `src_offset`."""
    entries: dict[bytes, int] = {}
    dimensions: Raw | Mapping[str, int] = {}
    for row in rows:
        if isinstance(row, SettledEvent):
            _restore_visitor(state, row)
            state.settled = row.seq + 1
            entries[id_key(row.source, row.message_id)] = row.log_us << 1
        elif isinstance(row, FailedEvent):
            state.failed = row.seq + 1
            entries[id_key(row.source, row.message_id)] = row.log_us << 1 | 1
            entries[place_key(row.replay_of or f"{state.partition}/{row.src_offset}")] = row.log_us << 1 | 1
        else:
            state.settled, state.failed = max(state.settled, row.settled), max(state.failed, row.failed)
        state.newest_us = max(state.newest_us, row.log_us)
        state.offset = row.src_offset + 1
        if not isinstance(row, FailedEvent) and row.dimensions is not UNSET:
            dimensions = row.dimensions
        if len(entries) >= _PORTION:
            state.seen.add(entries)
            entries = {}
    state.seen.add(entries)
    # The newest row says all that earlier ones say.
    state.dimensions.update(_read_dimensions(dimensions) if isinstance(dimensions, Raw) else dimensions)


_read_dimensions = msgspec.json.Decoder(dict[str, int]).decode


def _restore_visitor(state: State, row: SettledEvent) -> None:
    key = visitor_key(row.visitor, row.user_id)
    known = state.visitors.get(key)
    if row.session_first_us is not None and row.session_last_us is not None:
        session = Session(row.session_id, row.session_first_us, row.session_last_us)
        state.visitors[key] = Visitor(row.log_us, row.user_id, session, row.log_us)
    elif known is not None:
        state.visitors[key] = Visitor(row.log_us, row.user_id, known.session, known.session_log_us)
    else:
        state.visitors[key] = Visitor(row.log_us, row.user_id)


class _Fold:
    """The state with what every record needs at hand."""

    def __init__(self, state: State, rules: Rules, outcome: Outcome) -> None:
        self.state = state
        self.rules = rules
        self.outcome = outcome
        self.definitions = rules.definitions
        self.readers = rules.readers
        self.known: dict[str, _Known] = {}
        self.dimensions: Raw | UnsetType = UNSET
        self._look_up()

    def take(self, records: Sequence[RawClick]) -> None:
        """Settles a portion: all are decoded, looked up together, then judged one after the other."""
        state, outcome = self.state, self.outcome
        clicks = list(self._read_all(records))
        places = [place_key(click.request.place) for click in clicks if click.request.place is not None]
        known = dict(state.seen.find([click.key for click in clicks] + places))
        fresh: dict[bytes, int] = {}
        for click in clicks:
            if click.request.marker is not None:
                self._mark(click.request.marker)
                continue
            outcome.is_silent = self._is_repeat(click, known)
            if outcome.is_silent:
                outcome.repeats += 1
            elif self._judge(click):
                known[click.key] = fresh[click.key] = click.log_us << 1
            else:
                place = place_key(click.request.place or f"{state.partition}/{click.record.offset}")
                value = click.log_us << 1 | 1
                known[click.key] = fresh[click.key] = known[place] = fresh[place] = value
        state.seen.add(fresh)
        state.newest_us = clicks[-1].log_us
        state.offset = records[-1].offset + 1

    def _read_all(self, records: Sequence[RawClick]) -> Iterator[Click]:
        newest_us = self.state.newest_us
        partition = self.state.partition
        headers = None
        for record in records:
            if record.time_us > newest_us:
                newest_us = min(record.time_us, LATEST_US)
            if record.headers != headers:
                headers = record.headers
                request = read_request(headers)
            yield read_click(record, newest_us, request, partition)

    def _mark(self, value: bytes) -> None:
        """Moves a dimension on; what is no marker of ours, or an older one, changes nothing."""
        state = self.state
        self.outcome.markers += 1
        self.outcome.is_silent = True
        marker = read_marker(value)
        if marker is None or marker.name not in self.rules.dimensions:
            return
        if marker.offset > state.dimensions.get(marker.name, 0):
            state.dimensions[marker.name] = marker.offset
            self._look_up()

    def _look_up(self) -> None:
        """Takes the dimensions as they are known from here on."""
        ends, histories = self.state.dimensions, self.state.histories
        if not ends:
            return
        self.dimensions = Raw(encode(dict(sorted(ends.items()))))
        for name, dimension in self.rules.dimensions.items():
            if name in ends:
                assert histories is not None
                self.known[name] = _Known(dimension.names, histories.at_least(name, ends[name]), ends[name])

    def _attributes(self, event: str, properties: bytes, room: int) -> Raw | UnsetType:
        """Returns what is known of the items of a tracked event."""
        path, dimension = self.rules.items.get(event, ("", None))
        known = self.known.get(dimension.name) if dimension is not None else None
        return UNSET if known is None or not properties else known.tell(properties, path, room)

    def _is_repeat(self, click: Click, known: Mapping[bytes, int]) -> bool:
        oldest = (click.log_us - self.rules.window_us) << 1
        value = known.get(click.key, -1)
        stands = value >= oldest and value >= 0
        place = click.request.place
        if place is None:
            return stands
        # Taken once, while its place stands as failed; a forgotten one may have been taken already.
        failed = known.get(place_key(place), -1)
        return failed < max(oldest, 0) or (stands and not value & 1)

    def _judge(self, click: Click) -> bool:
        """Adds an event or a failure to the outcome; returns whether it is an event."""
        try:
            self.outcome.events.append(self._settle(click))
        except Failure as failure:
            self.outcome.failures.append(self._fail(click, failure))
            self.state.failed += 1
            return False
        self.state.settled += 1
        return True

    def _settle(self, click: Click) -> SettledEvent:
        request, envelope, door = click.request, click.envelope, click.request.door
        if click.failure is not None or envelope is None or door is None:
            raise Failure(*(click.failure or ("json", "the event could not be read")))
        visitor, user = who(envelope)
        kind = envelope.type or _KINDS.get(door.source) or _guess_kind(envelope)
        event = envelope.event if kind == "track" else kind
        if not event:
            raise Failure("name", "a tracked event needs a name in $.event")
        properties = json_object(envelope.properties, "properties")
        traits, context = json_object(envelope.traits, "traits"), json_object(envelope.context, "context")
        if kind == "track" and event in self.readers:
            _check_properties(self.readers[event], properties)
        # From here on nothing fails: a failed event moves nothing on.
        event_us, client_us, bits = _event_time(envelope, door, request.sent_us, self.rules.tolerance_us)
        user, session_id, session = self._visit(click, visitor, user, event_us)
        agent = _agent(context, door)
        # By position: by name the 36 of them cost 1.5 us more, a tenth of all that settling costs.
        return SettledEvent(
            VERSION,
            click.id,
            request.source,
            kind,
            event,
            event_us,
            door.received_us,
            click.log_us,
            user or visitor or "",
            session_id,
            click.record.offset,
            self.state.settled,
            self.definitions,
            visitor,
            user,
            _recommendation(properties) if properties else None,
            client_us,
            _FLAGS[bits | _NO_ID if click.is_made else bits],
            door.source,
            door.address,
            agent.device,
            agent.os,
            agent.browser,
            agent.bot,
            envelope.name,
            envelope.group_id,
            envelope.previous_id,
            envelope.properties if properties else UNSET,
            envelope.traits if traits else UNSET,
            envelope.context if context else UNSET,
            session.first_us if session else None,
            session.last_us if session else None,
            self._attributes(event, properties, MAX_VALUE_BYTES - len(click.record.value or b""))
            if self.known and kind == "track"
            else UNSET,
            self.dimensions,
        )

    def _visit(
        self, click: Click, visitor: str | None, user: str | None, event_us: int
    ) -> tuple[str | None, str, Session | None]:
        """Returns the user, the session's id, and the open session if the event has joined it; notes all three."""
        visitors, log_us = self.state.visitors, click.log_us
        key = visitor_key(visitor, user)
        known_user, found, session_log_us = _recall(visitors.get(key), log_us - self.rules.window_us)
        session_id, session = join_session(found, event_us, f"{self.state.partition}-{click.record.offset}")
        user = user or known_user
        if session is None:
            visitors[key] = Visitor(log_us, user, found, session_log_us)
        else:
            visitors[key] = Visitor(log_us, user, session, log_us)
        return user, session_id, session

    def _fail(self, click: Click, failure: Failure) -> FailedEvent:
        request, envelope, record = click.request, click.envelope, click.record
        visitor = user = known_user = session = None
        if envelope is not None:
            visitor, user = _short(envelope.anonymous_id), _short(envelope.user_id)
        if visitor or user:
            known = self.state.visitors.get(visitor_key(visitor, user))
            known_user, session, _ = _recall(known, click.log_us - self.rules.window_us)
        raw, raw_base64 = _text_or_base64(record.value or b"")
        row = FailedEvent(
            version=FAILED_VERSION,
            message_id=click.id,
            source=request.source,
            reason=failure.reason,
            message=str(failure)[:MAX_ID],
            received_us=request.door.received_us if request.door else max(0, min(record.time_us, LATEST_US)),
            log_us=click.log_us,
            src_offset=record.offset,
            seq=self.state.failed,
            definitions=self.definitions,
            event=_short(envelope.event) if envelope else None,
            visitor=visitor,
            user_id=user or known_user,
            session_id=session.id if session else None,
            replay_of=request.place,
            key=_short(record.key.decode("utf-8", "replace")) if record.key is not None else None,
            door=next((value.decode("utf-8", "replace") for name, value in record.headers if name == HEADER), None),
            raw=raw,
            raw_base64=raw_base64,
        )
        return _fit(row)


class _Known:
    """What is known of the members of a dimension below an offset, as events carry it."""

    def __init__(self, names: Sequence[str], history: History, end: int) -> None:
        self._names = names
        self._history = history
        self._end = end
        self._told: dict[str, bytes] = {}

    def tell(self, properties: bytes, path: str, room: int) -> Raw | UnsetType:
        """Returns the attributes of the items at a path, by their ids, as many as there is room for."""
        found, length = [], 1
        for item in dict.fromkeys(_items(properties, path)):
            told = self._told.get(item)
            if told is None:
                told = self._told[item] = self._tell_one(item)
            if not told:
                continue
            length += len(told) + 1
            if length > min(room, MAX_ATTRIBUTES_BYTES):
                break
            found.append(told)
        return Raw(b"{" + b",".join(found) + b"}") if found else UNSET

    def _tell_one(self, item: str) -> bytes:
        attributes = self._history.at(item, self._end)
        if attributes is None:
            return b""
        known = {name: value for name in self._names if (value := attributes.get(name)) is not None}
        return encode({item: known})[1:-1]


def _items(properties: bytes, path: str) -> list[str]:
    try:
        return read_items(properties, path)
    except (ValueError, RecursionError):
        # What the event's type does not name was passed over, such as a text with half a surrogate pair.
        return []


def _guess_kind(envelope: Envelope) -> str:
    """Returns the kind of call by what it has, where neither the event nor its door says it."""
    if envelope.event:
        return "track"
    raise Failure("name", "neither $.type nor $.event says what it is")


def _check_properties(read: Reader, properties: bytes) -> None:
    try:
        read(properties or b"{}")
    except msgspec.MsgspecError as error:
        raise Failure("properties", str(error)) from error


def _recall(known: Visitor | None, oldest_us: int) -> tuple[str | None, Session | None, int]:
    """Returns the user, the open session and its time, as far as they are not forgotten."""
    if known is None or known.log_us < oldest_us:
        return None, None, 0
    if known.session_log_us < oldest_us:
        return known.user, None, 0
    return known.user, known.session, known.session_log_us


def _event_time(envelope: Envelope, door: Door, sent_us: int | None, tolerance_us: int) -> tuple[int, int | None, int]:
    """Returns when it happened, what the client said, and what was odd, as bits."""
    received_us = door.received_us
    bits = _REPAIRED if door.repaired else 0
    client_us = read_instant(envelope.original_timestamp)
    if client_us is None:
        client_us = read_instant(envelope.timestamp)
    if client_us is None:
        return received_us, None, bits | _NO_TIME
    event_us = client_us
    if envelope.sent_at:
        own_us = read_instant(envelope.sent_at)
        sent_us = sent_us if own_us is None else own_us
    if sent_us is not None and abs(received_us - sent_us) > tolerance_us:
        event_us += received_us - sent_us
        bits |= _SKEWED
    if 0 <= event_us <= received_us:
        return event_us, client_us, bits
    return received_us if event_us > 0 else 0, client_us, bits | _CLAMPED


class _Context(msgspec.Struct):
    user_agent: Any = msgspec.field(default=None, name="userAgent")


_read_context = msgspec.json.Decoder(_Context).decode


def _agent(context: bytes, door: Door) -> Agent:
    if len(context) + len(door.user_agent) + len(door.hints) < 4096:
        return _known_agent(context, door.user_agent, door.hints)
    return _read_agent(context, door.user_agent, door.hints)


def _read_agent(context: bytes, user_agent: str, hints: str) -> Agent:
    try:
        found = _read_context(context).user_agent if context else None
    except msgspec.MsgspecError:
        found = None
    if not found or not isinstance(found, str) or found == user_agent:
        return read_agent(user_agent, hints)
    # The hints speak of whoever sent the request, which may be a server that passes its client's agent on.
    return read_agent(found)


_known_agent = lru_cache(maxsize=2048)(_read_agent)


class _Thread(msgspec.Struct):
    recommendation_id: Any = None


_read_thread = msgspec.json.Decoder(_Thread).decode


def _recommendation(properties: bytes) -> str | None:
    if b'"recommendation_id"' not in properties:
        return None
    try:
        found = _read_thread(properties).recommendation_id
    except msgspec.MsgspecError:
        return None
    return _short(found) or None if isinstance(found, str) else None


def visitor_key(visitor: str | None, user: str | None) -> str:
    """Returns the key under which a visitor is remembered, or a user without one."""
    if visitor is None:
        return f"\0u{user}"
    return f"\0v{visitor}" if visitor.startswith("\0") else visitor


def _short(text: str | None) -> str | None:
    return text if text is not None and len(text) <= MAX_ID else None


def _text_or_base64(value: bytes) -> tuple[str | None, str | None]:
    try:
        return value.decode(), None
    except UnicodeDecodeError:
        return None, base64.b64encode(value).decode()


def _fit(row: FailedEvent) -> FailedEvent:
    """Returns a row that a topic takes: what is too long when it is escaped is written in base64, or left out."""
    if 6 * (len(row.raw or row.raw_base64 or "") + len(row.door or "")) < MAX_ROW_BYTES // 2:
        return row
    if row.door is not None and len(encode(row.door)) > MAX_ROW_BYTES // 2:
        row.door = None
    if row.raw is not None and len(encode(row)) > MAX_ROW_BYTES:
        row.raw_base64 = base64.b64encode(row.value()).decode()
        row.raw = None
    if len(encode(row)) > MAX_ROW_BYTES:
        row.raw_base64 = None
    return row

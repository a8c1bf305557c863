"""The fold of settling: whatever the bytes, the batches, the restarts and the repeats, each event happens once."""

import json
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.events import settled
from headrace.events.click import Door, encode_door
from headrace.events.dimension import MARKER, Attribute, Dimension, History, Marker, encode
from headrace.events.event import Event
from headrace.events.seen import Seen
from headrace.events.session import GAP_US
from headrace.events.settle import (
    SHORTEST_WINDOW_US,
    WINDOW_US,
    Rules,
    State,
    Visitor,
    id_key,
    restore,
    settle,
    visitor_key,
)
from headrace.events.settled import (
    FLAGS,
    MAX_ATTRIBUTES_BYTES,
    MAX_ID,
    MAX_ROW_BYTES,
    MAX_VALUE_BYTES,
    REASONS,
    REPLAY,
    Progress,
)
from headrace.topics import Message
from headrace.topics.topic import MAX_RECORD_BYTES

SECOND = 1_000_000
HOUR = 3600 * SECOND
NOON = 1_767_614_400 * SECOND  # 2026-01-05T12:00Z
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"
SEATS = Dimension("seats", key="seat", attributes=(Attribute("row"), Attribute("price")))
PLAYS = Dimension("plays", key="play", attributes=(Attribute("genre"),))
DECLARED = (
    Event("Seat Chosen", item="seat", of=SEATS, fields={"seat": str, "price": float}),
    Event("Seats Shown", item="seats[].seat", of=SEATS),
    Event("Play Shown", item="play", of=PLAYS),
)
STRICT = Rules({event.name: event for event in DECLARED})


def histories():
    """Returns what is known of seats, whose rows change, and of plays."""
    known = {"seats": History(), "plays": History()}
    for offset in range(40):
        row = {"row": f"r{offset}", "price": offset / 2, "colour": "red"}
        known["seats"].add(offset, f"s-{offset % 4}", row if offset % 5 else {})
        known["plays"].add(offset, f"p-{offset % 3}", {"genre": None if offset % 4 else offset})
    return known


KNOWN = histories()


class Known:
    """What all topics of dimensions hold, to their ends."""

    def at_least(self, name, end):
        assert KNOWN[name].end >= end
        return KNOWN[name]


class Index(dict):
    """An index of seen ids in memory; the one on disk has its own tests."""

    def find(self, keys):
        return {key: self[key] for key in keys if key in self}

    def add(self, entries):
        self.update(entries)


def empty_state(partition=0):
    return State(Index(), {}, partition, histories=Known())


def iso(us):
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)).isoformat()


def door(received_us=NOON, **more):
    known = {"version": 1, "received_us": received_us, "source": "http/batch", "write_key": "dev", "address": "::1"}
    return encode_door(Door(**(known | more)))


def click(offset, value=None, /, *, time_us=NOON, headers=None, replay_of=None, **members):
    """Returns a raw click; members with the value None are left out."""
    if value is None:
        common = {"type": "track", "event": "Tea Brewed", "messageId": f"m-{offset}", "anonymousId": "ann"}
        given = {name: member for name, member in (common | members).items() if member is not None}
        value = json.dumps(given).encode()
    headers = door(time_us) if headers is None else headers
    if replay_of is not None:
        headers = (*headers, (REPLAY, replay_of.encode()))
    return Message(b"ann", value, time_us, headers, 0, offset)


def at(offset, event_us, *, received_us=None, **members):
    """Returns a click of that time, from a client whose clock is right, which reached the door later or at once."""
    received_us = event_us if received_us is None else received_us
    return click(
        offset,
        time_us=received_us,
        headers=door(received_us),
        timestamp=iso(event_us),
        sentAt=iso(received_us),
        **members,
    )


def marker(offset, name, end, *, time_us=NOON, **more):
    """Returns the record that says from where on a dimension counts."""
    value = encode(Marker(**({"version": 1, "name": name, "incarnation": "i", "offset": end} | more)))
    return Message(b"k", b"", time_us, ((MARKER, value),), 0, offset)


def settle_one(event, *, state=None, rules=STRICT):
    outcome = settle(empty_state() if state is None else state, [event], rules)
    assert len(outcome.events) + len(outcome.failures) + outcome.repeats == 1
    return (outcome.events + outcome.failures)[0]


class Log:
    """What a settler brings forth, as the topics `events` and `failed` keep it."""

    def __init__(self, rules=STRICT, partition=0):
        self.rules = rules
        self.state = empty_state(partition)
        self.rows = []
        self.repeats = self.markers = 0

    def take(self, clicks):
        outcome = settle(self.state, clicks, self.rules)
        rows = [("events", row) for row in outcome.events] + [("failed", row) for row in outcome.failures]
        rows.sort(key=lambda row: row[1].src_offset)
        self.rows += [(name, row.src_offset, row.log_us, settled.encode(row)) for name, row in rows]
        self.repeats += outcome.repeats
        self.markers += outcome.markers
        if outcome.is_silent or outcome.markers:
            state = self.state
            numbers = {"settled": state.settled, "failed": state.failed, "dimensions": state.dimensions}
            progress = Progress(version=2, src_offset=state.offset - 1, log_us=state.newest_us, **numbers)
            self.rows.append(("progress", state.offset - 1, state.newest_us, settled.encode(progress)))
        return outcome

    def restart(self):
        """Makes the state anew of what was written in the last window, and the last row of each kind."""
        decode = {
            "events": settled.decode_settled,
            "failed": settled.decode_failed,
            "progress": settled.decode_progress,
        }
        oldest_us = max((row[2] for row in self.rows), default=0) - self.rules.window_us
        last = {row[0]: index for index, row in enumerate(self.rows)}
        kept = [row for index, row in enumerate(self.rows) if row[2] >= oldest_us or last[row[0]] == index]
        self.state = empty_state(self.state.partition)
        restore(self.state, [decode[name](data) for name, _, _, data in kept])

    def written(self):
        return [(name, data) for name, _, _, data in self.rows if name != "progress"]


def fold(clicks, *, cuts=(), restarts=(), rules=STRICT):
    """Returns the log of the clicks, cut into portions, with the state made anew before some of them."""
    log = Log(rules)
    bounds = sorted({0, len(clicks), *(cut for cut in (*cuts, *restarts) if cut < len(clicks))})
    for start, stop in pairwise(bounds):
        if start in restarts:
            log.restart()
        log.take(clicks[start:stop])
    return log


# ---- one event


def test_event_is_typed_and_told_who_when_and_how():
    properties = {"product_id": "p-1", "recommendation_id": "rec-9"}
    event = click(
        7,
        event="Product Clicked",
        userId="ann@example.org",
        timestamp="2026-01-05T11:59:58.5Z",
        properties=properties,
        context={"userAgent": FIREFOX},
    )
    row = settle_one(event)
    assert (row.message_id, row.source, row.type, row.event) == ("m-7", "dev", "track", "Product Clicked")
    assert (row.visitor, row.user_id, row.person) == ("ann", "ann@example.org", "ann@example.org")
    assert (row.event_us, row.client_us, row.received_us, row.log_us) == (NOON - 1_500_000,) * 2 + (NOON, NOON)
    assert (row.recommendation_id, row.session_id, row.src_offset, row.seq) == ("rec-9", "0-7", 7, 0)
    assert (row.device, row.os, row.browser, row.bot) == ("Other", "Linux", "Firefox", False)
    assert json.loads(bytes(row.properties)) == properties
    assert row.flags == ()


def test_event_without_a_user_agent_of_its_own_has_that_of_its_request():
    headers = door(user_agent="Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)")
    assert settle_one(click(0, headers=headers)).bot
    assert not settle_one(click(0, headers=headers, context={"userAgent": FIREFOX})).bot


@pytest.mark.parametrize(
    ("members", "source", "kind", "name"),
    [
        ({"type": "page", "event": None, "name": "Home"}, "http/batch", "page", "page"),
        ({"type": None}, "http/track", "track", "Tea Brewed"),
        ({"type": None}, "http/batch", "track", "Tea Brewed"),
        ({"type": None, "event": None}, "http/identify", "identify", "identify"),
        ({"type": "screen"}, "http/page", "screen", "screen"),
    ],
)
def test_kind_of_call_is_told_by_the_event_then_its_door_then_its_name(members, source, kind, name):
    row = settle_one(click(0, headers=door(source=source), **members))
    assert (row.type, row.event) == (kind, name)


def test_user_is_the_one_known_at_that_offset_and_login_changes_neither_visitor_nor_session():
    clicks = [at(0, NOON), at(1, NOON + SECOND, userId="u-1"), at(2, NOON + 2 * SECOND), at(3, NOON + HOUR)]
    rows = Log().take([*clicks, at(4, NOON + HOUR, userId="u-2"), at(5, NOON + HOUR)]).events
    assert [row.user_id for row in rows] == [None, "u-1", "u-1", "u-1", "u-2", "u-2"]
    assert [row.person for row in rows] == ["ann", "u-1", "u-1", "u-1", "u-2", "u-2"]
    assert {row.visitor for row in rows} == {"ann"}
    assert [row.session_id for row in rows] == ["0-0", "0-0", "0-0", "0-3", "0-3", "0-3"]


@pytest.mark.parametrize(("age_us", "user"), [(0, "u-1"), (1000, None)])
@pytest.mark.parametrize("restarted", [False, True])
def test_user_is_forgotten_when_the_window_ends(age_us, user, restarted):
    last_us = NOON + SECOND + WINDOW_US + age_us
    clicks = [at(0, NOON, userId="u-1"), at(1, NOON + SECOND), at(2, last_us), at(3, last_us, event="", userId=None)]
    rows = fold(clicks, restarts=(2, 3) if restarted else ()).written()
    assert [json.loads(data).get("user_id") for _, data in rows] == ["u-1", "u-1", user, user]


def test_user_without_a_visitor_is_not_mistaken_for_a_visitor():
    clicks = [
        click(0, anonymousId=None, userId="ann"),
        click(1, anonymousId="\0uann", userId="eve"),
        click(2, anonymousId="\0ann"),
        click(3, anonymousId=None, userId="ann"),
    ]
    rows = Log().take(clicks).events
    assert [(row.visitor, row.user_id) for row in rows] == [
        (None, "ann"),
        ("\0uann", "eve"),
        ("\0ann", None),
        (None, "ann"),
    ]
    assert [row.session_id for row in rows] == ["0-0", "0-1", "0-2", "0-0"]


# ---- time


@pytest.mark.parametrize("hours", [3, -3, 400 * 24])
def test_time_of_a_client_whose_clock_is_off_is_corrected_within_a_second(hours):
    wrong_us = NOON + hours * HOUR
    event = click(0, timestamp=iso(wrong_us - 90 * SECOND), sentAt=iso(wrong_us - SECOND // 2))
    row = settle_one(event)
    assert abs(row.event_us - (NOON - 90 * SECOND)) <= SECOND
    assert (row.client_us, row.flags) == (wrong_us - 90 * SECOND, ("skewed",))


def test_time_of_an_offline_queue_stays_true():
    event = click(0, timestamp=iso(NOON - 6 * HOUR), sentAt=iso(NOON - SECOND))
    row = settle_one(event)
    assert (row.event_us, row.client_us, row.flags) == (NOON - 6 * HOUR, NOON - 6 * HOUR, ())


@pytest.mark.parametrize(("off_us", "flags"), [(2 * SECOND, ()), (2 * SECOND + 1, ("skewed",))])
@pytest.mark.parametrize("sign", [1, -1])
def test_time_within_the_tolerance_is_left_as_it_is(off_us, flags, sign):
    row = settle_one(click(0, timestamp=iso(NOON - HOUR), sentAt=iso(NOON + sign * off_us)))
    assert row.flags == flags
    assert row.event_us == NOON - HOUR - (sign * off_us if flags else 0)


def test_time_after_the_arrival_is_clamped_and_kept():
    row = settle_one(click(0, timestamp=iso(NOON + SECOND)))
    assert (row.event_us, row.client_us, row.flags) == (NOON, NOON + SECOND, ("clamped",))


def test_sent_at_of_the_request_counts_unless_the_event_has_a_readable_one():
    headers = door(sent_at=iso(NOON + HOUR))
    early = iso(NOON - HOUR)
    assert settle_one(click(0, headers=headers, timestamp=early)).event_us == NOON - 2 * HOUR
    assert settle_one(click(0, headers=headers, timestamp=early, sentAt="soon")).event_us == NOON - 2 * HOUR
    assert settle_one(click(0, headers=headers, timestamp=early, sentAt=iso(NOON))).event_us == NOON - HOUR


def test_original_timestamp_counts_before_timestamp_if_it_can_be_read():
    assert settle_one(click(0, originalTimestamp=iso(NOON - HOUR), timestamp=iso(NOON))).client_us == NOON - HOUR
    assert settle_one(click(0, originalTimestamp="then", timestamp=iso(NOON))).client_us == NOON


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("2026-01-05T12:00:00Z", NOON),
        ("2026-01-05T12:00:00", NOON),
        ("2026-01-05T13:30:00.000001+01:30", NOON + 1),
        ("2026-01-05 12:00:00,5Z", NOON + SECOND // 2),
        ("20260105T120000Z", NOON),
        ("2026-W02-1T12:00Z", NOON),
        ("2026-01-05T12:00:00.1234567Z", NOON + 123_456),
        ("1970-01-01T00:00:00Z", 0),
        ("9999-12-31T23:59:59.999999Z", 253_402_300_799_999_999),
    ],
)
def test_instants_are_read_in_many_forms_to_the_microsecond(text, us):
    row = settle_one(click(0, timestamp=text))
    assert (row.client_us, "no_time" in row.flags) == (us, False)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "now", "0000-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "10000-01-01T00:00:00Z"),
        *("9999-12-31T23:59:59-14:00", "1969-12-31T23:59:59Z", "2026-02-30", "2026-01-05T25:00", "1767614400", "\0"),
        *(
            "2026-01-05T12:00:60Z",
            "2026-01-05T12:00:00+99:99",
            "+2026-01-05",
            "\u0662\u0660\u0662\u0666-01-05",
            "T",
            "x" * 100_000,
        ),
    ],
)
def test_instant_that_cannot_be_read_leaves_the_arrival(text):
    row = settle_one(click(0, timestamp=text, originalTimestamp=text, sentAt=text))
    assert (row.event_us, row.client_us, row.flags) == (NOON, None, ("no_time",))


def test_nonsense_of_a_client_never_leads_before_1970():
    row = settle_one(click(0, timestamp=iso(NOON), sentAt="9999-12-31T23:59:59Z"))
    assert (row.event_us, row.flags) == (0, ("clamped", "skewed"))


def test_every_flag_is_raised():
    rows = [
        settle_one(click(0, timestamp=iso(NOON + HOUR), messageId=None, headers=door(repaired=True))),
        settle_one(click(0, timestamp=iso(NOON + HOUR), sentAt=iso(NOON + HOUR))),
        settle_one(click(0)),
    ]
    assert [row.flags for row in rows] == [("clamped", "no_message_id", "repaired"), ("skewed",), ("no_time",)]
    assert {flag for row in rows for flag in row.flags} == FLAGS.keys()


def test_time_in_the_topic_never_falls():
    times = [NOON, NOON - HOUR, NOON + 1, -1000]
    rows = Log().take([click(offset, time_us=us, headers=door()) for offset, us in enumerate(times)]).events
    assert [row.log_us for row in rows] == [NOON, NOON, NOON + 1, NOON + 1]


# ---- sessions


def test_session_goes_on_up_to_half_an_hour_after_its_last_event():
    for gap, joined in ((GAP_US - SECOND, True), (GAP_US, True), (GAP_US + SECOND, False)):
        rows = Log().take([at(0, NOON), at(1, NOON + gap)]).events
        assert [row.session_id for row in rows] == ["0-0", "0-0" if joined else "0-1"]


def test_session_takes_late_events_up_to_half_an_hour_before_its_first():
    for gap, joined in ((GAP_US - SECOND, True), (GAP_US, True), (GAP_US + SECOND, False)):
        late = at(1, NOON - gap, received_us=NOON)
        rows = (
            Log()
            .take([at(0, NOON), late, at(2, NOON - GAP_US - 60 * SECOND, received_us=NOON), at(3, NOON + 1)])
            .events
        )
        assert rows[1].session_id == ("0-0" if joined else "0-1")
        assert rows[1].session_first_us == (NOON - gap if joined else None)
        # Widened, the session reaches further back.
        assert rows[2].session_id == ("0-0" if joined else "0-2")
        assert rows[3].session_id == "0-0"


def test_event_before_the_open_session_has_a_session_of_its_own_and_changes_none():
    log = Log()
    log.take([at(0, NOON, userId="u-1")])
    before = deepcopy(log.state.visitors["ann"])
    row = log.take([at(1, NOON - 5 * HOUR, received_us=NOON)]).events[0]
    assert (row.session_id, row.session_first_us, row.session_last_us, row.user_id) == ("0-1", None, None, "u-1")
    assert log.state.visitors["ann"] == before


def test_sessions_survive_a_door_whose_clock_is_set_back_an_hour():
    log = Log()
    clicks = [at(0, NOON), at(1, NOON + 600 * SECOND)]
    # The clients' clocks are right, so all that they say looks an hour ahead.
    for offset, us in ((2, NOON + 1200 * SECOND), (3, NOON + 1800 * SECOND)):
        headers = door(us - HOUR)
        clicks.append(click(offset, time_us=us, headers=headers, timestamp=iso(us), sentAt=iso(us)))
    rows = log.take([*clicks, at(4, NOON + 2400 * SECOND)]).events
    assert [row.session_id for row in rows] == ["0-0", "0-0", "0-2", "0-0", "0-0"]
    assert [row.flags for row in rows] == [(), (), ("skewed",), ("skewed",), ()]
    assert all(row.event_us <= row.received_us for row in rows)


def test_session_is_forgotten_by_its_own_events_and_not_kept_by_late_ones():
    window_us = SHORTEST_WINDOW_US
    rules = Rules(window_us=window_us)
    times = [NOON, NOON + window_us - HOUR, NOON + window_us + SECOND]
    clicks = [
        at(0, NOON),
        click(1, time_us=times[1], headers=door(times[1]), timestamp=iso(NOON - 9 * HOUR)),
        click(2, time_us=times[2], headers=door(times[2]), timestamp=iso(NOON + SECOND)),
    ]
    whole, restarted = fold(clicks, rules=rules), fold(clicks, restarts=(1, 2), rules=rules)
    assert whole.written() == restarted.written()
    assert [settled.decode_settled(data).session_id for _, data in whole.written()] == ["0-0", "0-1", "0-2"]


# ---- once


def test_id_comes_in_once_by_source_and_message_id():
    other = door(write_key="app")
    clicks = [click(0, messageId="m"), click(1, messageId="m"), click(2, messageId="m", headers=other)]
    outcome = Log().take(clicks)
    assert [(row.source, row.message_id, row.seq) for row in outcome.events] == [("dev", "m", 0), ("app", "m", 1)]
    assert outcome.repeats == 1


def test_event_without_an_id_is_never_a_repeat_and_nobody_can_take_its_id():
    thief = click(0, messageId="0/1")
    outcome = Log().take([thief, click(1, messageId=None), click(2, messageId=None), click(3, messageId="0/1")])
    assert [(row.message_id, row.flags) for row in outcome.events] == [
        ("0/1", ("no_message_id", "no_time")),
        ("0/2", ("no_message_id", "no_time")),
    ]
    assert [(row.reason, row.message_id) for row in outcome.failures] == [("identity", "0/0"), ("identity", "0/3")]


@pytest.mark.parametrize(("age_us", "is_repeat"), [(-1000, True), (0, True), (1000, False)])
@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("name", ["Tea Brewed", ""])
def test_id_is_forgotten_exactly_when_the_window_ends(age_us, is_repeat, restarted, name):
    again_us = NOON + WINDOW_US + age_us
    clicks = [click(0, messageId="m", event=name), click(1, messageId="m", event=name, time_us=again_us)]
    log = fold(clicks, cuts=(1,), restarts=(1,) if restarted else ())
    assert (log.repeats, len(log.written())) == ((1, 1) if is_repeat else (0, 2))


def test_repeat_does_not_prolong_what_is_remembered():
    step = WINDOW_US * 2 // 3
    log = fold([click(offset, messageId="m", time_us=NOON + offset * step) for offset in range(4)], restarts=(2,))
    assert [settled.decode_settled(data).src_offset for _, data in log.written()] == [0, 2]


def test_failed_id_is_a_repeat_when_it_is_resent_and_moves_nothing_on():
    log = Log()
    log.take([at(0, NOON, userId="u-1")])
    visitors = deepcopy(log.state.visitors)
    bad = {"event": "Seat Chosen", "properties": {"price": "dear"}, "messageId": "bad", "userId": "u-2"}
    outcome = log.take([click(1, **bad), click(2, **bad)])
    assert ([row.reason for row in outcome.failures], outcome.repeats, outcome.is_silent) == (["properties"], 1, True)
    failure = outcome.failures[0]
    assert (failure.visitor, failure.user_id, failure.session_id) == ("ann", "u-2", "0-0")
    assert failure.message == "Seat Chosen: Expected `float | null`, got `str` - at `$.price`"
    assert (log.state.visitors, log.state.settled, log.state.failed) == (visitors, 1, 1)


# ---- replays

BAD = {"event": "Seat Chosen", "properties": {"price": "dear", "seat": "4a"}}
LENIENT = Rules({"Seat Chosen": Event("Seat Chosen", fields={"seat": str})})


def again(failure, offset, *, time_us=NOON):
    """Returns the replay of a failed event, as a settled partition 0 gets it."""
    headers = ((("door", failure.door.encode()),) if failure.door is not None else ()) + (
        (REPLAY, (failure.replay_of or f"0/{failure.src_offset}").encode()),
    )
    key = None if failure.key is None else failure.key.encode()
    return Message(key, failure.value(), time_us, headers, 0, offset)


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("message_id", ["m", None])
def test_replay_after_a_fix_comes_in_once(restarted, message_id):
    log = Log()
    failure = log.take([click(0, messageId=message_id, **BAD)]).failures[0]
    log.rules = LENIENT
    for offset in (1, 2, 3):
        if restarted:
            log.restart()
        log.take([again(failure, offset, time_us=NOON + HOUR)])
    assert [name for name, _ in log.written()] == ["failed", "events"]
    assert log.repeats == 2
    event = settled.decode_settled(log.written()[1][1])
    assert (event.message_id, event.src_offset) == (message_id or "0/0", 1)
    assert (event.received_us, event.log_us) == (NOON, NOON + HOUR)
    assert event.definitions != failure.definitions


@pytest.mark.parametrize("restarted", [False, True])
def test_replay_that_fails_again_is_a_failure_again_and_may_be_replayed_again(restarted):
    log = Log()
    failures = [log.take([click(0, **BAD)]).failures[0]]
    for offset in (1, 2):
        if restarted:
            log.restart()
        failures.append(log.take([again(failures[-1], offset)]).failures[0])
    assert [(row.seq, row.replay_of, row.message_id) for row in failures] == [
        (0, None, "m-0"),
        (1, "0/0", "m-0"),
        (2, "0/0", "m-0"),
    ]
    log.rules = LENIENT
    # Each of the three rows may be replayed; it is one event.
    outcome = log.take([again(row, 3 + index) for index, row in enumerate(failures)])
    assert (len(outcome.events), outcome.repeats) == (1, 2)


@pytest.mark.parametrize("restarted", [False, True])
def test_replay_comes_in_under_an_id_that_could_not_be_read_when_it_failed(restarted):
    unreadable = b'{"type":"track","event":"E","messageId":"m","anonymousId":"a","timestamp":5}'
    log = Log()
    failures = log.take([click(0, unreadable), click(1, unreadable)]).failures
    assert [row.message_id for row in failures] == ["0/0", "0/1"]
    if restarted:
        log.restart()
    # As if a later version read what this one does not.
    readable = unreadable.replace(b"5}", b'"5"}')
    replays = [click(2 + number, readable, replay_of=f"0/{number % 2}") for number in range(4)]
    outcome = log.take(replays)
    assert ([row.message_id for row in outcome.events], outcome.repeats) == (["m"], 3)


def test_replay_of_what_never_failed_or_is_forgotten_is_a_repeat():
    log = Log()
    failure = log.take([click(0), click(1, **BAD)]).failures[0]
    assert log.take([click(2, replay_of="0/0"), click(3, replay_of="0/9"), click(4, replay_of="1/1")]).repeats == 3
    late = again(failure, 5, time_us=NOON + WINDOW_US + 1000)
    assert log.take([late]).repeats == 1
    log.restart()
    assert log.take([late]).repeats == 1


def test_replay_from_nowhere_is_a_failure():
    for place in ("", "x", "0/", "0/1/2", "0/-1", "0/" + "1" * 1_000_000, "ö/1"):
        failure = settle_one(click(3, replay_of=place))
        assert (failure.reason, failure.message_id, failure.replay_of) == ("record", "m-3", None)


# ---- poison


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (click(0, b""), "json"),
        (Message(None, None, NOON, door(), 0, 0), "json"),
        (click(0, b"42"), "json"),
        (click(0, b"[]"), "json"),
        (click(0, b'{"anonymousId": "a", "properties": {"a": NaN}}'), "json"),
        (click(0, b'{"anonymousId": "a", "event": "E", "properties": {"a": "\xff"}}'), "json"),
        (click(0, b'{"anonymousId": "a", "event": "E", "more": ["\xed\xa0\x80"]}'), "json"),
        (click(0, b'{"anonymousId": "a", "event": "\\ud800"}'), "json"),
        (click(0, b'{"anonymousId": "a", "event": "E", "context": ' + b"[" * 100_000), "json"),
        (click(0, properties=[]), "json"),
        (click(0, context="x"), "json"),
        (click(0, traits=1), "json"),
        (click(0, type="trck"), "json"),
        (click(0, type="x" * 500_000), "json"),
        (click(0, timestamp=5), "json"),
        (click(0, messageId=1.5), "json"),
        (click(0, anonymousId=None), "identity"),
        (click(0, anonymousId=""), "identity"),
        (click(0, anonymousId="a" * 500_000), "identity"),
        (click(0, userId="u" * (MAX_ID + 1)), "identity"),
        (click(0, messageId="m" * 500_000), "identity"),
        (click(0, event=None), "name"),
        (click(0, event=""), "name"),
        (click(0, type=None, event=None), "name"),
        (click(0, event="Seat Chosen", properties={"seat": []}), "properties"),
        (
            click(0, b'{"type":"track","event":"Seat Chosen","anonymousId":"a","properties":{"price":1e999}}'),
            "properties",
        ),
        (click(0, event="x" * MAX_VALUE_BYTES), "size"),
        (click(0, headers=()), "record"),
        (click(0, headers=(("door", b"\xff" * 900_000),)), "record"),
        (click(0, headers=(("door", b'{"version":1,"received_us":1,"source":"\xff"}'),)), "record"),
        (click(0, headers=(("door", b'{"version":1,"new":' + b"[" * 100_000),)), "record"),
        (click(0, headers=door(10**30)), "record"),
        (click(0, headers=door(-1)), "record"),
        (click(0, headers=door(source="s" * 100_000)), "record"),
        (click(0, headers=door(write_key="")), "key"),
    ],
)
def test_record_that_cannot_be_settled_fails_with_its_reason(event, reason):
    state = empty_state()
    failure = settle_one(event, state=state)
    assert (failure.reason, failure.seq, failure.src_offset) == (reason, 0, 0)
    assert (state.settled, state.failed, state.visitors, state.offset) == (0, 1, {}, 1)
    assert failure.value() == (event.value or b"")
    check_row(failure)


def test_every_reason_is_tested():
    cases = test_record_that_cannot_be_settled_fails_with_its_reason.pytestmark[0].args[1]
    assert {reason for _, reason in cases} == REASONS.keys()


def check_row(row):
    data = settled.encode(row)
    decode = settled.decode_failed if isinstance(row, settled.FailedEvent) else settled.decode_settled
    assert decode(data) == row
    assert len(data) <= MAX_ROW_BYTES < MAX_RECORD_BYTES - 4 * MAX_ID
    json.loads(data)


def nested(depth):
    return b'{"anonymousId":"a","event":"E","properties":{"a":' + b"[" * (depth - 2) + b"]" * (depth - 2) + b"}}"


def test_nesting_has_a_limit_that_does_not_depend_on_the_caller():
    def deeper(depth, value):
        return deeper(depth - 1, value) if depth else type(settle_one(click(0, value))).__name__

    for depth in (0, 300):
        assert deeper(depth, nested(400)) == "SettledEvent"
        assert deeper(depth, nested(401)) == "FailedEvent"
    brackets_in_text = json.dumps({"anonymousId": "a", "event": "[{" * 5000, "name": '"[\\' * 999}).encode()
    assert type(settle_one(click(0, brackets_in_text))).__name__ == "SettledEvent"


@pytest.mark.parametrize("letter", ["\\", '"', "\x01", "ü", "x"])
def test_rows_fit_into_a_topic_however_long_they_grow_when_they_are_escaped(letter):
    long = letter * (440_000 // len(json.dumps(letter)[1:-1]))
    row = settle_one(click(0, event=long, properties={"recommendation_id": long}))
    assert (row.event, row.recommendation_id) == (long, None)
    check_row(row)
    failure = settle_one(click(0, event=long, timestamp=5))
    assert json.loads(failure.value())["event"] == long
    check_row(failure)


def test_largest_row_of_all_fits():
    long = "\x01" * MAX_ID
    members = {"anonymousId": long, "userId": long, "messageId": long, "properties": {"recommendation_id": long}}
    headers = door(source="cdc" + long[3:], address=long, write_key=long, repaired=True)
    room = MAX_VALUE_BYTES - len(click(0, **members).value) - len(', "name": ""')
    event = click(0, headers=headers, **members, name="x" * room)
    assert len(event.value) == MAX_VALUE_BYTES
    check_row(settle_one(event))


def test_failure_that_is_too_long_for_a_topic_says_where_its_event_stands():
    failure = settle_one(click(4, b"\xff" * 990_000))
    check_row(failure)
    with pytest.raises(settled.RecordError, match="read it at offset 4 of its partition of 'clicks'"):
        failure.value()


def test_time_beyond_all_years_does_not_overflow():
    for time_us in (2**63 * 1000, -(2**63)):
        row = settle_one(click(0, b"", time_us=time_us, headers=()))
        assert 0 <= row.log_us < 2**60
        check_row(row)


def test_members_that_stand_twice_count_as_they_stand_last():
    row = settle_one(click(0, b'{"messageId":"a","messageId":"b","anonymousId":"a","event":"E","anonymousId":"z"}'))
    assert (row.message_id, row.visitor) == ("b", "z")


def test_odd_user_agents_and_recommendations_are_passed_over():
    for odd in ("{}", "1e999", "[[1]]", "null", "true", '""'):
        members = f'"context":{{"userAgent":{odd}}},"properties":{{"recommendation_id":{odd}}}'
        row = settle_one(click(0, f'{{"anonymousId":"a","event":"E",{members}}}'.encode()))
        assert (row.recommendation_id, row.browser) == (None, "Other")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("x" * 2000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
MEMBERS = (
    *("type", "messageId", "userId", "anonymousId", "event", "name", "groupId", "previousId", "timestamp"),
    *("originalTimestamp", "sentAt", "properties", "traits", "context", "integrations", "more"),
)
ODD = st.sampled_from(
    [
        "2026-01-05T12:00:00Z",
        "Seat Chosen",
        "identify",
        "0/0",
        "\0",
        "",
        {"userAgent": 5},
        {"recommendation_id": []},
        {},
    ]
)


@st.composite
def poison(draw):
    members = draw(st.dictionaries(st.sampled_from(MEMBERS), ODD | JSON, max_size=5))
    value = json.dumps({"type": "track", "event": "Seat Chosen", "anonymousId": "a"} | members).encode()
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(value)))
        value = value[:place] + draw(st.binary(max_size=4)) + value[place + draw(st.integers(0, 3)) :]
    headers = draw(st.sampled_from([door(), door(repaired=True, user_agent="x"), door(write_key=""), ()]))
    headers += draw(st.sampled_from([()] * 6 + [((REPLAY, b"0/0"),), (("door", b"{}"),)]))
    return value, headers


@settings(derandomize=True, deadline=None, max_examples=200)
@given(batch=st.lists(poison() | st.tuples(st.binary(max_size=60), st.just(door())), min_size=1, max_size=12))
def test_any_bytes_end_as_one_event_failure_or_repeat(batch):
    state = empty_state()
    clicks = [Message(b"\xff", value, NOON, headers, 0, offset) for offset, (value, headers) in enumerate(batch)]
    outcome = settle(state, clicks, STRICT)
    rows = outcome.events + outcome.failures
    assert len(rows) + outcome.repeats == len(clicks) == state.offset
    assert len({row.src_offset for row in rows}) == len(rows)
    assert {row.reason for row in outcome.failures} <= REASONS.keys()
    assert set(state.visitors) == {visitor_key(row.visitor, row.user_id) for row in outcome.events}
    for row in rows:
        check_row(row)


# ---- any batching, any restart, any repeat

GAPS = st.sampled_from(
    [0, 0, 0, 0, 1000, SECOND, GAP_US, GAP_US + 1000, HOUR, -HOUR, SHORTEST_WINDOW_US // 2, SHORTEST_WINDOW_US]
)
STEPS = st.tuples(
    GAPS,
    st.sampled_from(
        [
            "good",
            "good",
            "good",
            "bad",
            "fixed",
            "broken",
            "nobody",
            "nameless",
            "keyless",
            "foreign",
            "replay",
            "seats",
            "play",
            "mark",
            "mark",
            "odd-mark",
        ]
    ),
    st.integers(0, 3),  # which visitor
    st.integers(0, 9),  # which id, or which earlier record
    st.sampled_from([0, 0, 0, GAP_US, GAP_US + 1000, HOUR, -SECOND, 30 * HOUR]),  # how long ago
)
ODD_MARKS = [{"version": 2}, {"name": "cars"}, {"end": -1}, {"end": 1 << 63}, {"name": 5}]
SHORT = Rules(STRICT.declared, window_us=SHORTEST_WINDOW_US)


def simulate(steps):
    """Returns clicks: some good, some not, some resent, some replayed, as steps say."""
    now_us, clicks = NOON, []
    for offset, (gap_us, what, who, which, ago_us) in enumerate(steps):
        now_us += gap_us
        members = {
            "anonymousId": f"v-{who}" if who else None,
            "userId": f"u-{which % 3}" if not who or which > 6 else None,
        }
        members |= {"messageId": f"m-{which}", "timestamp": iso(now_us - ago_us), "sentAt": iso(now_us)}
        if what in ("bad", "fixed"):
            members |= {"event": "Seat Chosen", "properties": {"price": "dear" if what == "bad" else 3}}
        elif what == "nobody":
            members |= {"anonymousId": None, "userId": None}
        elif what == "nameless":
            members |= {"messageId": None}
        elif what == "seats":
            shown = [{"seat": f"s-{n}"} for n in range(which)]
            members |= {"messageId": None, "event": "Seats Shown", "properties": {"seats": shown}}
        elif what == "play":
            members |= {"messageId": None, "event": "Play Shown", "properties": {"play": f"p-{which}"}}
        headers = {"keyless": door(now_us, write_key=""), "foreign": ()}.get(what, door(now_us))
        made = click(offset, b"{" if what == "broken" else None, time_us=now_us, headers=headers, **members)
        if what == "replay" and clicks:
            source = clicks[-1 - which % len(clicks)]
            kept = tuple(header for header in source.headers if header[0] != REPLAY)
            made = Message(b"", source.value, now_us, (*kept, (REPLAY, b"0/%d" % source.offset)), 0, offset)
        elif what == "mark":
            made = marker(offset, "seats" if who else "plays", which * 4, time_us=now_us)
        elif what == "odd-mark":
            odd = {"name": "seats", "end": 40} | ODD_MARKS[which % len(ODD_MARKS)]
            made = marker(offset, odd.pop("name"), odd.pop("end"), time_us=now_us, **odd)
        clicks.append(made)
    return clicks


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    steps=st.lists(STEPS, min_size=1, max_size=40),
    cuts=st.sets(st.integers(0, 40)),
    restarts=st.sets(st.integers(0, 40)),
)
def test_rows_do_not_depend_on_batches_or_restarts(steps, cuts, restarts):
    clicks = simulate(steps)
    whole = fold(clicks, rules=SHORT)
    parted = fold(clicks, cuts=cuts, restarts=restarts, rules=SHORT)
    assert parted.written() == whole.written()
    assert parted.repeats == whole.repeats
    names = ("offset", "newest_us", "settled", "failed", "dimensions")
    assert [getattr(parted.state, name) for name in names] == [getattr(whole.state, name) for name in names]
    check_numbers(whole, len(clicks) - whole.markers)
    check_dimensions(whole, clicks)


def check_dimensions(log, clicks):
    """Every event carries what the markers before it say, as somebody would find it who reads them one by one."""
    ends, said = {}, {}
    for one in clicks:
        found = dict(one.headers).get(MARKER)
        if found is not None:
            mark = json.loads(found)
            if mark["version"] == 1 and mark["name"] in KNOWN and 0 < mark["offset"] < 1 << 63:
                ends = ends | {mark["name"]: max(ends.get(mark["name"], 0), mark["offset"])}
        said[one.offset] = ends
    for name, data in log.written():
        row = json.loads(data)
        assert name == "failed" or row.get("dimensions", {}) == said[row["src_offset"]]
        if row.get("event") in ("Seats Shown", "Play Shown") and name == "events":
            given, (path, of) = row["properties"], STRICT.items[row["event"]]
            items = [one["seat"] for one in given["seats"]] if path != "play" else [given["play"]]
            known = {item: KNOWN[of.name].at(item, said[row["src_offset"]].get(of.name, 0)) for item in items}
            assert row.get("attributes", {}) == {
                item: {one: found[one] for one in of.names if found.get(one) is not None}
                for item, found in known.items()
                if found is not None
            }


def check_numbers(log, num_clicks):
    """Every click is one of event, failure and repeat, and both have numbers without holes."""
    assert len(log.written()) + log.repeats == num_clicks
    for name in ("events", "failed"):
        assert [json.loads(data)["seq"] for kind, data in log.written() if kind == name] == list(
            range(sum(kind == name for kind, _ in log.written()))
        )


@settings(derandomize=True, deadline=None, max_examples=60)
@given(steps=st.lists(STEPS, min_size=1, max_size=25), sizes=st.lists(st.integers(1, 9), min_size=1))
def test_batches_that_are_resent_three_times_bring_nothing_new(steps, sizes):
    steps = [(0, *step[1:]) for step in steps if "mark" not in step[1]]
    clicks = [one for one in simulate(steps) if b"messageId" in one.value and one.headers]
    resent, rest = [], clicks
    for size in sizes * len(clicks):
        resent += rest[:size] * 3
        rest = rest[size:]
    fresh = [Message(one.key, one.value, one.time_us, one.headers, 0, offset) for offset, one in enumerate(clicks)]
    resent = [Message(one.key, one.value, one.time_us, one.headers, 0, offset) for offset, one in enumerate(resent)]
    fresh, resent = ([one for one in part if len(one.headers) == 1] for part in (fresh, resent))
    once, thrice = fold(fresh), fold(resent, cuts=range(0, 75, 5), restarts=range(0, 75, 10))
    assert [_what(row) for row in thrice.written()] == [_what(row) for row in once.written()]


def _what(row):
    """Returns what of a row does not depend on where its click stood."""
    placed = ("src_offset", "session_id")
    return row[0], {name: value for name, value in json.loads(row[1]).items() if name not in placed}


def test_index_on_disk_gives_the_same_rows_as_one_in_memory(tmp_path):
    steps = [(HOUR, what, n % 4, n % 10, 0) for n, what in enumerate(["good", "bad", "replay", "broken", "good"] * 60)]
    clicks = simulate(steps)
    folder = tmp_path / "seen"
    seen = Seen.open(folder, spill=64)
    state, rows = State(seen, {}), []
    for start in range(0, len(clicks), 50):
        outcome = settle(state, clicks[start : start + 50], SHORT)
        rows += outcome.events + outcome.failures
        seen.forget((state.newest_us - SHORT.window_us) << 1)
    seen.close()
    rows.sort(key=lambda row: row.src_offset)
    assert [settled.encode(row) for row in rows] == [data for _, data in fold(clicks, rules=SHORT).written()]


def test_restored_state_equals_the_live_one():
    clicks = simulate(
        [(SECOND, what, n % 4, n % 10, 0) for n, what in enumerate(["good", "bad", "nobody", "good"] * 40)]
    )
    log = fold(clicks)
    live = log.state
    log.restart()
    assert log.state == live
    assert isinstance(live.visitors["v-3"], Visitor)
    assert live.seen[id_key("dev", "m-1")] > 0


def test_numbers_go_on_after_a_pause_of_which_only_progress_tells():
    log = fold([click(0), click(1), click(2, **BAD), click(3, messageId="m-0")])
    state = empty_state()
    restore(state, [settled.decode_progress(log.rows[-1][3])])
    late = NOON + WINDOW_US * 2
    outcome = settle(state, [click(4, time_us=late), click(5, time_us=late, **BAD)], STRICT)
    assert (outcome.events[0].seq, outcome.failures[0].seq) == (2, 1)


# ---- dimensions


def shown(offset, *seats, **members):
    return click(offset, event="Seats Shown", properties={"seats": [{"seat": seat} for seat in seats]}, **members)


def test_change_of_an_attribute_counts_for_higher_offsets_only():
    log = fold([shown(0, "s-1"), marker(1, "seats", 2), shown(2, "s-1"), marker(3, "seats", 10), shown(4, "s-1")])
    rows = [json.loads(data) for _, data in log.written()]
    assert [row.get("attributes") for row in rows] == [
        None,
        {"s-1": {"row": "r1", "price": 0.5}},
        {"s-1": {"row": "r9", "price": 4.5}},
    ]
    assert [row.get("dimensions") for row in rows] == [None, {"seats": 2}, {"seats": 10}]


def test_marker_never_moves_a_dimension_back_and_is_neither_event_nor_failure_nor_repeat():
    state = empty_state()
    outcome = settle(state, [marker(0, "seats", 9, time_us=NOON + SECOND), marker(1, "seats", 4)], STRICT)
    assert (outcome.events, outcome.failures, outcome.repeats, outcome.markers) == ([], [], 0, 2)
    assert (state.dimensions, state.offset, state.newest_us) == ({"seats": 9}, 2, NOON + SECOND)
    assert outcome.is_silent


@pytest.mark.parametrize("value", [b"", b"\xff", b"[" * 3000, b"{}", b'{"version":1,"name":"seats"}', b"5"])
def test_marker_that_cannot_be_read_is_passed_over(value):
    state = empty_state()
    odd = Message(b"k", None, NOON, ((MARKER, value),), 0, 0)
    outcome = settle(state, [odd, click(1)], STRICT)
    assert (len(outcome.events), outcome.failures, outcome.markers) == (1, [], 1)
    assert (state.dimensions, outcome.events[0].dimensions) == ({}, settled.UNSET)


def test_items_that_nobody_knows_are_left_out():
    log = fold([marker(0, "seats", 3), shown(1, "s-3", "s-9", "s-0", "s-2", "s-2"), shown(2, "nobody"), click(3)])
    rows = [json.loads(data) for _, data in log.written()]
    assert [row.get("attributes") for row in rows] == [{"s-0": {}, "s-2": {"row": "r2", "price": 1.0}}, None, None]
    assert [row["dimensions"] for row in rows] == [{"seats": 3}] * 3


def test_attributes_have_a_bound_and_the_largest_row_still_fits():
    state = empty_state()
    for number in range(20):
        KNOWN["seats"].add(KNOWN["seats"].end, f"large-{number}", {"row": "\x01" * 1000})
    state.dimensions = {"seats": KNOWN["seats"].end}
    row = settle_one(shown(0, *(f"large-{number}" for number in range(20))), state=state)
    assert MAX_ATTRIBUTES_BYTES - 7000 < len(bytes(row.attributes)) <= MAX_ATTRIBUTES_BYTES
    assert list(json.loads(bytes(row.attributes))) == [f"large-{number}" for number in range(10)]
    full = shown(1, "large-1", name="")
    full = shown(1, "large-1", name="x" * (MAX_VALUE_BYTES - len(full.value)))
    assert len(full.value) == MAX_VALUE_BYTES
    row = settle_one(full, state=state)
    assert row.attributes is settled.UNSET
    check_row(row)


def test_paths_into_what_no_type_names_never_raise():
    odd = Event("Odd", item="a[].b.c", of=SEATS)
    rules = Rules({"Odd": odd})
    state = empty_state()
    state.dimensions = {"seats": 30}
    deep = [b'{"a":' + b"[" * 300 + b"]" * 300 + b"}", b'{"a":[{"b":{"c":"s-1"}}, {"b":7}, 3]}', b'{"a":5}', b"{}"]
    for offset, properties in enumerate(deep):
        raw = b'{"event":"Odd","type":"track","anonymousId":"a","properties":' + properties + b"}"
        row = settle_one(click(offset, raw), state=state, rules=rules)
        assert (row.attributes is not settled.UNSET) == (b"s-1" in properties)


def test_definitions_name_what_judged():
    assert STRICT.definitions == Rules(dict(STRICT.declared)).definitions
    others = {LENIENT.definitions, Rules().definitions, Rules(tolerance_us=1).definitions, SHORT.definitions}
    assert len(others | {STRICT.definitions}) == 5
    wider = Dimension("plays", key="play", attributes=(Attribute("genre"), Attribute("length")))
    events = [Event("Play Shown", item="play", of=of) for of in (PLAYS, wider, None)]
    assert len({Rules({"Play Shown": event}).definitions for event in events}) == 3


def test_nothing_comes_of_no_records():
    state = empty_state()
    outcome = settle(state, [], STRICT)
    assert (outcome.events, outcome.failures, outcome.repeats, state.offset) == ([], [], 0, 0)

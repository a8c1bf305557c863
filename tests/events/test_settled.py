"""The contracts `settled event` and `failed event`: the code, their pages and their golden files."""

import json
from pathlib import Path

import pytest

from headrace.events.click import Door, encode_door
from headrace.events.dimension import MARKER, Attribute, Dimension, History
from headrace.events.event import Event
from headrace.events.settle import Rules, State, restore, settle
from headrace.events.settled import (
    FAILED_VERSION,
    FLAGS,
    MAX_ATTRIBUTES_BYTES,
    MAX_ID,
    MAX_VALUE_BYTES,
    REASONS,
    REPLAY,
    VERSION,
    FailedEvent,
    Progress,
    SettledEvent,
    decode_failed,
    decode_progress,
    decode_settled,
    encode,
    is_ours,
    is_row,
)
from headrace.topics import Message

CONTRACTS = Path(__file__).parents[2] / "docs" / "contracts"
MIDNIGHT = 1_767_571_200_123_456  # 2026-01-05
ITEMS = Dimension("items", key="product_id", attributes=(Attribute("title"), Attribute("genre")))
CLICKED = Event("Product Clicked", item="product_id", of=ITEMS)
RULES = Rules({"Product Clicked": CLICKED, "Tea Brewed": Event("Tea Brewed")})
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"
GOOGLEBOT = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
KINDS = {
    "settled-event": (SettledEvent, decode_settled, VERSION),
    "failed-event": (FailedEvent, decode_failed, FAILED_VERSION),
}

NESTED = b'{"version":1,"src_offset":2,"x":' + b"[" * 3000 + b"]" * 3000 + b"}"
V1 = (
    b'{"version":1,"message_id":"m-1","source":"dev","type":"page","event":"page","event_us":5,"received_us":5,'
    b'"log_us":5,"person":"a-1","session_id":"0-0","src_offset":0,"seq":0,"definitions":"00","visitor":"a-1",'
    b'"session_first_us":5,"session_last_us":5}'
)


class Index(dict):
    """An index of seen ids in memory."""

    def find(self, keys):
        return {key: self[key] for key in keys if key in self}

    def add(self, entries):
        self.update(entries)


class Items(History):
    """What is known of items."""

    def at_least(self, name, end):
        assert (name, self.end) == ("items", end)
        return self


def _door(**more):
    known = {"version": 1, "received_us": MIDNIGHT, "source": "http/batch", "write_key": "dev", "address": "127.0.0.1"}
    return encode_door(Door(**(known | more)))


def _clicks():
    """Yields clicks that show every field: of each a value and its headers."""
    clicked = (
        b'{"type":"track","event":"Product Clicked","messageId":"m-1","anonymousId":"a-1",'
        b'"timestamp":"2026-01-05T00:59:58Z","sentAt":"2026-01-05T01:00:00Z",'
        b'"properties":{"product_id":"item-7","price": 1.50,"recommendation_id":"rec-9"}}'
    )
    yield clicked, _door(user_agent=FIREFOX)
    yield (
        b'{"type":"page","messageId":"m-2","anonymousId":"a-1","userId":"zo\xc3\xab","name":"Home",'
        b'"timestamp":"2026-01-04T20:00:00Z","context":{"userAgent":"%b"}}' % GOOGLEBOT.encode(),
        _door(user_agent=FIREFOX, repaired=True),
    )
    yield b'{"type":"group","userId":"u-2","groupId":"g-1","traits":{"plan": "plus"}}', _door()
    yield (
        b'{"messageId":"m-4","userId":"u-2","previousId":"u-1","timestamp":"2026-01-05T00:00:09Z"}',
        _door(source="http/alias"),
    )
    dear = (
        b'{"type":"track","event":"Product Clicked","messageId":"m-5","anonymousId":"a-1",'
        b'"properties":{"product_id":"item-7","price":"dear"}}'
    )
    yield dear, _door()
    yield dear, (*_door(), (REPLAY, b"0/4"))
    yield b"\xff{", _door()
    yield b'{"event":"Tea Brewed","messageId":"m-7"}', _door()
    yield b'{"type":"track","messageId":"m-8","anonymousId":"a-2"}', _door()
    yield b'{"event":"Tea Brewed","messageId":"m-9","userId":"u-3"}', _door(write_key="")
    yield b'{"event":"Tea Brewed","messageId":"m-10","userId":"u-3"}', ()
    yield b" " * MAX_VALUE_BYTES + b"{}", _door()
    yield b"", ((MARKER, b'{"version":1,"name":"items","incarnation":"00","offset":240}'),)
    yield clicked.replace(b"m-1", b"m-13"), _door(user_agent=FIREFOX)


def _rows(contract):
    clicks = [
        Message(b"a-1", value, MIDNIGHT + 1544 + offset * 1000, headers, 0, offset)
        for offset, (value, headers) in enumerate(_clicks())
    ]
    items = Items()
    items.add(239, "item-7", {"title": "Night Ferry", "genre": "drama", "colour": "blue"})
    outcome = settle(State(Index(), {}, histories=items), clicks, RULES)
    assert outcome.repeats == 0
    rows = outcome.events if contract == "settled-event" else outcome.failures
    # A megabyte of blanks is no reading.
    return [encode(row).decode() for row in rows if len(encode(row)) < 10_000]


def _golden(contract):
    return json.loads((CONTRACTS / f"{contract}.golden.json").read_text(encoding="utf-8"))


def _page(contract):
    return (CONTRACTS / f"{contract}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("contract", KINDS)
def test_rows_of_the_fold_equal_the_golden_file(contract):
    assert json.dumps(_rows(contract), ensure_ascii=False, indent=1) + "\n" == (
        CONTRACTS / f"{contract}.golden.json"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize("contract", KINDS)
def test_golden_rows_are_written_byte_for_byte_as_they_are_read(contract):
    _, decode, _ = KINDS[contract]
    assert [encode(decode(row)).decode() for row in _golden(contract)] == _golden(contract)


@pytest.mark.parametrize("contract", KINDS)
def test_golden_file_shows_every_field(contract):
    kind, _, _ = KINDS[contract]
    assert {name for row in _golden(contract) for name in json.loads(row)} == set(kind.__struct_fields__)


@pytest.mark.parametrize("contract", KINDS)
def test_page_explains_every_field_in_its_order_and_shows_a_golden_row(contract):
    kind, _, version = KINDS[contract]
    page = _page(contract)
    places = [page.find(f"| `{name}` |") for name in kind.__struct_fields__]
    assert -1 not in places
    assert places == sorted(places)
    shown = page.partition("```json\n")[2].partition("\n```")[0]
    assert shown in _golden(contract)
    assert page.startswith(f"# {contract.replace('-', ' ').capitalize()}, version {version}\n")


def test_pages_explain_flags_reasons_limits_and_progress():
    settled, failed = _page("settled-event"), _page("failed-event")
    assert [flag for flag in FLAGS if f"| `{flag}` |" not in settled] == []
    assert [reason for reason in REASONS if f"| `{reason}` |" not in failed] == []
    told = settled.partition("## Progress")[2]
    assert [name for name in Progress.__struct_fields__ if f"| `{name}` | " not in told] == []
    assert f"{MAX_ID:,} characters" in failed
    assert f"{MAX_ATTRIBUTES_BYTES:,} bytes" in settled
    assert f"{MAX_VALUE_BYTES:,} bytes" in failed
    assert REPLAY in _page("raw-click")


def test_progress_round_trips():
    progress = Progress(version=VERSION, src_offset=7, log_us=MIDNIGHT, settled=5, failed=2, dimensions={"items": 240})
    assert encode(progress) == (
        b'{"version":2,"src_offset":7,"log_us":1767571200123456,"settled":5,"failed":2,"dimensions":{"items":240}}'
    )
    assert decode_progress(encode(progress)) == progress


def test_rows_of_a_later_writer_of_the_same_version_are_read():
    for contract, (_, decode, version) in KINDS.items():
        row, head = _golden(contract)[0], f'{{"version":{version},'
        assert decode(row.replace(head, f'{head}"new":[{{}}],')) == decode(row)


def test_rows_and_progress_of_version_1_are_read_and_restored():
    progress = decode_progress(b'{"version":1,"src_offset":7,"log_us":1767571200123456,"settled":5,"failed":2}')
    state = State(Index(), {})
    restore(state, [decode_settled(V1), progress])
    assert (state.settled, state.offset, state.dimensions) == (5, 8, {})
    assert set(state.visitors) == {"a-1"}


@pytest.mark.parametrize("value", [b"hello", b"", b'{"version":"\xff"}', b"\xff", b"[" * 3000 + b"]" * 3000, NESTED])
def test_record_that_somebody_appended_by_hand_is_not_ours(value):
    assert not is_ours(value)
    assert not is_row(value, ())

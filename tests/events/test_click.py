"""The contract `raw click`: the code, its page and its golden file, and what a running collector files."""

import json
import struct
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.base.errors import FormatError
from headrace.events.click import HEADER, VERSION, Door, decode_door, encode_door
from running import project_toml, running

CONTRACTS = Path(__file__).parents[2] / "docs" / "contracts"
GOLDEN = CONTRACTS / "raw-click.golden.json"
PAGE = CONTRACTS / "raw-click.md"
WORLD_US = 1_767_571_200_123_456

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"
HINTS = {"sec-ch-ua-mobile": "?0", "sec-ch-ua-platform": '"Linux"'}


def _send_every_kind(up):
    """Sends what the golden file holds: every field of the door, and every form that an event may take."""
    spaced = (
        b'{"type": "track", "event": "Product Clicked", "messageId": "m-1", "anonymousId": "a-1", '
        b'"properties": {"price": 1.50}}'
    )
    assert up.post("/v1/track", spaced, headers={"user-agent": ""}).status == 200
    shared = {
        "sentAt": "2026-01-05T00:00:00.100Z",
        "context": {"locale": "en-GB", "app": {"name": "shop"}},
        "integrations": {"All": True},
        "batch": [
            {"type": "track", "event": "Product Clicked", "messageId": "m-2", "anonymousId": "a-1"},
            {"type": "page", "messageId": "m-3", "anonymousId": "a-1", "context": {"locale": "de-DE"}},
            {"type": "identify", "messageId": "m-4", "userId": "zoë", "traits": {"plan": "plus"}},
        ],
    }
    assert up.post("/v1/batch", shared, headers={"user-agent": FIREFOX, **HINTS}).status == 200
    broken = (
        b'{"batch": [{"messageId": "m-5", "anonymousId": "a-1", "properties": {"price": NaN}}, 42], "writeKey": "dev"}'
    )
    assert up.post("/v1/b", broken, key=None, headers={"user-agent": "python"}).status == 200


def _documents(messages):
    # A record without a key may stand in any partition.
    keyed = sorted(messages, key=lambda message: (message["key"] is None, message["partition"], message["offset"]))
    return [
        {
            "key": message["key"],
            "value": message["raw"].decode(),
            "headers": {name: value.decode() for name, value in message["headers"].items()},
        }
        for message in keyed
    ]


def _golden_text(documents):
    return json.dumps(documents, ensure_ascii=False, indent=1) + "\n"


def test_raw_clicks_of_a_running_collector_equal_the_golden_file(tmp_path):
    state = tmp_path / ".headrace"
    state.mkdir()
    (state / "clock.stepped").write_bytes(struct.pack("<q", WORLD_US))
    with running(tmp_path, toml=project_toml(clock="stepped://")) as up:
        _send_every_kind(up)
        assert _golden_text(_documents(up.read())) == GOLDEN.read_text(encoding="utf-8")


def test_golden_doors_are_written_byte_for_byte_as_they_are_read():
    doors = [document["headers"][HEADER].encode() for document in json.loads(GOLDEN.read_text(encoding="utf-8"))]
    assert [encode_door(decode_door([(HEADER, door)])) for door in doors] == [((HEADER, door),) for door in doors]


def test_golden_file_shows_every_field():
    doors = [json.loads(document["headers"][HEADER]) for document in json.loads(GOLDEN.read_text(encoding="utf-8"))]
    assert {name for door in doors for name in door} == set(Door.__struct_fields__)


def test_page_explains_every_field_and_shows_the_golden_record():
    page = PAGE.read_text(encoding="utf-8")
    assert [name for name in Door.__struct_fields__ if f"| `{name}` |" not in page] == []
    shown = json.loads(page.partition("```json\n")[2].partition("```")[0])
    assert shown in json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert f"# Raw click, version {VERSION}" in page


_DOORS = st.builds(
    Door,
    version=st.just(VERSION),
    received_us=st.integers(0, 2**62),
    source=st.text(),
    write_key=st.text(),
    address=st.text(),
    user_agent=st.text(),
    hints=st.text(),
    sent_at=st.text(),
    repaired=st.booleans(),
)


@given(door=_DOORS)
def test_door_round_trips(door):
    assert decode_door(encode_door(door)) == door


def test_door_leaves_out_what_it_did_not_know():
    assert encode_door(Door(version=1, received_us=1, source="http/track")) == (
        ("door", b'{"version":1,"received_us":1,"source":"http/track"}'),
    )


def test_door_is_found_among_other_headers():
    headers = [("traceparent", b"00-ab"), *encode_door(Door(version=1, received_us=5, source="s")), ("door", b"later")]
    assert decode_door(headers).received_us == 5


def test_door_of_a_later_writer_of_the_same_version_is_read():
    door = b'{"version":1,"new":{"x":[1]},"received_us":1,"source":"http/track"}'
    assert decode_door([(HEADER, door)]) == Door(version=1, received_us=1, source="http/track")


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ([], "the record has no header 'door': no door of Headrace wrote it"),
        ([("dor", b"{}")], "the record has no header 'door': no door of Headrace wrote it"),
        (
            [(HEADER, b'{"version":2,"received_us":1,"source":"s"}')],
            "raw click of version 2, this Headrace reads version 1",
        ),
        ([(HEADER, b'{"version":1,"source":"s"}')], "Object missing required field `received_us`"),
        ([(HEADER, b'{"version":1,"received_us":"x","source":"s"}')], "Expected `int`, got `str` - at `$.received_us`"),
        ([(HEADER, b'{"version":1,')], "the header 'door' is b'{\"version\":1,': Input data was truncated"),
        ([(HEADER, b"")], "the header 'door' is b'': Input data was truncated"),
    ],
)
def test_headers_that_no_door_of_this_version_wrote_stop_the_reader(headers, message):
    with pytest.raises(FormatError) as caught:
        decode_door(headers)
    assert message in str(caught.value)


def test_value_of_a_raw_click_may_be_any_json():
    values = [document["value"] for document in json.loads(GOLDEN.read_text(encoding="utf-8"))]
    assert "42" in values
    assert [msgspec.json.decode(value) for value in values]

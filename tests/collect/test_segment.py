"""What a body holds, and which record each of its events becomes: the rules, without a server."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.base.errors import RequestError
from headrace.collect.segment import MAX_FILED_BYTES, read_body


def key_of(event):
    data = event if isinstance(event, bytes) else json.dumps(event).encode()
    (single,) = read_body("track", data).items
    (batched,) = read_body("batch", b'{"batch":[' + data + b"]}").items
    assert single == batched
    return single.key


def events_of(batch):
    data = batch if isinstance(batch, bytes) else json.dumps(batch).encode()
    return [json.loads(item.event) for item in read_body("batch", data).items]


@pytest.mark.parametrize(
    ("event", "key"),
    [
        ({"anonymousId": "ann", "userId": "u", "messageId": "m"}, b"ann"),
        ({"userId": "u", "messageId": "m"}, b"u"),
        ({"messageId": "m"}, b"m"),
        ({}, None),
        ({"anonymousId": "", "userId": None, "messageId": "m"}, b"m"),
        ({"anonymousId": None, "userId": "u"}, b"u"),
        ({"anonymousId": 7, "userId": "u"}, b"7"),
        ({"anonymousId": 0}, b"0"),
        ({"anonymousId": -1}, b"-1"),
        ({"anonymousId": 10**30}, str(10**30).encode()),
        ({"anonymousId": 1.5, "userId": "u"}, b"u"),
        ({"anonymousId": True, "userId": "u"}, b"u"),
        ({"anonymousId": ["ann"], "userId": {"id": 1}, "messageId": "m"}, b"m"),
        ({"anonymousId": "ü 🌊"}, "ü 🌊".encode()),
        ({"anonymous_id": "ann", "messageId": "m"}, b"m"),
        (b'{"anonymousId":"ann","anonymousId":"bob"}', b"bob"),
        (b'{"anonymousId":"a\\u006en"}', b"ann"),
        (b'{"anonymousId":"ann","sentAt":1e999}', b"ann"),
        (b'{"anonymousId":"ann","messageId":' + b"9" * 5000 + b"}", b"ann"),
        (b'{"anonymousId":' + b"9" * 5000 + b',"messageId":"m"}', b"m"),
        (b'{"anonymousId":{"deep":1e999},"messageId":"m"}', b"m"),
        (b"42", None),
        (b"null", None),
        (b'"anonymousId"', None),
        (b'[{"anonymousId":"ann"}]', None),
    ],
)
def test_the_key_is_the_visitor_else_the_user_else_the_message(event, key):
    assert key_of(event) == key


def test_every_element_is_filed_in_order_whatever_it_is():
    batch = [{"n": 1}, 42, None, "text", [1, 2], True, {}, 1.5, {"n": 2}]
    assert events_of({"batch": batch}) == batch


@pytest.mark.parametrize("body", [b"{}", b"[]", b"5", b"null", b'"x"', b'{"batch":null}', b'{"batch":{"a":1}}'])
def test_json_that_is_no_batch_is_filed_whole(body):
    (item,) = read_body("batch", body).items
    assert item.event == body


def test_the_bytes_of_an_event_are_kept_without_a_shared_context():
    event = b'{ "price" : 1.10, "big": 12345678901234567890123, "a": 1, "a": 2, "t": "\\u00e9/\\/" }'
    assert read_body("track", b" \n" + event + b"\n").items[0].event == event
    for shared in (b"", b',"context":null', b',"context":{}', b',"context":[1]', b',"integrations":"x"'):
        (item,) = read_body("batch", b'{"batch":[' + event + b"]" + shared + b"}").items
        assert item.event == event


def test_what_a_batch_says_for_all_is_merged_and_the_event_wins():
    batch = {
        "context": {"ip": "1.2.3.4", "app": {"name": "shop"}},
        "integrations": {"All": True},
        "batch": [
            {"n": 1},
            {"n": 2, "context": {"ip": "9.9.9.9"}},
            {"n": 3, "context": None, "integrations": {"All": False, "X": 1}},
            {"n": 4, "context": "odd"},
            {"n": 5, "context": {"app": None}},
            17,
        ],
    }
    shared = batch["context"]
    everywhere = {"All": True}
    assert events_of(batch) == [
        {"n": 1, "context": shared, "integrations": everywhere},
        {"n": 2, "context": {**shared, "ip": "9.9.9.9"}, "integrations": everywhere},
        {"n": 3, "context": shared, "integrations": {"All": False, "X": 1}},
        {"n": 4, "context": "odd", "integrations": everywhere},
        {"n": 5, "context": {**shared, "app": None}, "integrations": everywhere},
        17,
    ]


def test_a_merged_event_keeps_the_bytes_of_its_values():
    body = b'{"context":{"b":2.50},"batch":[{"price":1.10,"context":{"a":1e2,"t":"\\u00e9"}}]}'
    (item,) = read_body("batch", body).items
    assert item.event == b'{"price":1.10,"context":{"b":2.50,"a":1e2,"t":"\\u00e9"}}'


@pytest.mark.parametrize(
    ("body", "event"),
    [
        (b'{"x":NaN}', b'{"x":null}'),
        (b'{"x":[-Infinity,Infinity, 1.10]}', b'{"x":[null,null, 1.10]}'),
        (b'{"x":NaN,"t":"NaN -Infinity \\"NaN\\""}', b'{"x":null,"t":"NaN -Infinity \\"NaN\\""}'),
        (b'{"t":"\\ud83d"}', b'{"t":"\\ufffd"}'),
        (b'{"t":"\\ude00 \\ud83d\\ude00 \\uD83D"}', b'{"t":"\\ufffd \\ud83d\\ude00 \\ufffd"}'),
        (b'{"t":"\\\\ud83d","x":NaN}', b'{"t":"\\\\ud83d","x":null}'),
        (b'{"t":"\\ud83d\\ud83d\\ude00"}', b'{"t":"\\ufffd\\ud83d\\ude00"}'),
        (b'{"\\ud800":1}', b'{"\\ufffd":1}'),
        (b"\xef\xbb\xbf{}", b"{}"),
        (b"NaN", b"null"),
    ],
)
def test_what_clients_write_though_it_is_not_json_is_repaired_and_flagged(body, event):
    found = read_body("track", body)
    assert (found.items[0].event, found.repaired) == (event, True)


def test_one_odd_event_does_not_cost_the_others():
    found = read_body("batch", b'{"batch":[{"n":1},{"n":NaN},{"n":"\\ud800"},{"n":1e999}],"sentAt":1e999}')
    assert [item.event for item in found.items] == [b'{"n":1}', b'{"n":null}', b'{"n":"\\ufffd"}', b'{"n":1e999}']
    assert found.repaired
    assert not read_body("batch", b'{"batch":[{"n":1}]}').repaired


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"nul",
        b"{]",
        b'{"a":1}{}',
        b'{"a":"\t"}',
        b'{"a":01}',
        b"{'a':1}",
        b'{"a":1,}',
        b"<xml/>",
        b"a=b",
        b'{"a":"',
        b'{"a":NaN',
        b'{"a":+Infinity}',
        b"\x00",
        '{"a":1}'.encode("utf-16-le"),
        b'{"a":"\\x"}',
    ],
)
def test_what_is_not_json_is_400(body):
    for call in ("track", "batch"):
        with pytest.raises(RequestError, match="the body is not JSON") as caught:
            read_body(call, body)
        assert caught.value.status == 400


@pytest.mark.parametrize("body", [b'{"a":"\xff"}', b'{"a":"\xed\xa0\x80"}', b'{"a":"\xc0\x80"}', b"\xfe\xff"])
def test_what_is_not_utf_8_is_400(body):
    with pytest.raises(RequestError, match="the body is not UTF-8") as caught:
        read_body("track", body)
    assert caught.value.status == 400


@pytest.mark.parametrize("inner", [b"", b"NaN", b'"\\ud800"'])
def test_any_depth_is_filed_or_refused(inner):
    for depth in (*range(1, 1100, 7), 5_000, 100_000):
        for body in (b"[" * depth + inner + b"]" * depth, b'{"a":' * depth + (inner or b"1") + b"}" * depth):
            for call in ("track", "batch"):
                try:
                    assert len(read_body(call, body).items) == 1
                except RequestError as error:
                    assert error.status == 400  # noqa: PT017 - it may be filed as well
                    assert depth > 500


def test_a_batch_that_its_shared_context_would_blow_up_is_refused_at_once():
    context = json.dumps({"context": {"x": "y" * 200_000}})[1:-1]
    body = f'{{"batch":[{",".join(["{}"] * 80_000)}],{context}}}'.encode()
    assert len(body) < 500 * 1024
    started = time.monotonic()
    with pytest.raises(RequestError, match=f"more than {MAX_FILED_BYTES:,} bytes") as caught:
        read_body("batch", body)
    assert caught.value.status == 400
    assert time.monotonic() - started < 1.0


@pytest.mark.parametrize(
    "body",
    [
        b'"' + b'\\"' * 250_000,
        b'"' * 500_000,
        b"\\" * 500_000,
        b'{"a":"' + b"\\ud800" * 80_000,
        b"NaN" * 160_000,
        b'["' + b'\\\\" "' * 120_000,
    ],
)
def test_no_body_takes_long_to_be_refused(body):
    started = time.process_time()
    with pytest.raises(RequestError):
        read_body("track", body)
    assert time.process_time() - started < 1.0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(st.lists(json_values, max_size=8))
def test_any_batch_that_python_writes_is_filed_whole(batch):
    # json.dumps writes NaN, as the SDK for Python does.
    found = read_body("batch", json.dumps({"batch": batch}).encode())
    assert len(found.items) == len(batch)
    for item, event in zip(found.items, batch, strict=True):
        assert json.loads(item.event) == _clean(event)


def _clean(value):
    if (isinstance(value, float) and value != value) or value in (float("inf"), float("-inf")):  # noqa: PLR0124
        return None
    if isinstance(value, list):
        return [_clean(one) for one in value]
    if isinstance(value, dict):
        return {name: _clean(one) for name, one in value.items()}
    return value

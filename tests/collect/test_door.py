"""The Segment surface of a running collector."""

from __future__ import annotations

import gzip
import json
import time
from base64 import b64encode

import pytest

from headrace.collect.segment import CALLS

EVENT = {"anonymousId": "ann", "event": "Product Clicked", "messageId": "m-1"}


def basic(text):
    return {"authorization": "Basic " + b64encode(text.encode()).decode()}


# Paths.


@pytest.mark.parametrize("prefix", ["/v1", ""])
@pytest.mark.parametrize("path", sorted(CALLS))
def test_every_path_of_the_segment_api_files_its_event(door, prefix, path):
    (click,) = door.file(f"{prefix}/{path}", {"batch": [EVENT]} if CALLS[path] == "batch" else EVENT)
    assert click["value"] == EVENT
    assert click["door"].source == f"http/{CALLS[path]}"


def test_the_surface_is_complete():
    calls = {"track", "identify", "page", "screen", "group", "alias", "batch"}
    assert set(CALLS) == calls | {call[0] for call in calls}


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/track"), ("POST", "/v1/tracks"), ("POST", "/v2/track"), ("PUT", "/v1/t"), ("POST", "/")],
)
def test_what_is_not_on_the_surface_is_404_json(door, method, path):
    answer, clicks = door.send(path, EVENT, method=method)
    assert (answer.status, clicks) == (404, [])
    assert answer.json() == {"error": "RequestError", "message": f"nothing answers {method} '{path}'"}


# Write keys.


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("web", {"key": "web-key"}),
        ("web", {"key": None, "headers": basic("web-key")}),
        ("web", {"key": None, "headers": basic("web-key:password")}),
        ("web", {"key": None, "path": "/v1/track?writeKey=web-key"}),
        ("web", {"key": None, "body": {**EVENT, "writeKey": "web-key"}}),
        ("web", {"key": None, "path": "/v1/batch", "body": {"batch": [EVENT], "writeKey": "web-key"}}),
        ("web", {"key": None, "path": "/v1/batch", "body": {"batch": [{**EVENT, "writeKey": "web-key"}]}}),
    ],
    ids=["basic", "basic without a colon", "basic with a password", "query", "body", "batch", "event"],
)
def test_a_write_key_may_stand_in_any_of_its_places(door, name, options):
    (click,) = door.file(options.pop("path", "/v1/track"), options.pop("body", EVENT), **options)
    assert click["door"].write_key == name


def test_the_header_comes_before_the_query_before_the_body_before_the_event(door):
    batch = {"batch": [{**EVENT, "writeKey": "dev"}], "writeKey": "app-key"}
    (click,) = door.file("/v1/batch?writeKey=web-key", batch, key="dev")
    assert click["door"].write_key == "dev"
    (click,) = door.file("/v1/batch?writeKey=web-key", batch, key=None)
    assert click["door"].write_key == "web"
    (click,) = door.file("/v1/batch", batch, key=None)
    assert click["door"].write_key == "app"


def test_events_may_have_keys_of_their_own_and_one_known_key_carries_the_batch(door):
    batch = [{"n": n, "anonymousId": "ann", "writeKey": key} for n, key in enumerate(["web-key", "app-key", "junk", 7])]
    clicks = door.file("/v1/batch", {"batch": batch}, key=None)
    assert [(click["value"]["n"], click["door"].write_key) for click in clicks] == [
        (0, "web"), (1, "app"), (2, ""), (3, ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "options"),
    [
        ("/v1/track", EVENT, {"key": None}),
        ("/v1/track", EVENT, {"key": "junk"}),
        ("/v1/track", EVENT, {"key": "sha256:ef260e9aa3c673af240d17a2660480361a8e081d1ffeca2a5ed0e3219fc18567"}),
        ("/v1/track?writeKey=dev", EVENT, {"key": "junk"}),
        ("/v1/track?writeKey=", EVENT, {"key": ""}),
        ("/v1/track", EVENT, {"headers": {"authorization": "Basic \xff\xfe"}}),
        ("/v1/track", EVENT, {"headers": {"authorization": "Bearer dev"}}),
        ("/v1/track", {**EVENT, "writeKey": "junk"}, {"key": None}),
        ("/v1/track", {**EVENT, "writeKey": ["dev"]}, {"key": None}),
        ("/v1/batch", {"batch": [EVENT, {**EVENT, "writeKey": "junk"}]}, {"key": None}),
        ("/v1/batch", {"batch": []}, {"key": None}),
    ],
)
def test_nobody_files_without_a_key_that_somebody_made(door, path, body, options):
    answer, clicks = door.send(path, body, **options)
    assert (answer.status, clicks) == (401, [])
    assert answer.json() == {"error": "RequestError", "message": "no write key, or one that nobody made"}


def test_keys_are_hashed_at_rest(door):
    door.file("/v1/track", EVENT, key="web-key")
    for path in door.up.folder.rglob("*"):
        if path.is_file():
            assert b"web-key" not in path.read_bytes(), path


# Bodies.


def test_a_batch_with_99_bad_events_of_100_is_200_and_filed_whole_in_order(door):
    bad = [42, None, [], "text", {"type": 7}, {"anonymousId": {}}, {"event": [None]}, {}, 1e308]
    batch = [{"anonymousId": "ann", "n": n, "odd": bad[n % len(bad)]} for n in range(100)]
    assert [click["value"] for click in door.file("/v1/batch", {"batch": batch})] == batch
    mixed = [bad[n % len(bad)] for n in range(99)] + [EVENT]
    clicks = door.file("/v1/batch", {"batch": mixed})
    assert sorted(json.dumps(click["value"]) for click in clicks) == sorted(json.dumps(event) for event in mixed)


def test_an_empty_batch_is_acknowledged_and_files_nothing(door):
    assert door.file("/v1/batch", {"batch": []}) == []


def test_nan_is_repaired_and_the_door_says_so(door):
    (click,) = door.file("/v1/track", b'{"anonymousId":"ann","x":NaN,"t":"\\ud800"}')
    assert click["raw"] == b'{"anonymousId":"ann","x":null,"t":"\\ufffd"}'
    assert click["door"].repaired
    assert not door.file("/v1/track", EVENT)[0]["door"].repaired


def test_the_bytes_of_an_event_arrive_as_they_were_sent(door):
    event = b'{ "anonymousId":"ann", "price" : 1.10, "big": 12345678901234567890123, "a": 1, "a": 2, "t": "\\u00e9/" }'
    (click,) = door.file("/v1/track", event)
    assert click["raw"] == event
    (click,) = door.file("/v1/batch", b'{"batch":[' + event + b"]}")
    assert click["raw"] == event


@pytest.mark.parametrize("body", [b"", b"{", b'{"a":"\xff"}', b"not json", b'{"a":1}}'])
@pytest.mark.parametrize("path", ["/v1/track", "/v1/batch"])
def test_only_a_body_that_is_not_json_is_400(door, path, body):
    answer, clicks = door.send(path, body)
    assert (answer.status, clicks) == (400, [])
    assert answer.json()["error"] == "RequestError"


@pytest.mark.parametrize("depth", [300, 900, 990, 1000, 100_000])
def test_deep_nesting_is_filed_or_refused_and_never_an_error_of_ours(door, depth):
    answer, clicks = door.send("/v1/track", b'{"anonymousId":"ann","x":' + b"[" * depth + b"]" * depth + b"}")
    assert answer.status == (200 if depth == 300 else answer.status)
    assert (answer.status, len(clicks)) in ((200, 1), (400, 0))


def test_a_body_of_500_kib_is_filed_and_one_byte_more_refused(door):
    def body(size):
        start = b'{"anonymousId":"ann","x":"'
        return start + b"x" * (size - len(start) - 2) + b'"}'

    (click,) = door.file("/v1/track", body(500 * 1024))
    assert len(click["raw"]) == 500 * 1024
    answer, clicks = door.send("/v1/track", body(500 * 1024 + 1))
    assert (answer.status, clicks) == (400, [])


def test_a_packed_body_is_unpacked_to_the_same_limit(door):
    for encoding in ("gzip", "x-gzip"):
        (click,) = door.file(
            "/v1/track", gzip.compress(json.dumps(EVENT).encode()), headers={"content-encoding": encoding}
        )
        assert click["value"] == EVENT
    for size, status in ((500 * 1024, 200), (500 * 1024 + 1, 400)):
        body = b'{"x":"' + b"x" * (size - 8) + b'"}'
        answer, _ = door.send("/v1/track", gzip.compress(body), headers={"content-encoding": "gzip"})
        assert answer.status == status
    answer, _ = door.send("/v1/track", gzip.compress(b"{}")[:-4], headers={"content-encoding": "gzip"})
    assert answer.status == 400
    answer, _ = door.send("/v1/track", b"{}", headers={"content-encoding": "br"})
    assert answer.status == 415


def test_very_many_tiny_events_are_filed_and_too_many_refused_while_others_are_served(door):
    few = door.file("/v1/batch", b'{"batch":[' + b"1," * 20_000 + b"1]}")
    assert len(few) == 20_001
    started = time.monotonic()
    answer, clicks = door.send(
        "/v1/batch", b'{"batch":[' + b"1," * 250_000 + b"1]}", headers={"user-agent": "a" * 9_000}
    )
    assert (answer.status, clicks) == (400, [])
    assert time.monotonic() - started < 5
    assert door.up.get("/live").status == 200


def test_a_long_id_a_huge_number_and_duplicate_names_are_filed(door):
    for event, key in (
        (b'{"anonymousId":"' + b"x" * 100_000 + b'"}', "x" * 100_000),
        (b'{"anonymousId":"ann","n":' + b"9" * 100_000 + b"}", "ann"),
        (b'{"anonymousId":"ann","anonymousId":"bob"}', "bob"),
    ):
        (click,) = door.file("/v1/track", event)
        assert (click["raw"], click["key"]) == (event, key)


def test_an_event_that_no_topic_may_hold_is_refused_whole(door):
    # The id stands in the event and again as the record's key.
    batch = {"batch": [EVENT, {"anonymousId": "x" * 505_000}]}
    answer, clicks = door.send("/v1/batch", batch)
    assert (answer.status, clicks) == (400, [])
    assert answer.json()["message"].startswith("record 1 has 1,010,")
    assert len(door.file("/v1/batch", {"batch": [EVENT, {"anonymousId": "x" * 450_000}]})) == 2


def test_any_content_type_is_taken(door):
    for kind in ("text/plain", "application/json; charset=utf-8", "application/x-www-form-urlencoded", "x"):
        assert len(door.file("/v1/track", EVENT, headers={"content-type": kind})) == 1


# What the door knew.


def test_the_door_writes_down_what_it_knew(door):
    before = time.time_ns() // 1000
    headers = {
        "user-agent": "Mozilla/5.0 (ü)",
        "sec-ch-ua": '"Chromium";v="156"',
        "sec-ch-ua-mobile": "?0",
        "sec-ch-ua-platform": '"Linux"',
        "x-forwarded-for": "203.0.113.9",
    }
    batch = {"batch": [EVENT, EVENT], "sentAt": "2026-11-21T12:00:00.000Z"}
    first, second = (click["door"] for click in door.file("/v1/batch", batch, headers=headers))
    assert first == second
    assert before <= first.received_us <= time.time_ns() // 1000
    assert first.address == "127.0.0.1", "nobody vouches for X-Forwarded-For"
    assert first.user_agent == "Mozilla/5.0 (ü)"
    assert first.hints == 'sec-ch-ua: "Chromium";v="156"\nsec-ch-ua-mobile: ?0\nsec-ch-ua-platform: "Linux"'
    assert (first.source, first.write_key, first.sent_at) == ("http/batch", "dev", "2026-11-21T12:00:00.000Z")
    (click,) = door.file("/v1/track", {**EVENT, "sentAt": "2026"})
    assert (click["door"].sent_at, click["door"].hints) == ("2026", "")


def test_events_of_one_visitor_keep_their_order_and_their_partition(door):
    places = []
    for n in range(20):
        (click,) = door.file("/v1/track", {"anonymousId": "order", "n": n})
        places.append((click["partition"], click["offset"]))
    assert len({partition for partition, _ in places}) == 1
    assert places == sorted(places)


# Browsers.

ORIGIN = {"origin": "https://shop.example"}


def test_a_preflight_is_answered_with_credentials(door):
    asked = {
        **ORIGIN,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    for path in ("/v1/t", "/v1/batch", "/v1/projects/dev/settings"):
        answer = door.up.post(path, key=None, headers=asked, method="OPTIONS")
        assert (answer.status, answer.body) == (204, b"")
        assert answer.headers["access-control-allow-origin"] == "https://shop.example"
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert answer.headers["access-control-allow-methods"] == "GET, POST, OPTIONS"
        assert answer.headers["access-control-allow-headers"] == "authorization,content-type"
        assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize(
    ("path", "body", "key", "method", "status"),
    [
        ("/v1/t", EVENT, "dev", "POST", 200),
        ("/v1/t", b"{", "dev", "POST", 400),
        ("/v1/t", EVENT, "junk", "POST", 401),
        ("/v1/projects/dev/settings", b"", None, "GET", 200),
        ("/v1/projects/junk/settings", b"", None, "GET", 404),
    ],
)
def test_a_page_may_read_every_answer(door, path, body, key, method, status):
    answer = door.up.post(path, body, key=key, method=method, headers=ORIGIN)
    assert answer.status == status
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert "access-control-allow-origin" not in door.up.post(path, body, key=key, method=method).headers


def test_the_settings_document_is_what_analytics_js_needs(door):
    answer = door.up.get("/v1/projects/web-key/settings", key=None, headers={"host": "c.example:7070"})
    assert answer.status == 200
    assert answer.json()["integrations"]["Segment.io"] == {
        "apiKey": "web-key", "apiHost": "c.example:7070/v1", "protocol": "http",
    }  # fmt: skip
    assert answer.json()["visitor"] is None


@pytest.mark.parametrize("path", ["/v1/projects/junk/settings", "/v1/projects//settings", "/v1/projects/%ff/settings"])
def test_settings_for_a_key_that_nobody_made_are_404(door, path):
    answer = door.up.get(path, key=None)
    assert (answer.status, answer.json()["message"]) == (404, "no such write key")


# The page itself.


def test_live_ready_and_metrics_count_what_was_acknowledged(door):
    def events():
        lines = door.up.get("/metrics", key=None).body.decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("headrace_collect_events_total "))

    before = events()
    door.file("/v1/batch", {"batch": [EVENT] * 5})
    assert events() == before + 5
    assert door.up.get("/ready", key=None).json() == {"ready": True, "reasons": []}
    assert door.up.get("/live", key=None).json() == {"live": True}

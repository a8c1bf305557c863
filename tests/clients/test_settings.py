"""The settings document that @segment/analytics-next asks for first."""

from __future__ import annotations


def test_the_settings_steer_the_sdk_to_this_door_and_are_kept_by_no_cache(collector):
    answer = collector.get("/v1/projects/dev/settings", headers={"cookie": "headrace_visitor=ann", "host": "shop.test"})
    assert answer.status == 200
    assert answer.json() == {
        "integrations": {"Segment.io": {"apiKey": "dev", "apiHost": "shop.test/v1", "protocol": "http"}},
        "metrics": {"sampleRate": 0},
        "visitor": "ann",
    }
    assert answer.headers["cache-control"] == "private, no-store"


def test_settings_of_a_key_that_nobody_made_are_not_found(collector):
    assert collector.get("/v1/projects/nobody/settings").status == 404


def test_a_refusal_tells_a_page_on_another_origin_how_long_to_wait(collector):
    answer = collector.post("/v1/track", b"{", headers={"origin": "https://shop.test"})
    assert answer.status == 400
    assert answer.headers["access-control-allow-origin"] == "https://shop.test"
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert answer.headers["access-control-expose-headers"] == "Retry-After"

"""The Segment surface of a running collector."""

from running import running


def test_an_event_is_in_the_topic_once_it_is_acknowledged(tmp_path):
    with running(tmp_path) as up:
        answer = up.post("/v1/track", {"anonymousId": "ann", "event": "Product Clicked"})
        assert (answer.status, answer.json()) == (200, {"success": True})
        (click,) = up.read("clicks")
        assert click["key"] == "ann"
        assert click["value"] == {"anonymousId": "ann", "event": "Product Clicked"}
        assert set(up.pids) == {"collector-1"}
    assert up.process.returncode == 0

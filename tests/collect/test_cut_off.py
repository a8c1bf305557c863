"""What is refused below ASGI is still an answer that a page can read."""

from __future__ import annotations

from running import running


def test_an_oversize_body_is_refused_so_that_a_page_can_read_it(tmp_path):
    with running(tmp_path) as up:
        answer = up.post("/v1/batch", b"x" * 600_000, headers={"origin": "https://shop.example"})
        assert answer.status == 400
        assert answer.headers["access-control-allow-origin"] == "https://shop.example"
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert "access-control-allow-origin" not in up.post("/v1/batch", b"x" * 600_000).headers

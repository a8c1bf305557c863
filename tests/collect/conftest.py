"""One running collector for the tests that only ask it, and what each request left in the topic."""

from __future__ import annotations

import pytest

from headrace.events.click import decode_door
from running import project_toml, running

KEYS = {"dev": "dev", "web": "web-key", "app": "app-key"}


class Collecting:
    """A running collector that also tells what a request filed."""

    def __init__(self, up):
        self.up = up

    def send(self, path, body=b"", **options):
        """Returns the answer and the clicks that are new since the request, each with its `door`."""
        start = self.up.ends()
        answer = self.up.post(path, body, **options)
        clicks = self.up.read(start=start)
        for click in clicks:
            click["door"] = decode_door(click["headers"].items())
        return answer, clicks

    def file(self, path, body=b"", **options):
        """Returns the new clicks of a request that must be acknowledged."""
        answer, clicks = self.send(path, body, **options)
        assert answer.status == 200, answer
        assert answer.json() == {"success": True}
        return clicks


@pytest.fixture(scope="session")
def door(tmp_path_factory):
    folder = tmp_path_factory.mktemp("door")
    with running(folder, toml=project_toml(keys=KEYS)) as up:
        yield Collecting(up)
        assert up.post("/v1/track", {"messageId": "still there"}).status == 200

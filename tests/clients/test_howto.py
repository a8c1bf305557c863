"""The blocks of docs/how-to/send-from-sdks.md, run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from clients.arrivals import messages

_TEXT = (Path(__file__).parents[2] / "docs" / "how-to" / "send-from-sdks.md").read_text(encoding="utf-8")
_DOOR = "http://127.0.0.1:7070"


def blocks(language, url):
    """Returns the how-to's blocks in a language, pointed at a door."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", _TEXT, re.DOTALL | re.MULTILINE)
    assert all(_DOOR in block for block in found)
    return [block.replace(_DOOR, url) for block in found]


def test_the_python_block_delivers(door, clicks):
    (block,) = blocks("python", door.url)
    subprocess.run([sys.executable, "-c", block], check=True, timeout=60)
    # An SDK whose answer comes late sends again, under the same id.
    (click,) = {click.value["messageId"]: click for click in clicks.now()}.values()
    assert (click.key, click.value["event"]) == ("ann", "Product Clicked")
    assert door.posts[0].headers["content-encoding"] == "gzip"


@pytest.mark.service("node")
def test_the_node_block_delivers(node_modules, door, clicks):
    (block,) = blocks("js", door.url)
    environment = {**os.environ, "NODE_PATH": str(node_modules)}
    subprocess.run(["node", "-e", block], check=True, timeout=60, env=environment)
    # An SDK whose answer comes late sends again, under the same id.
    (click,) = {click.value["messageId"]: click for click in clicks.now()}.values()
    assert (click.key, click.value["event"]) == ("ann", "Product Clicked")


@pytest.mark.service("node")
@pytest.mark.service("chromium")
def test_the_page_blocks_deliver(browser, shop, door, clicks):
    # A bundler would resolve the import; here the package's own UMD bundle does.
    lines = 'import { AnalyticsBrowser } from "@segment/analytics-next"', "const { AnalyticsBrowser } = AnalyticsNext"
    pages = blocks("html", door.url)
    for block in blocks("ts", door.url):
        assert lines[0] in block
        code = block.replace(*lines)
        pages.append(f'<script src="/umd/index.js"></script>\n<script type="module">\n{code}</script>')
    assert len(pages) == 3
    for count, page in enumerate(pages, 1):
        browser.open(shop.serve(page))
        clicks.until(lambda found, count=count: len(messages(found)) == count)
    assert {click.value["name"] for click in clicks.all} == {"Home"}
    assert {post.path for post in door.posts} == {"/v1/p", "/v1/b"}
    assert len({click.value["anonymousId"] for click in clicks.all}) == 1

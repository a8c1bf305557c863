"""The role console: its pages, as a browser gets them over HTTP from a real endpoint."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import threading
import time
from html.parser import HTMLParser
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import pytest

from endpoints.door import make_popular, make_tastes, make_trial, write_trial
from headrace.console import pages as pages_module
from headrace.console.posters import _STYLES, draw_poster, draw_wide
from headrace.events.dimension import VERSION, Member, encode
from headrace.project import open_project
from headrace.topics import Record
from running import Answer, project_toml, running, wait_until
from streamline import BEGAN_US, make_project

MAX_BYTES = 150_000
_ITEMS = 'items = Dimension("items", key="product_id", attributes=(Attribute("title"), Attribute("genre")))\n'
NASTY = '"><script>alert(1)</script>&amp;'

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """What a browser would make of a page: its elements with their attributes, and its text."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer
        self.elements = []
        self.text = ""
        self.feed(answer.body.decode())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, name):
        """Returns the attributes of the elements of a name, or that have an attribute of it."""
        return [attributes for tag, attributes in self.elements if name == tag or name in attributes]

    @property
    def items(self):
        return [one["data-headrace-item"] for one in self.all("data-headrace-item")]


def get(url, path="/", *, cookie="", host="", headers=None):
    """Returns the answer of the console's door."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    agent = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"
    headers = {**(headers or {}), "user-agent": agent}
    headers |= {"cookie": cookie} if cookie else {}
    headers |= {"host": host} if host else {}
    try:
        connection.request("GET", path, headers=headers)
        found = connection.getresponse()
        return Answer(found.status, found.read(), {name.lower(): value for name, value in found.getheaders()})
    finally:
        connection.close()


class Home:
    """A running project with a console."""

    def __init__(self, up):
        self.up = up
        self.url = up.urls["console"]
        self.named = set()

    def open(self, path="/", **options):
        answer = get(self.url, path, **options)
        assert answer.status == 200, answer.body
        return Page(answer)

    def name(self, titles):
        """Tells what items are called from now on; what was told of others before is forgotten."""
        told = {item: {} for item in self.named} | titles
        self.named = set(titles)
        members = [
            Member(version=VERSION, key=item, attributes=known, received_us=BEGAN_US) for item, known in told.items()
        ]
        with open_project(self.up.folder) as project:
            project.topics.create("items", partitions=1, retention_seconds=None)
            project.topic("items").append([Record(one.key.encode(), encode(one)) for one in members])
        for item, known in told.items():
            wait_until(lambda item=item, known=known: known.get("title", item) in self.open(f"/watch/{item}").text)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A console whose endpoint has a bundle; `home.before` is the page as it was without one."""
    folder = make_project(tmp_path_factory.mktemp("home"), explore=0, clock="real://")
    text = (folder / "project.py").read_text().replace('item="product_id")', 'item="product_id", of=items)')
    (folder / "project.py").write_text(text.replace("views =", _ITEMS + "views =").replace("import C", "import *  # C"))
    with running(folder, "collector", "endpoint", "console") as up:
        home = Home(up)
        home.before = home.open()
        with open_project(folder) as project:
            project.registry.add(make_popular())
        wait_until(lambda: home.open().items)
        yield home


def test_a_page_without_a_bundle_says_how_to_get_one(home):
    assert "Nothing to show yet" in home.before.text
    assert "headrace model fit popular" in home.before.text
    assert home.before.items == []
    assert {"http-equiv": "refresh", "content": "5"} in home.before.all("meta")


def test_a_page_shows_what_the_endpoint_decided_under_its_id(home):
    page = home.open(cookie="headrace_visitor=ann%201")
    (place,) = page.all("data-headrace-list")
    decision = next(
        one["value"]
        for one in home.up.read("decisions")
        if one["value"].get("recommendation_id") == place["data-headrace-recommendation"]
    )
    assert decision["visitor"] == "ann 1"
    assert not decision.get("bot")
    assert place["data-headrace-list"] == decision["list_id"] == "For you"
    assert page.items == decision["items"] == ["item-0", "item-1", "item-2", "item-3"]
    links = page.all("data-headrace-item")
    assert [link["data-headrace-position"] for link in links] == ["1", "2", "3", "4"]
    assert [link["data-headrace-category"] for link in links] == ["comedy", "drama", "space", "comedy"]
    assert [urlsplit(link["href"]).path for link in links] == [f"/watch/{item}" for item in page.items]
    assert {urlsplit(link["href"]).query for link in links} == {f"recommendation={decision['recommendation_id']}"}
    assert "no trial" in page.text
    assert f"bundle{decision['bundle'][:8]}" in page.text
    assert all(f"propensity{propensity:g}" in page.text for propensity in decision["propensities"])
    assert "set-cookie" not in page.answer.headers


def test_a_page_asks_nobody_but_its_door_and_the_collector(home):
    page, collector = home.open(), home.up.urls["collector"]
    headers = page.answer.headers
    policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
    (style,) = page.all("style")
    nonce = f"'nonce-{style['nonce']}'"
    assert policy["default-src"] == "'self'"
    assert policy["script-src"] == f"{nonce} {collector}"
    assert (policy["style-src"], policy["connect-src"]) == (nonce, collector)
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "private, no-store"
    assert nonce not in home.open().answer.headers["content-security-policy"]
    tracker, inline = page.all("script")
    assert tracker["src"] == f"{collector}/headrace.js"
    assert (tracker["data-key"], tracker["data-visitor"]) == ("dev", page.answer.headers["set-cookie"][17:43])
    assert inline["nonce"] == style["nonce"]
    addresses = [element[name] for _, element in page.elements for name in ("src", "href") if name in element]
    assert {urlsplit(one).netloc for one in addresses} == {"", urlsplit(collector).netloc}
    # Inline styles and handlers would be refused by the policy.
    assert not [name for _, element in page.elements for name in element if name == "style" or name.startswith("on")]


def test_all_of_a_page_is_small(home):
    page = home.open()
    posters = [get(home.url, one["src"]) for one in page.all("img")]
    assert len(posters) == 4
    assert {(one.status, one.headers["content-type"]) for one in posters} == {(200, "image/svg+xml")}
    assert sum(len(one.body) for one in (page.answer, *posters)) < MAX_BYTES
    assert all("default-src 'none'" in one.headers["content-security-policy"] for one in posters)


def test_a_collector_that_is_open_to_all_is_found_by_the_name_that_the_browser_knows(home):
    state = home.up.folder / ".headrace" / "run" / "collector.json"
    before = state.read_text()
    state.write_text('{"url": "http://0.0.0.0:7070"}')
    page = home.open(host="localhost:7072")
    state.write_text(before)
    assert page.all("script")[0]["src"] == "http://localhost:7070/headrace.js"
    assert "connect-src http://localhost:7070;" in page.answer.headers["content-security-policy"]


def test_a_visitor_gets_an_id_before_the_first_event_and_keeps_it(home):
    page = home.open()
    cookie = page.answer.headers["set-cookie"]
    assert re.fullmatch(r"headrace_visitor=[0-9A-Z]{26}; Path=/; Max-Age=31536000; HttpOnly; SameSite=Lax", cookie)
    again = home.open(cookie=cookie.partition(";")[0])
    assert "set-cookie" not in again.answer.headers
    assert again.all("data-visitor")[0]["data-visitor"] == cookie[17:43]


def test_a_person_can_be_somebody_else(home):
    page = home.open("/?visitor=bob%20b", cookie="headrace_visitor=ann")
    assert page.all("data-visitor")[0]["data-visitor"] == "bob b"
    assert page.answer.headers["set-cookie"].startswith("headrace_visitor=bob%20b;")
    assert {parse_qs(urlsplit(one["href"]).query)["visitor"][0] for one in page.all("data-headrace-item")} == {"bob b"}
    # Two tabs share a cookie: who was chosen by address stays so on the way.
    watch = home.open(page.all("data-headrace-item")[0]["href"], cookie="headrace_visitor=ann")
    assert watch.all("data-visitor")[0]["data-visitor"] == "bob b"
    assert "/?visitor=bob+b" in [one["href"] for one in watch.all("a")]
    new = home.open("/?visitor=", cookie="headrace_visitor=ann")
    assert len(new.all("data-visitor")[0]["data-visitor"]) == 26
    assert get(home.url, "/?visitor=" + "x" * 1025).status == 400
    assert len(home.open(cookie="headrace_visitor=" + "x" * 1025).all("data-visitor")[0]["data-visitor"]) == 26


def test_what_comes_from_outside_is_only_text(home):
    home.name({"item-0": {"title": NASTY, "genre": NASTY}})
    try:
        for path in ("/?visitor=" + "%22%3E%3Cscript%3E", "/watch/item-0?recommendation=%22%3E%3Cscript%3E"):
            page = home.open(path)
            assert NASTY in page.text
            assert len(page.all("script")) == (3 if "watch" in path else 2)
            assert page.all("h1") == [{}]
        poster = get(home.url, home.open().all("img")[0]["src"]).body
        assert ElementTree.fromstring(poster) is not None
        assert b"<script" not in poster
    finally:
        home.name({})


def test_titles_are_read_when_they_are_there(home):
    assert "item-1" in home.open().text
    home.name({"item-0": {"title": "The Paper Moon", "genre": "western"}, "item-1": {"title": "Tailwater"}})
    page = home.open()
    assert {"aria-label": "Tailwater, drama"}.items() <= page.all("data-headrace-item")[1].items()
    assert "The Paper Moon" in page.text
    assert page.all("data-headrace-item")[0]["data-headrace-category"] == "comedy", "as it was decided"
    home.name({})
    wait_until(lambda: "The Paper Moon" not in home.open().text)


def test_titles_are_read_by_one_thread_at_a_time(home, monkeypatch):
    monkeypatch.setattr(pages_module, "_TITLES_SECONDS", 0.0)
    with open_project(home.up.folder) as project:
        pages = pages_module.Pages(project)
        inside = []
        monkeypatch.setattr(
            pages._dimensions, "refresh", lambda: inside.append(pages._reading.locked()) or time.sleep(0.1)
        )

        async def ask():
            return await asyncio.gather(*[pages._names([("item-1", "")]) for _ in range(5)])

        assert len(asyncio.run(ask())) == 5
    assert inside == [True]


def test_a_title_has_a_page_on_which_it_plays(home):
    home.name({"item-3": {"title": "Tailwater", "genre": "drama"}})
    page = home.open("/watch/item-3?recommendation=rec-1")
    home.name({})
    player = next(one for one in page.all("section") if one.get("id") == "player")
    assert (player["data-item"], player["data-recommendation"]) == ("item-3", "rec-1")
    assert len(player["data-session"]) == 26
    assert "Tailwater" in page.text
    assert "/" in [one["href"] for one in page.all("a")]
    assert home.open("/watch/nobody%20knows%2Fthis%20one").all("section")[0]["data-item"] == "nobody knows/this one"
    for path in ("/watch/", "/watch", "/else", "/other/watch/item-3"):
        assert get(home.url, path).status == 404
    assert get(home.url, "/favicon.ico").headers["content-type"] == "image/svg+xml"


def test_the_arm_of_a_visitor_is_shown(home):
    with open_project(home.up.folder) as project:
        hashes = [project.registry.add(bundle) for bundle in (make_popular(), make_tastes())]
        write_trial(project.registry, make_trial(*hashes))
        wait_until(lambda: "no trial" not in home.open("/?visitor=ann").text)
        pages = [home.open(f"/?visitor=v{number}") for number in range(8)]
        write_trial(project.registry, make_trial(*hashes, status="stopped"))
    wait_until(lambda: "no trial" in home.open("/?visitor=ann").text)
    arms = {re.search(r"(control|treatment) · taste-home", page.text)[1] for page in pages}
    assert arms == {"control", "treatment"}


def test_a_console_alone_says_what_is_missing(tmp_path):
    extra = "[endpoint]\nport = 9\n[console]\nport = 0\n"
    make_project(tmp_path, clock="real://")
    (tmp_path / "headrace.toml").write_text(project_toml(extra=extra, keys={"mine": "secret"}))
    with running(tmp_path, "console") as up:
        page = Home(up).open()
        assert "The endpoint is away" in page.text
        assert "Nobody answers at http://127.0.0.1:9. Start it with: headrace up endpoint" in page.text
        assert "no collector takes the key dev" in page.text
        assert [script.get("src") for script in page.all("script")] == [None]
        with _answering(b"SSH-2.0-OpenSSH_9.7\r\n\r\n") as port:
            state = up.folder / ".headrace" / "run" / "endpoint.json"
            state.write_text(json.dumps({"url": f"http://127.0.0.1:{port}"}))
            assert "The endpoint is away" in Home(up).open().text
        with _answering(b"HTTP/1.1 200 OK\r\n\r\n<html>") as port:
            state.write_text(json.dumps({"url": f"http://127.0.0.1:{port}"}))
            assert f"What answers at http://127.0.0.1:{port} is no endpoint" in Home(up).open().text


def _answering(answer):
    """Returns a server that gives one answer to whoever comes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        connection, _ = listener.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(answer)

    class _Server:
        def __enter__(self):
            self.thread = threading.Thread(target=serve)
            self.thread.start()
            return listener.getsockname()[1]

        def __exit__(self, *_):
            self.thread.join()
            listener.close()

    return _Server()


# Posters.


@pytest.mark.parametrize("genre", [*_STYLES, "", "cooking", "ÿ <&\x00"])
def test_a_poster_follows_from_what_it_is_of(genre):
    first = draw_poster("item-1", "The Paper Moon & Sons", genre)
    assert draw_poster("item-1", "The Paper Moon & Sons", genre) == first
    assert len({first, draw_poster("item-2", "The Paper Moon & Sons", genre), draw_wide("item-1", genre)}) == 3
    for text in (first, draw_wide("item-1", genre)):
        root = ElementTree.fromstring(text)
        assert "href" not in text
        assert {element.tag.partition("}")[2] for element in root.iter()} <= {
            "svg", "title", "defs", "linearGradient", "stop", "rect", "g", "path", "polygon", "ellipse", "text",
        }  # fmt: skip
        assert len(text) < 25_000


@pytest.mark.parametrize("title", ["", "\x00\ud800", "W" * 500, "a " * 200, "<b>", "Ein Ding 😀"])
def test_a_poster_bears_any_title(title):
    texts = [
        one for one in ElementTree.fromstring(draw_poster(title, title, "drama")).iter() if one.tag.endswith("text")
    ]
    assert 2 <= len(texts) <= 6
    assert sum(len(one.text or "") for one in texts) <= 130

"""headrace.js in Chromium, as the collector serves it, on a page whose origin is not the collector's."""

from __future__ import annotations

import gzip
import re
import time
import zlib
from datetime import datetime
from pathlib import Path

import pytest

import headrace
from clients.arrivals import check_places, messages
from clients.door import CUT, RETRY_AFTER_SECONDS
from clients.shop import Shop
from clients.webdriver import png_size
from headrace.collect.tracker import shorten
from running import wait_until

DOCS = Path(__file__).parents[2] / "docs" / "how-to" / "tracker.md"
SOURCE = Path(headrace.__file__).parent / "collect" / "headrace.js"
COOKIE = "headrace_visitor"
MAX_BYTES = 2048

in_chromium = pytest.mark.service("chromium")

# Two items in full view, one of which 40 % are, one that is below the fold, and one in a list of no recommendation.
LISTS = """\
<style>
  body { margin: 0 } a, b { display: block; height: 40px }
  #edge { position: fixed; bottom: -60px; height: 100px; left: 0; right: 0; background: #fd8 }
  #gap { height: 2000px }
</style>
<section data-headrace-list="home" data-headrace-recommendation="rec-1">
  <a data-headrace-item="item-1" data-headrace-position="1" data-headrace-category="comédie" href="#">One</a>
  <a data-headrace-item="item-2" data-headrace-position="2"><i>Two</i></a>
  <a data-headrace-item="item-3" data-headrace-position="3" id="edge">Three</a>
</section>
<section data-headrace-list="plain"><b data-headrace-item="item-9" id="swapped">Nine</b></section>
<b data-headrace-item="nowhere">In no list</b>
<div id="gap"></div>
<section data-headrace-list="low" data-headrace-recommendation="rec-1" id="low">
  <a data-headrace-item="item-4" data-headrace-position="1" href="ELSEWHERE" id="four"><i>Four</i></a>
</section>
"""

# A frame later the browser has told who is in view, and who is not.
FLICK = """
const frames = (count) => new Promise((go) => requestAnimationFrame(() => go(count > 1 ? frames(count - 1) : null)))
const told = new Promise((tell) => new IntersectionObserver((entries, one) => {
  if (entries[0].isIntersecting) { one.disconnect(); tell() }
}).observe(document.getElementById("four")))
return frames(3)
  .then(() => document.getElementById("low").scrollIntoView())
  .then(() => told)
  .then(() => scrollTo(0, 0))
  .then(() => frames(3))
"""


BARRED = """\
<script>
  const refuse = { get() { throw new DOMException("refused", "SecurityError") } }
  Object.defineProperty(window, "localStorage", refuse)
  Object.defineProperty(document, "cookie", { ...refuse, set: refuse.get })
  delete Crypto.prototype.randomUUID
</script>
"""


def blocks():
    """Returns the how-to's blocks of HTML."""
    return re.findall(r"^```html\n(.*?)^```$", DOCS.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def snippet(door, *, number=0):
    """Returns one of the how-to's blocks, pointed at a door."""
    block = blocks()[number]
    assert "http://127.0.0.1:7070" in block
    return block.replace("http://127.0.0.1:7070", door.url)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    shop = Shop(tmp_path_factory.mktemp("no-sdk"))
    yield shop
    shop.close()


def names(clicks):
    return [click.value.get("event") or click.value["type"] for click in clicks]


def views(clicks):
    """Returns what was seen, as (list, recommendation, items) in the order of arrival."""
    found = [click.value["properties"] for click in clicks if click.value.get("event") == "Product List Viewed"]
    return [
        (one["list_id"], one.get("recommendation_id"), [product["product_id"] for product in one["products"]])
        for one in found
    ]


def made_at(event):
    return datetime.fromisoformat(event["timestamp"])


def console_errors(browser):
    """Returns what pages wrote to the console since the last call."""
    return [entry["message"] for entry in browser._ask("POST", "/se/log", {"type": "browser"})]


def waiting(browser):
    """Returns the ids of the messages that stand in the browser's storage."""
    return set(
        browser.run(
            """
            const queues = Object.keys(localStorage).filter((name) => name.startsWith("headrace_queue_"))
            return queues.flatMap((name) => Object.keys(JSON.parse(localStorage[name])))
            """
        )
    )


def sent(posts):
    """Returns the ids of the messages in posts, in their order."""
    return [event["messageId"] for post in posts for event in post.sent["batch"]]


# What is served.


def test_the_tracker_is_served_to_any_origin_in_two_kilobytes(collector):
    asked = {"origin": "http://shop.example", "accept-encoding": "gzip, br"}
    answer = collector.get("/headrace.js", key=None, headers=asked)
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["cache-control"] == "public, max-age=300"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["vary"] == "Accept-Encoding"
    assert len(answer.body) <= MAX_BYTES
    plain = collector.get("/headrace.js", key=None)
    assert "content-encoding" not in plain.headers
    assert gzip.decompress(answer.body) == plain.body
    assert len(zlib.compress(plain.body, 9)) <= len(answer.body)


def test_a_browser_that_has_the_tracker_is_told_so(collector):
    first = collector.get("/headrace.js", key=None)
    again = collector.get("/headrace.js", key=None, headers={"if-none-match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert "content-length" not in again.headers
    assert collector.get("/headrace.js", key=None, headers={"if-none-match": 'W/"old"'}).status == 200


def test_the_tracker_keeps_to_what_shortening_may_do():
    source = SOURCE.read_text(encoding="utf-8")
    assert all(line.lstrip().startswith("//") for line in source.splitlines() if "//" in line)
    code = "\n".join(line.strip() for line in source.splitlines() if "//" not in line)
    assert not re.search(r"['`]|[+-] [+-]", code)
    # ES2017 has none of these.
    assert not re.search(r"\?\.|\?\?|\{ *\.\.\.|catch *\{|\d_\d|async function\*", re.sub(r'"[^"]*"', "", code))
    assert f'version: "{headrace.__version__}"' in source
    assert shorten(shorten(source)) == shorten(source)


# What is sent.


@in_chromium
def test_the_snippet_sends_page_track_and_identify_of_one_visitor(browser, shop, door, clicks):
    console_errors(browser)
    page = shop.serve(snippet(door))
    browser.open(page)
    visitor = browser.run("return headrace.visitor")
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", visitor)
    browser.run(
        """
        headrace.push(["track", "Product Added", { product_id: "1", name: "Zoë 😀 \\ud83d" }])
        headrace.identify(42, { plan: "gold" })
        headrace.track("Söldout")
        """
    )
    found = clicks.until(lambda found: len(found) == 4)
    assert names(found) == ["page", "Product Added", "identify", "Söldout"]
    check_places(found)
    assert {click.value["anonymousId"] for click in found} == {visitor}
    assert [click.value.get("userId") for click in found] == [None, None, "42", "42"]
    assert found[0].value["name"] == "Home"
    assert found[1].value["properties"]["name"] == "Zoë 😀 \ufffd"
    assert found[2].value["traits"] == {"plan": "gold"}
    context = found[1].value["context"]
    assert context["library"] == {"name": "headrace.js", "version": headrace.__version__}
    path = page.removeprefix(shop.origin)
    assert context["page"] == {"url": page, "path": path, "referrer": "", "title": "The shop"}
    assert {click.door.source for click in found} == {"http/batch"}
    assert all(click.door.sent_at and "Headless" in click.door.user_agent for click in found)
    # Being text, it needs no preflight.
    assert {(one.method, one.path) for one in door.exchanges} == {("GET", "/headrace.js"), ("POST", "/v1/batch")}
    wait_until(lambda: waiting(browser) == set())
    assert console_errors(browser) == []


@in_chromium
def test_the_visitor_is_kept_across_pages_and_the_one_that_is_handed_in_wins(browser, shop, door, clicks):
    page, handed = shop.serve(snippet(door)), shop.serve(snippet(door, number=2))
    ids = []
    # The third finds no storage, the last no cookie.
    for act in ("headrace.identify('ann')", "localStorage.clear()", "", ""):
        browser.open(page)
        ids.append(browser.run("return headrace.visitor"))
        browser.run(act)
        if len(ids) == 3:
            # Where nothing is sent any more: the collector would set a cookie of its own.
            browser.open(f"{shop.origin}/umd/nothing")
            browser.delete_cookie(COOKIE)
    assert len(set(ids)) == 1
    browser.open(handed)
    assert browser.run("return headrace.visitor") == "ann-1"
    assert browser.cookies()[COOKIE]["value"] == "ann-1"
    browser.open(page)
    assert browser.run("return headrace.visitor") == "ann-1"
    # Without cookies and storage, as some browsers have it, and on plain http it works all the same.
    browser.open(shop.serve(BARRED + snippet(door)))
    browser.open("data:,")
    found = clicks.until(lambda found: len(messages(found)) == 8)
    once = {click.value["messageId"]: click.value for click in found}
    assert len([event for event in once.values() if re.fullmatch(r"\d+-\d+-\d+-\d+", event["anonymousId"])]) == 1
    known = [event for event in once.values() if event["anonymousId"] == ids[0]]
    assert [event.get("userId") for event in sorted(known, key=made_at)] == [None, "ann", "ann", None, None]


@in_chromium
def test_the_user_is_forgotten_who_logs_out_or_was_another_visitor(browser, shop, door, clicks):
    page, handed = shop.serve(snippet(door)), shop.serve(snippet(door, number=2))
    for path, act in (
        (page, "headrace.identify('ann'); headrace.identify('')"),
        (page, "headrace.identify('bob'); headrace.identify(null)"),
        (page, "headrace.identify('cat'); headrace.identify()"),
        (page, "headrace.identify('dan')"),
        # Another visitor than the one who is remembered is nobody known; the same one on the next page is.
        (handed, "headrace.identify('eve')"),
        (handed, ""),
    ):
        browser.open(path)
        browser.run(act)
    assert browser.run("return localStorage.headrace_user") == "eve"
    browser.open("data:,")
    found = clicks.until(lambda found: len(messages(found)) == 14)
    once = {click.value["messageId"]: click.value for click in found}
    assert [event.get("userId") for event in sorted(once.values(), key=made_at)] == [
        None, "ann", None, None, "bob", None, None, "cat", None, None, "dan", None, "eve", "eve",
    ]  # fmt: skip


@in_chromium
def test_an_item_counts_once_half_of_it_was_visible_for_a_second(browser, shop, door, clicks, tmp_path):
    console_errors(browser)
    elsewhere = shop.serve("elsewhere")
    browser.open(shop.serve(LISTS.replace("ELSEWHERE", elsewhere) + snippet(door)))
    # In view for a few frames is not seen.
    browser.run(FLICK)
    found = clicks.until(lambda found: len(found) == 3)
    assert names(found) == ["page", "Product List Viewed", "Product List Viewed"]
    assert views(found) == [("home", "rec-1", ["item-1", "item-2"]), ("plain", None, ["item-9"])]
    assert png_size(browser.screenshot(tmp_path / "lists.png").read_bytes())[0] == 900
    assert found[1].value["properties"]["products"] == [
        {"product_id": "item-1", "position": 1, "category": "comédie"},
        {"product_id": "item-2", "position": 2},
    ]
    assert (made_at(found[1].value) - made_at(found[0].value)).total_seconds() >= 1

    # The third comes to 60 %, the fourth is scrolled to, the fifth is added by a script. A click on the fourth, which
    # the page stops there, leaves before the second of the tracker is over.
    browser.run(
        """
        const low = document.getElementById("low"), item = document.getElementById("four")
        document.getElementById("edge").style.bottom = "-40px"
        low.insertAdjacentHTML("beforeend", `<p data-headrace-item="item-5">Five</p>`)
        low.scrollIntoView()
        item.addEventListener("click", (event) => event.stopPropagation())
        return new Promise((go) => setTimeout(go, 1500)).then(() => item.firstChild.click())
        """
    )
    found = clicks.until(lambda found: "Product Clicked" in names(found))[3:]
    wait_until(lambda: browser.run("return location.href") == elsewhere)
    assert names(found) == ["Product List Viewed", "Product List Viewed", "Product Clicked"]
    assert views(found) == [("home", "rec-1", ["item-3"]), ("low", "rec-1", ["item-4", "item-5"])]
    # Only a beacon asks for no leave to read the answer.
    assert door.posts[-1].headers["sec-fetch-mode"] == "no-cors"
    assert set(sent(door.posts[-1:])) == messages(found)
    assert found[2].value["properties"] == {
        "product_id": "item-4",
        "position": 1,
        "list_id": "low",
        "recommendation_id": "rec-1",
    }
    assert console_errors(browser) == []


@in_chromium
def test_a_click_is_an_impression_and_a_hidden_tab_sees_nothing(browser, shop, door, clicks):
    browser.open(shop.serve(LISTS + snippet(door)))
    before = browser.run(
        """
        document.querySelector("i").click()
        document.querySelector("i").dispatchEvent(new MouseEvent("auxclick", { bubbles: true, button: 1 }))
        document.querySelector("i").dispatchEvent(new MouseEvent("auxclick", { bubbles: true, button: 2 }))
        document.dispatchEvent(new MouseEvent("click"))
        document.getElementById("gap").click()
        document.addEventListener("visibilitychange", () => { window.hiddenAt = window.hiddenAt || Date.now() / 1000 })
        return performance.now()
        """
    )
    browser._ask("POST", "/window/minimize", {})
    assert browser.run("return document.hidden")
    found = clicks.until(lambda found: len(found) == 4)
    # What was there goes out when the tab is hidden, not a second later.
    sent_at = datetime.fromisoformat(found[0].door.sent_at).timestamp()
    assert sent_at - browser.run("return window.hiddenAt") < 0.3
    assert names(found) == ["page", "Product List Viewed", "Product Clicked", "Product Clicked"]
    assert views(found) == [("home", "rec-1", ["item-2"])]
    time.sleep(max(0.0, 1.2 - (browser.run("return performance.now()") - before) / 1000))
    assert len(clicks.now()) == 4
    # Back in view each begins its second again, as does an element that is given another item.
    browser._ask("POST", "/window/rect", {"width": 900, "height": 640})
    wait_until(lambda: not browser.run("return document.hidden"))
    browser.run(
        """
        document.getElementById("swapped").dataset.headraceItem = "item-8"
        document.querySelector("section").dataset.headraceRecommendation = "rec-2"
        return new Promise((go) => setTimeout(go, 1500))
        """
    )
    browser.open("data:,")
    found = clicks.until(lambda found: len(found) == 6)[4:]
    assert views(found) == [("home", "rec-2", ["item-1", "item-2"]), ("plain", None, ["item-8"])]


# What is sent again.


@in_chromium
def test_what_is_refused_or_gets_no_answer_is_sent_again_under_the_same_ids(browser, shop, door, clicks):
    page = shop.serve(snippet(door) + '<script>headrace.push(["track", "Before", { title: "Ü" }])</script>')
    # Where it had used the connection before, Chromium itself repeats what got no answer.
    door.answer_next(503, CUT, CUT, *[503] * 100)
    browser.open(page)
    wait_until(lambda: len(door.posts) >= 3)
    assert [post.status for post in door.posts[:3]] == [503, CUT, CUT]
    assert door.posts[1].at - door.posts[0].at >= RETRY_AFTER_SECONDS
    assert waiting(browser) == messages(clicks.now()) == set(sent(door.posts[:1]))
    door.recover()
    browser.reload()
    clicks.until(lambda found: len(messages(found)) == 4)
    wait_until(lambda: waiting(browser) == set())
    # A beacon and the next page sent them once more; for the settler each is one event.
    once = {click.value["messageId"]: click for click in clicks.now()}
    assert sorted(names(once.values())) == ["Before", "Before", "page", "page"]

    # Twenty go at once, in posts of 20,000 characters; what a repeat can't mend is dropped.
    door.answer_next(400)
    browser.run("for (let n = 0; n < 20; n++) headrace.track('Long', { text: 'ü'.repeat(1500) })")
    wait_until(lambda: waiting(browser) == set())
    (refused,) = [len(post.sent["batch"]) for post in door.posts if post.status == 400]
    assert 0 < refused < 20
    assert names(clicks.now()).count("Long") == 20 - refused
    assert all(len(post.body) < 64 * 1024 for post in door.posts)


@in_chromium
def test_two_tabs_lose_nothing_while_the_collector_is_away(browser, shop, door, clicks):
    page = shop.serve(snippet(door))
    tabs = [browser._ask("GET", "/window"), browser._ask("POST", "/window/new", {"type": "tab"})["handle"]]
    for tab in tabs:
        browser._ask("POST", "/window", {"handle": tab})
        browser.open(page)
    door.go_away()
    for number, tab in enumerate(tabs):
        browser._ask("POST", "/window", {"handle": tab})
        browser.run("headrace.track(`Tab ${arguments[0]}`)", number)
    wait_until(lambda: any("ERR_CONNECTION_REFUSED" in error for error in console_errors(browser)))
    # The second is closed while nobody listens; what it could not send is for the next page of the site.
    browser._ask("DELETE", "/window")
    browser._ask("POST", "/window", {"handle": tabs[0]})
    door.come_back()
    browser.reload()
    clicks.until(lambda found: len(messages(found)) == 5)
    wait_until(lambda: waiting(browser) == set())
    once = {click.value["messageId"]: click for click in clicks.now()}
    assert sorted(names(once.values())) == ["Tab 0", "Tab 1", "page", "page", "page"]
    assert len({click.key for click in once.values()}) == 1

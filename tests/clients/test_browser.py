"""@segment/analytics-next, unmodified, in Chromium, on a page whose origin is not the collector's."""

from __future__ import annotations

import pytest

from clients.arrivals import check_places, messages
from clients.door import CUT, RETRY_AFTER_SECONDS
from clients.webdriver import forget, png_size
from running import wait_until

pytestmark = [pytest.mark.service("node"), pytest.mark.service("chromium")]

COOKIE = "headrace_visitor"


def options(strategy="standard", **config):
    """Returns the load options of the how-to: cookies on another origin, and how events are delivered."""
    delivery = {"strategy": strategy, "config": {"credentials": "include", **config}}
    return {"integrations": {"Segment.io": {"deliveryStrategy": delivery}}}


BATCHING = options("batching", size=100, timeout=300)


def visitor(browser):
    """Returns the anonymous id that the SDK uses on the open page, once it has started."""
    return browser.run(
        """
        const shown = document.getElementById("visitor")
        const started = () => shown.textContent !== "nobody yet"
        return new Promise((resolve) => {
          if (started()) return resolve(shown.textContent)
          new MutationObserver(() => resolve(shown.textContent)).observe(shown, { childList: true })
        })
        """
    )


def names(clicks):
    return sorted(click.value.get("event") or click.value["type"] for click in clicks)


def test_the_snippet_delivers_every_call_across_origins(browser, shop, door, clicks, tmp_path):
    browser.open(shop.page("snippet", door.url, options()))
    anonymous = visitor(browser)
    browser.run(
        """
        analytics.track("Product Clicked", { product_id: "1", name: "Zoë 😀" })
        analytics.identify("web@shop", { plan: "gold" })
        analytics.group("acme", { seats: 3 })
        analytics.screen("Checkout")
        """
    )
    found = clicks.until(lambda found: len(found) == 5)
    assert names(found) == ["Product Clicked", "group", "identify", "page", "screen"]
    assert {click.value["anonymousId"] for click in found} == {anonymous}
    check_places(found)
    assert {click.door.source for click in found} == {
        "http/track",
        "http/identify",
        "http/group",
        "http/page",
        "http/screen",
    }
    assert all(click.value["context"]["page"]["title"] == "The shop" for click in found)
    assert {click.value["context"]["library"]["name"] for click in found} == {"analytics.js"}
    assert all("Headless" in click.door.user_agent and click.door.hints for click in found)
    (track,) = [click.value for click in found if click.value["type"] == "track"]
    assert track["properties"] == {"product_id": "1", "name": "Zoë 😀"}
    asked = [one for one in door.exchanges if one.method == "OPTIONS"]
    assert asked
    assert all(one.headers["access-control-request-headers"] == "authorization" for one in asked)
    assert {post.headers["origin"] for post in door.posts} == {shop.origin}
    assert len(door.posts) == 5
    picture = browser.screenshot(tmp_path / "shop.png")
    assert png_size(picture.read_bytes())[0] == 900
    assert anonymous in browser.run("return document.body.innerText")


def test_the_cookie_is_hidden_from_scripts_and_remembered_across_a_reload(browser, shop, door, clicks):
    browser.open(shop.page("snippet", door.url, options()))
    anonymous = visitor(browser)
    cookie = wait_until(lambda: browser.cookies().get(COOKIE))
    assert cookie["value"] == anonymous
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")
    assert COOKIE not in browser.run("return document.cookie")
    browser.reload()
    assert visitor(browser) == anonymous
    clicks.until(lambda found: len(messages(found)) == 2)
    assert COOKIE not in door.posts[0].headers.get("cookie", "")
    assert f"{COOKIE}={anonymous}" in door.posts[-1].headers["cookie"]
    assert {click.value["anonymousId"] for click in clicks.all} == {anonymous}


def test_without_credentials_events_arrive_and_no_cookie_is_kept(browser, shop, door, clicks):
    page = shop.page("snippet", door.url, {})
    for count in (1, 2):
        browser.open(page)
        clicks.until(lambda found, count=count: len(messages(found)) == count)
    assert all("cookie" not in one.headers for one in door.exchanges)
    assert len({click.value["anonymousId"] for click in clicks.all}) == 1


def test_the_visitor_is_handed_back_when_the_browser_forgot_what_scripts_kept(browser, shop, door, clicks):
    page = shop.page("remembered", door.url, options())
    browser.open(page)
    anonymous = visitor(browser)
    wait_until(lambda: COOKIE in browser.cookies())
    forget(browser)
    browser.open(page)
    assert visitor(browser) == anonymous
    clicks.until(lambda found: len(messages(found)) == 2)
    forget(browser, COOKIE)
    browser.open(page)
    assert visitor(browser) != anonymous
    clicks.until(lambda found: len(messages(found)) == 3)


def test_batching_sends_many_events_in_one_post(browser, shop, door, clicks):
    browser.open(shop.page("package", door.url, BATCHING))
    anonymous = visitor(browser)
    browser.run("""for (let n = 0; n < 12; n++) analytics.track("Impression", { n })""")
    found = clicks.until(lambda found: len(found) == 13)
    assert names(found) == ["Impression"] * 12 + ["page"]
    assert [click.value["properties"]["n"] for click in found if "event" in click.value] == list(range(12))
    assert {click.value["anonymousId"] for click in found} == {anonymous}
    check_places(found)
    assert {click.door.source for click in found} == {"http/batch"}
    assert all(click.door.sent_at for click in found)
    assert 1 <= len(door.posts) <= 3
    assert {post.path for post in door.posts} == {"/v1/b"}
    # No SDK of the three says anything for a whole batch: each event carries its own context.
    assert {frozenset(post.sent) for post in door.posts} == {frozenset({"batch", "sentAt", "writeKey"})}


@pytest.mark.parametrize(
    ("form", "chosen"), [("snippet", options()), ("package", BATCHING)], ids=["standard", "batching"]
)
def test_what_is_refused_with_429_and_503_is_sent_again(browser, shop, door, clicks, form, chosen):
    door.answer_next(429, 503)
    browser.open(shop.page(form, door.url, chosen))
    (found,) = clicks.until(lambda found: len(found) == 1)
    assert found.value["anonymousId"] == visitor(browser)
    assert [post.status for post in door.posts] == [429, 503, 200]
    # A page reads Retry-After only where the answer exposes it; without it the SDK is back in 0.6 s at the latest.
    assert door.posts[1].at - door.posts[0].at >= RETRY_AFTER_SECONDS


def test_an_answer_that_never_arrives_makes_the_event_arrive_twice(browser, shop, door, clicks):
    door.answer_next(CUT)
    browser.open(shop.page("snippet", door.url, options()))
    found = clicks.until(lambda found: len(found) == 2)
    assert len(messages(found)) == 1
    assert len({click.partition for click in found}) == 1


def test_what_could_not_be_sent_until_the_page_closed_is_sent_by_the_next(browser, shop, door, clicks):
    page = shop.page("snippet", door.url, options())
    door.answer_next(*[503] * 1000)
    browser.open(page)
    anonymous = visitor(browser)
    browser.run("""analytics.track("Product Clicked", { product_id: "1" })""")
    wait_until(lambda: {post.sent["type"] for post in door.posts} == {"page", "track"})
    browser.open("data:,")
    refused = {post.sent["messageId"] for post in door.posts}
    door.recover()
    browser.open(page)
    found = clicks.until(lambda found: messages(found) > refused)
    assert {click.value["anonymousId"] for click in found} == {anonymous}
    assert {click.value["type"] for click in found} == {"page", "track"}


def test_a_batch_that_waits_is_sent_when_the_page_closes(browser, shop, door, clicks):
    browser.open(shop.page("package", door.url, options("batching", size=100, timeout=60_000)))
    visitor(browser)
    browser.run("""return Promise.all([1, 2, 3].map((n) => analytics.track("Impression", { n }))).then(() => null)""")
    assert door.posts == []
    browser.open("data:,")
    found = clicks.until(lambda found: len(found) == 4)
    assert names(found) == ["Impression", "Impression", "Impression", "page"]


def test_the_sdk_reports_its_own_figures_to_nobody(browser, shop, door, clicks):
    # By default it counts every call and tells Segment's host each 30 s; here it would each 20 ms.
    hasty = "(settings) => ({ ...settings, metrics: { ...settings.metrics, flushTimer: 20 } })"
    browser.open(shop.page("package", door.url, options(), update=hasty))
    clicks.until(lambda found: len(found) == 1)
    browser.run("return new Promise((resolve) => setTimeout(resolve, 200))")
    assert {one.path for one in door.posts} == {"/v1/p"}
    assert {one.path for one in door.exchanges} == {"/v1/projects/dev/settings", "/v1/p"}

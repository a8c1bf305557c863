"""The console's home page in Chromium: what is seen and clicked there arrives with the id of the logged decision."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from clients.webdriver import forget, png_size
from endpoints.door import make_popular
from headrace.project import open_project
from running import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.service("chromium")]

PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
DESKTOP = {"width": 1440, "height": 960, "deviceScaleFactor": 1, "mobile": False}


def resize(browser, metrics):
    """Gives the page another device."""
    browser._ask("POST", "/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics})


@pytest.fixture
def home(chromium, collector):
    """A browser that has never been to the console; the test fails if a page asks anybody but the two doors."""
    url = collector.urls["console"]
    with open_project(collector.folder) as project:
        project.registry.add(make_popular(10))
    chromium.open(f"{url}/favicon.ico")
    chromium.delete_cookie("headrace_visitor")
    chromium._ask("POST", "/se/log", {"type": "browser"})
    chromium.requested_urls()
    resize(chromium, DESKTOP)
    wait_until(lambda: chromium.open(url) or chromium.run("return document.querySelectorAll('.card').length"))
    yield chromium
    errors = [one["message"] for one in chromium._ask("POST", "/se/log", {"type": "browser"})]
    asked = {urlsplit(one).netloc for one in chromium.requested_urls() if one.startswith("http")}
    forget(chromium, "headrace_visitor")
    chromium._ask("POST", "/goog/cdp/execute", {"cmd": "Emulation.clearDeviceMetricsOverride", "params": {}})
    chromium.open("data:,")
    assert errors == []
    assert asked == {urlsplit(url).netloc, urlsplit(collector.url).netloc}


def test_what_is_seen_and_clicked_bears_the_id_of_the_logged_decision(home, collector, clicks):
    page = home.run(
        """
        const place = document.querySelector("[data-headrace-list]").dataset
        const posters = [...document.images].slice(0, 5)
        return Promise.all(posters.map((one) => one.decode())).then(() => ({
          recommendation: place.headraceRecommendation,
          visitor: headrace.visitor,
          items: [...document.querySelectorAll("[data-headrace-item]")].map((one) => one.dataset.headraceItem),
          posters: posters.map((one) => one.naturalHeight),
          wide: document.documentElement.scrollWidth,
        }))
        """
    )
    assert len(page["items"]) == 10
    assert all(page["posters"])
    assert page["wide"] <= 1440
    decision = next(
        one["value"]
        for one in collector.read("decisions")
        if one["value"].get("recommendation_id") == page["recommendation"]
    )
    assert (decision["visitor"], decision["items"]) == (page["visitor"], page["items"])
    home.run("return new Promise((go) => setTimeout(go, 1200))")
    home.run("document.querySelectorAll('.card img')[1].click()")
    wait_until(lambda: home.run("return location.pathname") == f"/watch/{page['items'][2]}")

    found = [
        click.value
        for click in clicks.until(lambda all_: "Video Playback Started" in [one.value.get("event") for one in all_])
        if click.value.get("properties", {}).get("recommendation_id") == page["recommendation"]
    ]
    assert {one["anonymousId"] for one in found} == {page["visitor"]}
    by_name = {one["event"]: one["properties"] for one in reversed(found)}
    assert by_name.keys() == {"Product List Viewed", "Product Clicked", "Video Playback Started"}
    viewed, clicked = by_name["Product List Viewed"], by_name["Product Clicked"]
    assert viewed["list_id"] == clicked["list_id"] == decision["list_id"]
    assert [one["product_id"] for one in viewed["products"]][:4] == page["items"][:4]
    assert [one["position"] for one in viewed["products"]][:4] == [1, 2, 3, 4]
    assert (clicked["product_id"], clicked["position"]) == (page["items"][2], 3)
    assert clicked["category"] == decision["categories"][2]
    assert by_name["Video Playback Started"]["content_asset_ids"] == [page["items"][2]]


def test_a_title_that_plays_sends_a_heartbeat_every_ten_seconds(home, clicks):
    hurry = "const slow = setInterval; setInterval = (act, wait) => slow(act, wait / 50)"
    added = {"cmd": "Page.addScriptToEvaluateOnNewDocument", "params": {"source": hurry}}
    number = home._ask("POST", "/goog/cdp/execute", added)["identifier"]
    recommendation = home.run("return document.querySelector('[data-headrace-list]').dataset.headraceRecommendation")
    home.run("document.querySelector('.hero').click()")
    wait_until(lambda: home.run("return (document.querySelector('time') || {}).textContent") > "0:21")
    home.run("document.querySelector('.player button').click()")
    removed = {"cmd": "Page.removeScriptToEvaluateOnNewDocument", "params": {"identifier": number}}
    home._ask("POST", "/goog/cdp/execute", removed)
    assert "Paused" in home.run("return document.getElementById('player').innerText")

    def played(found):
        once = {one.value["messageId"]: one.value for one in found if "Video" in one.value.get("event", "")}
        return sorted(once.values(), key=lambda one: one["timestamp"])

    found = played(clicks.until(lambda found: "Paused" in str([one["event"] for one in played(found)])))
    told = [(one["event"], one["properties"]["position"]) for one in found]
    assert told[:3] == [("Video Playback Started", 0), ("Video Content Playing", 10), ("Video Content Playing", 20)]
    assert told[-1][0] == "Video Playback Paused"
    assert {one["properties"]["recommendation_id"] for one in found} == {recommendation}
    assert len({one["properties"]["session_id"] for one in found}) == 1


def test_the_page_fits_a_phone(home, tmp_path):
    visitor = home.run("return headrace.visitor")
    resize(home, PHONE)
    home.reload()
    assert home.run("return document.documentElement.scrollWidth") == 390
    assert home.run("const row = document.querySelector('.cards'); return row.scrollWidth > row.clientWidth")
    picture = home.screenshot(tmp_path / "home-phone.png")
    assert png_size(picture.read_bytes()) == (780, 1688)
    href = home.run("return new URL(document.querySelector('.hero').href).pathname")
    home.run("document.querySelector('.hero').click()")
    wait_until(lambda: home.run("return location.pathname") == href)
    assert home.run("return document.documentElement.scrollWidth") == 390
    home.run("document.querySelector('.stage .button').click()")
    wait_until(lambda: home.run("return document.querySelectorAll('.card').length"))
    assert home.run("return headrace.visitor") == visitor

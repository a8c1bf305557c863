"""All pages of the console in Chromium: each link, form and key path, in light, dark and on a phone."""

from __future__ import annotations

import json
from urllib.parse import urljoin, urlsplit

import pytest

from clients.test_home import DESKTOP, PHONE, resize
from console.conftest import Shop
from console.stage import NAME, NASTY, make_stage
from console.test_page_reader import begin_trial, send, text_of
from console.test_pages import Page, get
from headrace.base.audit import check_audit
from headrace.console.frame import ASSETS, NAV, read_asset
from headrace.project import open_project
from running import running, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.service("chromium"), pytest.mark.service("node")]

MAX_SCRIPT_BYTES = 80_000
MAX_VIEW_BYTES = 150_000
TAB, ENTER = "\ue004", "\ue007"
SQL = "/tables?sql=SELECT+event%2C+count(*)+AS+n+FROM+events+GROUP+BY+1"
SHOWN = ["/live", "/tables", "/tables/events", SQL, "/tables?sql=SELECT+*+FROM+evnts", "/models", "/models/tastes",
         "/models/old-ranker", "/experiments", f"/experiments/{NAME}", "/lineage", f"/lineage?id={NAME}-1", "/verify",
         "/tables/nothing"]  # fmt: skip
"""A page of each kind."""

AXE = "return axe.run(document, {runOnly: RULES, resultTypes: ['violations']}).then((found) => found.violations)"
ALL_RULES = "['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']"


class Walker:
    """A browser on the console of one project."""

    def __init__(self, browser, url, axe):
        self.browser = browser
        self.url = url
        self.axe = axe

    def cdp(self, command, **params):
        return self.browser._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": params})

    def look(self, metrics, scheme):
        resize(self.browser, metrics)
        self.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def run(self, script, *arguments):
        return self.browser.run(script, *arguments)

    def go(self, path):
        """Opens a page, and waits for what comes after it."""
        self.browser.open(self.url + path)
        self.settle()

    def settle(self):
        wait_until(lambda: not self.run("return document.querySelectorAll('.wait').length"), seconds=30)

    def press(self, *keys):
        presses = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.browser._ask("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": presses}]})

    def focused(self):
        return self.run("return document.activeElement.textContent.trim() || document.activeElement.name")

    def press_until(self, text):
        """Presses Tab until what bears a text has the focus."""
        for _ in range(60):
            self.press(TAB)
            if self.focused() == text:
                return
        raise AssertionError(f"no Tab leads to {text!r}")

    def violations(self, rules=ALL_RULES):
        """Returns what axe finds serious or critical on the page."""
        found = self.run(self.axe + ";" + AXE.replace("RULES", rules))
        return [
            (one["id"], node["target"], node.get("failureSummary", "")[:300])
            for one in found
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"][:3]
        ]

    def errors(self):
        return [one["message"] for one in self.browser._ask("POST", "/se/log", {"type": "browser"})]

    def received(self):
        """Returns the bytes that came over the wire since the last call, by address."""
        entries = self.browser._ask("POST", "/se/log", {"type": "performance"})
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        urls = {one["params"]["requestId"]: one["params"]["request"]["url"]
                for one in messages if one["method"] == "Network.requestWillBeSent"}  # fmt: skip
        return {urls[one["params"]["requestId"]]: one["params"]["encodedDataLength"]
                for one in messages if one["method"] == "Network.loadingFinished"
                and one["params"]["requestId"] in urls}  # fmt: skip


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    """A console on a project that has something for every page."""
    shop = make_stage(tmp_path_factory)
    declared = (shop.folder / "project.py").read_text().replace("Page, Project", "Page, Pipeline, Project")
    nightly = 'pipelines=(Pipeline("nightly", every="1d", steps=(popular,)),))'
    (shop.folder / "project.py").write_text(
        declared.replace("experiments=(trial,))", f"experiments=(trial,), {nightly}")
    )
    with running(shop.folder, "collector", "endpoint", "console") as up:
        yield up


@pytest.fixture(scope="module")
def axe(node_modules):
    return (node_modules / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture
def walker(chromium, staged, axe):
    """A browser in front of the console; the test fails if a page asks anybody else or logs an error."""
    walker = Walker(chromium, staged.urls["console"], axe)
    chromium.open(f"{walker.url}/favicon.ico")
    walker.errors()
    chromium.requested_urls()
    walker.look(DESKTOP, "light")
    yield walker
    errors = [one for one in walker.errors() if "404 (Not Found)" not in one]
    asked = {urlsplit(one).netloc for one in chromium.requested_urls() if one.startswith("http")}
    walker.cdp("Emulation.clearDeviceMetricsOverride")
    walker.cdp("Emulation.setEmulatedMedia", features=[])
    chromium.open("data:,")
    assert errors == []
    assert asked <= {urlsplit(url).netloc for url in staged.urls.values()}


@pytest.mark.parametrize(("metrics", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["light", "dark phone"])
def test_no_page_is_hard_to_use_or_large(walker, metrics, scheme):
    walker.look(metrics, scheme)
    for path in SHOWN:
        walker.cdp("Network.clearBrowserCache")
        walker.received()
        walker.go(path)
        received = walker.received()
        assert 0 < sum(received.values()) <= MAX_VIEW_BYTES, (path, received)
        assert walker.violations() == [], path
        assert walker.run("return document.documentElement.scrollWidth") <= metrics["width"], path
        assert walker.run("return document.querySelectorAll('h1').length") == 1, path


def test_scripts_are_small_and_kept(walker):
    assert sum(len(read_asset(name).packed) for name in ASSETS if name.endswith(".js")) <= MAX_SCRIPT_BYTES
    walker.go("/lineage")
    walker.received()
    walker.go("/verify")
    assert [url for url, size in walker.received().items() if "/assets/" in url and size > 0] == []


def test_every_link_leads_somewhere(walker):
    waiting, been = [path for path, _ in NAV], {}
    while waiting:
        path = waiting.pop()
        answer = get(walker.url, path, headers={"hx-request": "true"})
        assert answer.status == 200, (path, answer.body[-900:])
        page = Page(answer)
        assert page.all("h1"), path
        for found in {urljoin(path, one["href"]).partition("#")[0] for one in page.all("href")}:
            parts = urlsplit(found)
            kind = been.setdefault((parts.path.split("/")[1], parts.path.count("/"), bool(parts.query)), set())
            # Of pages that differ by an id alone a few are enough.
            if found not in kind and len(kind) < 4 and parts.path.split("/")[1] not in ("assets", "favicon.ico"):
                kind.add(found)
                waiting.append(found)
    assert {place for place, *_ in been} >= {path[1:] for path, _ in NAV} | {"watch"}


def test_all_can_be_done_by_keys(walker):
    walker.go("/live")
    walker.press(TAB)
    assert walker.focused() == "Skip to the page"
    walker.press(ENTER)
    assert walker.run("return location.hash") == "#main"
    walker.press(TAB)
    assert walker.focused() == "Pause"
    walker.press(ENTER)
    assert walker.focused() == "Go on"
    walker.go("/live")
    walker.press_until("Tables")
    walker.press(ENTER)
    wait_until(lambda: walker.run("return location.pathname") == "/tables")
    walker.settle()
    walker.run("document.querySelector('textarea').focus(); document.querySelector('textarea').select()")
    walker.press(*"SELECT 1 AS one UNION ALL SELECT 2", TAB)
    assert walker.focused() == "Run"
    walker.press(ENTER)
    wait_until(lambda: "2 rows in" in walker.run("return document.body.innerText"))
    assert "sql=SELECT+1+AS+one" in walker.run("return location.search").replace("%20", "+")
    walker.press_until("Lineage")
    walker.press(ENTER)
    wait_until(lambda: walker.run("return location.pathname") == "/lineage")
    walker.settle()
    walker.press_until("id")
    walker.press(*f"{NAME}-1", ENTER)
    wait_until(lambda: "What came of it" in walker.run("return document.body.innerText"))


def test_sql_that_does_not_run_shows_the_place(walker):
    walker.go("/tables?sql=SELECT+*+FROM+evnts")
    assert "No table 'evnts'. Did you mean events?" in walker.run("return document.body.innerText")
    line, carets = walker.run("return document.querySelector('.problem').textContent").splitlines()
    assert carets.index("^^^^^") == line.index("evnts")
    walker.go("/tables?sql=DELETE+FROM+events")
    assert "This does not run" in walker.run("return document.body.innerText")


def test_live_shows_what_comes_in_while_it_comes(walker, staged):
    walker.go("/live")
    assert NASTY in walker.run("return document.querySelector('#live-alerts').innerText")
    events = [{"type": "track", "event": "x", "anonymousId": "ann", "messageId": f"live-{n}"} for n in range(5)]
    staged.post("/v1/batch", {"batch": events})
    counted = "return parseInt(document.querySelector('#live-figures').innerText.match(/([0-9,]+) acknowledged/)[1])"
    wait_until(lambda: walker.run(counted) >= 5)
    assert walker.run("return document.querySelector('#plot canvas').height") > 200


def test_an_operator_stops_a_trial_lets_a_page_go_back_and_runs_a_pipeline(walker, staged):
    def press(action, until):
        walker.run(f"document.querySelector('[action=\"{action}\"] button').click()")
        wait_until(lambda: until in walker.run("return document.body.innerText"))

    # What the other tests have sent and been shown must be in the lake before a verdict or a fit.
    Shop(staged.folder, is_new=False).run()
    begin_trial(staged.folder)
    walker.go(f"/experiments/{NAME}")
    press("/experiments/stop", "The verdict")
    assert f"{NAME}-2" in walker.run("return document.body.innerText")
    walker.go("/models")
    press("/models/roll-back", "its fallback")
    token = walker.run("return document.querySelector('[name=form_token]').value")
    with open_project(staged.folder) as project, project.runner.history.hold("nightly"):
        refused = send(walker.url, "POST", "/pipelines/run", form={"pipeline": "nightly", "form_token": token})
    assert (refused.status, "No run of 'nightly' has begun" in text_of(refused)) == (400, True)
    press("/pipelines/run", "run 1 running")
    wait_until(lambda: walker.go("/models") or "run 1 done" in walker.run("return document.body.innerText"))
    log = (staged.folder / ".headrace" / "audit.jsonl").read_text().splitlines()
    acts = [
        (one["what"], one["subject"], one["outcome"].partition(":")[0])
        for one in map(json.loads, log)
        if one["level"] == "admin"
    ]
    assert acts == [
        ("experiment stop", NAME, "begun"),
        ("experiment stop", NAME, "done"),
        ("model rollback", "home", "begun"),
        ("model rollback", "home", "done"),
        ("pipeline run", "nightly", "begun"),
        ("pipeline run", "nightly", "StopError"),
        ("pipeline run", "nightly", "begun"),
        ("pipeline run", "nightly", "begun"),
    ]
    assert check_audit(staged.folder / ".headrace").is_whole

"""Every route of the console, swept: none is open by oversight, however many pages there are."""

from __future__ import annotations

import re

import pytest

from console.gated import NAME, PAGE, build_console, gated
from headrace.console.frame import NAV
from headrace.console.guard import LEVELS, Guarded, GuardedApp

OPEN = {("GET", "/login"), ("POST", "/login"), ("POST", "/logout"), ("GET", "/favicon.ico")}
ASSET = re.compile(r"/assets/[a-z]+\.[0-9a-f]{12}\.(css|js)")


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    with gated(tmp_path_factory.mktemp("pages"), extra=f'hosts = ["{NAME}"]\n', build=build_console) as found:
        yield found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    with gated(tmp_path_factory.mktemp("alone"), people={}, build=build_console) as found:
        yield found


def test_every_route_states_who_may_use_it(door):
    assert isinstance(door.app, GuardedApp)
    assert isinstance(door.app.fallback, Guarded)
    assert [asked for asked, route in door.app.routes.items() if not isinstance(route, Guarded)] == []
    found = {asked for asked, route in door.app.routes.items() if route.level == "anybody"}
    assert {asked for asked in found if not ASSET.fullmatch(asked[1])} == OPEN


def _paths(door):
    bar = [("GET", path + tail) for path, _ in NAV for tail in ("", "/", "/x", "/x/y")]
    return {*door.app.routes, *bar, ("GET", "/watch/a"), ("GET", "/metrics"), ("GET", "/nowhere")} - OPEN


def test_nothing_is_found_open_without_a_login(door):
    paths = [asked for asked in _paths(door) if not ASSET.fullmatch(asked[1])]
    assert len(paths) > 20
    for method, path in paths:
        answer = door.ask(path, method)
        assert (answer.status, len(answer.body) < 300) == (401, True), (method, path)
        asked = door.ask(path, method, **PAGE)
        assert (asked.status, asked.body) == (303, ""), (method, path)
        assert asked.headers["location"].startswith("/login"), (method, path)


def test_a_level_is_refused_what_is_above_it(door):
    for name, level in (("vera", "viewer"), ("otto", "operator")):
        cookie = door.as_(name)
        token = door.token_of(cookie)
        for (method, path), route in door.app.routes.items():
            if LEVELS.index(route.level) > LEVELS.index(level):
                assert door.ask(path, method, cookie=cookie, x_form_token=token).status == 403, (name, path)


def test_nothing_is_changed_without_the_token_of_a_form(door, alone):
    cookie = door.as_("adam")
    for method, path in [asked for asked in door.app.routes if asked[0] != "GET"]:
        assert door.ask(path, method, cookie=cookie).status == 403, path
        assert door.ask(path, method, cookie=cookie, x_form_token="0" * 64).status == 403, path
        if (method, path) not in OPEN:
            assert alone.ask(path, method).status == 403, path


def test_the_login_page_asks_for_nothing_that_is_closed(door):
    page = door.ask("/login", **PAGE)
    assert page.status == 200
    assert "src=" not in page.body
    assert "@import" not in page.body
    assert door.ask("/favicon.ico").status == 200
    assert [asset for asset in re.findall(r'href="([^"]+)"', page.body) if door.ask(asset).status != 200] == []


def test_a_page_of_loopback_is_not_for_names_that_lead_there(alone):
    assert alone.ask("/live", **PAGE).status == 200
    assert alone.ask("/live", host="evil.example", **PAGE).status == 421
    assert alone.ask("/live/stream", host="evil.example").status == 421

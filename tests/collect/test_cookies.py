"""The cookie remembers the visitor's id, for browsers only, and never changes an event."""

from __future__ import annotations

from http.cookies import SimpleCookie
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.collect.cookies import NAME, CookieOptions, read_visitor, visitor_cookie
from running import project_toml, running

ORIGIN = {"origin": "https://shop.example"}


def cookie_of(answer):
    jar = SimpleCookie(answer.headers.get("set-cookie", ""))
    return jar.get(NAME)


def test_a_browser_gets_the_first_id_seen_and_nobody_else_does(door):
    event = {"anonymousId": "ann"}
    answer, _ = door.send("/v1/t", event, headers=ORIGIN)
    cookie = cookie_of(answer)
    assert (cookie.value, cookie["path"], cookie["max-age"]) == ("ann", "/", str(365 * 86400))
    assert (cookie["httponly"], cookie["samesite"], cookie["secure"], cookie["domain"]) == (True, "Lax", "", "")
    answer, _ = door.send("/v1/t", event)
    assert cookie_of(answer) is None


def test_a_batch_is_remembered_by_its_first_visitor(door):
    batch = {"batch": [{"userId": "u"}, 42, {"anonymousId": "ann"}, {"anonymousId": "bob"}]}
    answer, _ = door.send("/v1/b", batch, headers=ORIGIN)
    assert cookie_of(answer).value == "ann"


@pytest.mark.parametrize("event", [{"userId": "u"}, {"messageId": "m"}, {}, {"anonymousId": ""}, 42])
def test_without_a_visitor_nothing_is_remembered(door, event):
    answer, _ = door.send("/v1/t", event, headers=ORIGIN)
    assert (answer.status, cookie_of(answer)) == (200, None)


def test_the_cookie_is_set_once_and_never_rekeys_an_event(door):
    headers = {**ORIGIN, "cookie": f"a=1; {NAME}=ann; b=2"}
    answer, (click,) = door.send("/v1/t", {"anonymousId": "bob"}, headers=headers)
    assert (cookie_of(answer), click["key"], click["value"]) == (None, "bob", {"anonymousId": "bob"})
    answer, (click,) = door.send("/v1/t", {"userId": "u"}, headers=headers)
    assert (click["key"], click["value"]) == ("u", {"userId": "u"})
    answer, (click,) = door.send("/v1/t", {}, headers=headers)
    assert (click["key"], click["value"]) == (None, {})


def test_a_refused_request_sets_no_cookie(door):
    for body, key in ((b"{", "dev"), ({"anonymousId": "ann"}, "junk")):
        answer, _ = door.send("/v1/t", body, key=key, headers=ORIGIN)
        assert answer.status in (400, 401)
        assert cookie_of(answer) is None


def test_the_settings_answer_hands_the_id_back(door):
    for stored, visitor in (("ann", "ann"), ("%F0%9F%8C%8A%3B%20x", "🌊; x"), ("", None), ('"ann"', "ann")):
        answer = door.up.get("/v1/projects/dev/settings", headers={**ORIGIN, "cookie": f"{NAME}={stored}"})
        assert answer.json()["visitor"] == visitor
        assert answer.headers["cache-control"] == "private, no-store"


@pytest.mark.parametrize(
    "visitor",
    [
        "🌊 ünicode",
        "a; Path=/evil; Domain=x",
        "a\r\nSet-Cookie: b=c",
        "a\nb",
        "\x00\x7f",
        '"',
        "%41",
        "a,b=c",
        " ",
        "é" * 200,
    ],
)
def test_any_id_goes_into_the_cookie_and_comes_back_the_same(door, visitor):
    answer, (click,) = door.send("/v1/t", {"anonymousId": visitor}, headers=ORIGIN)
    assert click["key"] == visitor
    header = answer.headers["set-cookie"]
    assert header.isascii()
    stored = header.partition(";")[0].partition("=")[2]
    assert unquote(stored) == visitor
    assert header.partition(";")[2] == " Path=/; Max-Age=31536000; HttpOnly; SameSite=Lax"
    back = door.up.get("/v1/projects/dev/settings", headers={"cookie": f"x=1; {NAME}={stored}"})
    assert back.json()["visitor"] == visitor


def test_an_id_of_10_000_characters_is_filed_and_not_remembered(door):
    answer, (click,) = door.send("/v1/t", {"anonymousId": "x" * 10_000}, headers=ORIGIN)
    assert (answer.status, click["key"], cookie_of(answer)) == (200, "x" * 10_000, None)


def test_half_a_surrogate_pair_in_an_id_is_no_error_of_ours(door):
    answer, (click,) = door.send("/v1/t", b'{"anonymousId":"a\\ud800"}', headers=ORIGIN)
    assert (answer.status, click["key"]) == (200, "a\N{REPLACEMENT CHARACTER}")


@pytest.mark.parametrize("header", ["", ";", "=", f"{NAME}", f"{NAME}=", f"x{NAME}=ann", f"{NAME}x=ann", ";;=;\xff"])
def test_a_cookie_header_without_our_cookie_is_nobody(header):
    assert read_visitor(header) == ""


@given(st.text(max_size=200))
def test_any_id_survives_the_cookie(visitor):
    cookie = visitor_cookie(visitor, CookieOptions(), secure=True).decode("ascii")
    assert read_visitor(cookie.partition(";")[0]) == visitor
    assert cookie.count(";") == 5


def test_the_cookies_options_and_a_trusted_proxy(tmp_path):
    toml = project_toml(cookie_days=7, cookie_domain="shop.example", cookie_same_site="None", trust_proxy=True)
    with running(tmp_path, toml=toml) as up:
        event = {"anonymousId": "ann"}
        proxied = {**ORIGIN, "x-forwarded-proto": "https", "x-forwarded-for": "10.9.9.9, 203.0.113.9"}
        cookie = cookie_of(up.post("/v1/t", event, headers=proxied))
        assert (cookie["max-age"], cookie["domain"], cookie["samesite"], cookie["secure"]) == (
            str(7 * 86400), "shop.example", "None", True,
        )  # fmt: skip
        assert not cookie_of(up.post("/v1/t", event, headers=ORIGIN))["secure"]
        settings = up.get("/v1/projects/dev/settings", headers=proxied).json()
        assert settings["integrations"]["Segment.io"]["protocol"] == "https"
        addresses = sorted(
            click["headers"]["door"].partition(b'"address":"')[2].partition(b'"')[0] for click in up.read()
        )
        # The last hop is the one that the proxy saw; what stands before it anybody could have written.
        assert addresses == [b"127.0.0.1", b"203.0.113.9"]


def test_nobody_vouches_for_a_proxy_that_is_not_trusted(door):
    proxied = {**ORIGIN, "x-forwarded-proto": "https", "x-forwarded-for": "203.0.113.9"}
    answer, (click,) = door.send("/v1/t", {"anonymousId": "ann"}, headers=proxied)
    assert not cookie_of(answer)["secure"]
    assert click["door"].address == "127.0.0.1"

"""The console's guard: who is let in, as what, from where, and what of all the other ways in."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import sqlite3
import stat
import threading
from contextlib import closing

import pytest

from console.gated import NAME, PAGE, PASSWORD, PEOPLE, ROUTES, gated
from headrace.base.audit import check_audit
from headrace.base.errors import CallError, RequestError
from headrace.base.http import App, Request
from headrace.console.guard import IDLE_SECONDS, LEVELS, audited, caller_of, guard, local_path, needs
from headrace.console.login import MAX_PASSWORD, Throttle
from headrace.console.password import UNKNOWN, hash_password, is_password
from headrace.console.users import Users
from headrace.project import open_project
from running import call, project_toml

OPEN = f'hosts = ["{NAME}"]\n'
HOUR_US = 3_600_000_000


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    """A console that a proxy passes on; no test of it fails a login but those of names that are their own."""
    with gated(tmp_path_factory.mktemp("open"), extra=OPEN) as found:
        yield found


@pytest.fixture(scope="module")
def cookies(door):
    return {name: door.as_(name) for name in PEOPLE}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A console on loopback, which needs no login."""
    with gated(tmp_path_factory.mktemp("alone"), people={}) as found:
        yield found


@pytest.fixture
def fresh(tmp_path):
    """A console whose users and sessions a test may change."""
    with gated(tmp_path, extra=OPEN) as found:
        yield found


# Levels.


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"])
def test_nothing_is_open_to_somebody_who_has_not_logged_in(door, method):
    for path in ("/", "/ticks", "/act", "/admin", "/unstated", "/metrics", "/nowhere", "/logout/", "/login/"):
        answer = door.ask(path, method)
        assert answer.status in (401, 403), (method, path)
        page = door.ask(path, method, **PAGE)
        assert page.status in (303, 403), (method, path)
        assert page.headers.get("location", "/login").startswith("/login")


@pytest.mark.parametrize(("name", "level"), PEOPLE.items())
def test_a_level_may_do_what_those_below_it_may(door, cookies, name, level):
    cookie, rank = cookies[name], LEVELS.index(level)
    assert json.loads(door.ask("/who", cookie=cookie).body) == {"name": name, "level": level, "address": "127.0.0.1"}
    token = door.token_of(cookie)
    assert door.ask("/metrics", cookie=cookie).status == 200
    assert door.post("/act", cookie=cookie, form_token=token).status == (200 if rank >= 2 else 403)
    assert door.ask("/admin", cookie=cookie).status == (200 if rank >= 3 else 403)
    assert door.ask("/nowhere", cookie=cookie).status == 404


def test_a_route_without_a_level_is_refused_to_everybody(door, cookies, alone):
    assert door.ask("/unstated", cookie=cookies["adam"]).status == 403
    assert alone.ask("/unstated").status == 403


def test_a_route_serves_nobody_who_came_past_the_guard():
    request = Request({"type": "http", "path": "/", "headers": []}, b"")
    with pytest.raises(RequestError, match="no guard") as caught:
        asyncio.run(ROUTES["GET", "/"](request))
    assert caught.value.status == 403
    with pytest.raises(RequestError, match="no guard"):
        caller_of(request)


def test_a_level_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match="no level 'viewr', known: anybody, viewer"):
        needs("viewr", ROUTES["GET", "/"])


@pytest.mark.parametrize(
    "path",
    [
        "//login", "/login/", "/LOGIN", "/login/../admin", "/./admin", "//admin", "/admin/", "/Admin", "/%61dmin",
        "/admin%2f", "/admin%00", "/login%3f", "/login;x", "/%2e%2e/admin", "/tables/../admin", "/admin?login",
        "/live/", "/ready/../admin", "/live%2f..%2fadmin", "http://x/admin", "*",
    ],
)  # fmt: skip
def test_no_other_spelling_of_a_path_gets_past(door, cookies, path):
    assert door.ask(path).status in (400, 401), path
    assert door.ask(path, cookie=cookies["vera"]).status in (400, 403, 404), path
    for header in ("x_http_method_override", "x_original_url", "x_rewrite_url"):
        assert door.ask("/login", "POST", **{header: "/admin"}).status == 403


def test_health_needs_no_login_and_tells_nothing(door):
    assert door.ask("/live", host="anything").body == '{"live":true}'
    assert door.ask("/ready").status == 200


# Names of the console, and pages of others.


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:7072", 200), ("LocalHost", 200), ("localhost.", 200), ("127.0.0.1", 200), ("127.9.9.9:1", 200),
        ("[::1]:7072", 200), ("[::1]", 200), ("evil.example", 421), ("localhost.evil.example", 421), ("0.0.0.0", 421),
        ("127.0.0.1.evil.example", 421), ("evil.example:7072", 421), ("localhost:7072:1", 421), ("a@localhost", 421),
        ("localhost/", 421), ("localhost#", 421), ("[::1", 421), ("::1", 421), ("192.168.0.9", 421), ("[::2]", 421),
        ("localhost:99999", 421), ("localhost:x", 421), ("", 421), ("\u0661", 421), (["localhost", "localhost"], 421),
        (["evil.example", "localhost"], 421), ("localhost, evil.example", 421), ("2130706433", 421),
    ],
)  # fmt: skip
def test_a_name_that_is_not_the_consoles_is_refused(alone, host, status):
    host = host.encode() if isinstance(host, str) else host
    answer = alone.ask("/", host=host)
    assert answer.status in (status, 400), host
    assert alone.ask("/nowhere", host=host, **PAGE).status in ({200: 404}.get(status, status), 400)


def test_the_names_of_the_settings_are_the_consoles_too(door, cookies):
    for host in (NAME, NAME.upper(), f"{NAME}:443", f"{NAME}."):
        assert door.ask("/", host=host, cookie=cookies["vera"]).status == 200
    refused = door.ask("/", host=f"x.{NAME}", **PAGE)
    assert refused.status == 421
    assert "is not called &#x27;x.console.example&#x27;" in refused.body
    assert "[console] hosts" in refused.body


@pytest.mark.parametrize(
    ("host", "own", "others"),
    [
        ("0.0.0.0", ["192.0.2.7:7072", "[2001:db8::7]", "localhost"], ["evil.example", "shop"]),
        ("::", ["192.0.2.7", "[::1]"], ["evil.example"]),
        ("192.0.2.7", ["192.0.2.7:7072"], ["192.0.2.8", "localhost", "127.0.0.1"]),
        ("shop.internal", ["shop.internal", "SHOP.internal."], ["localhost", "internal"]),
    ],
)
def test_an_address_listened_at_is_a_name_of_the_console(tmp_path, host, own, others):
    with gated(tmp_path, extra=f'host = "{host}"\n'.replace("port", "port"), people={"vera": "viewer"}) as door:
        assert [door.ask("/", host=one).status for one in own] == [401] * len(own)
        assert [door.ask("/", host=one).status for one in others] == [421] * len(others)


def test_a_change_comes_from_our_own_page_alone(alone):
    own = f"http://127.0.0.1:{alone.port}"
    token = alone.ask("/").body

    def post(token=token, **headers):
        return alone.post("/act", form_token=token, headers=headers.items()).status

    assert post() == post(origin=own) == post(origin=own, **{"sec-fetch-site": "same-origin"}) == 200
    for origin in ("null", "http://evil.example", f"https://127.0.0.1:{alone.port}", "http://127.0.0.1", own + ".evil"):
        assert post(origin=origin) == 403, origin
    for site in ("cross-site", "same-site", "?"):
        assert post(**{"sec-fetch-site": site}) == 403, site
    for wrong in ("", "0", token[:-1], token.upper() + "x", "\udcff", "ü"):
        assert post(wrong) == 403, wrong
    assert alone.ask("/act", "POST", x_form_token=token).status == 200, "as htmx sends it"
    assert alone.ask("/act", "POST", body=b"form_token=" + token.encode(), content_type="text/plain").status == 403
    assert alone.ask("/act", "POST", body=b"{}", content_type="application/json").status == 403
    assert alone.ask(f"/act?form_token={token}", "POST").status == 403


def test_other_sites_may_lead_here_and_nothing_else(alone):
    for site in ("cross-site", "same-site"):
        led = {"sec_fetch_site": site, "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
        assert alone.ask("/", **led).status == 200
        for name, value in (("mode", "no-cors"), ("mode", "cors"), ("dest", "iframe"), ("dest", "image"), ("dest", "")):
            assert alone.ask("/", **(led | {f"sec_fetch_{name}": value})).status == 403
        assert alone.ask("/", "POST", **led).status == 403
    own = {"sec_fetch_site": "same-origin", "sec_fetch_mode": "cors", "sec_fetch_dest": "empty"}
    assert alone.ask("/", **own).status == alone.ask("/", sec_fetch_site="none").status == 200


def test_the_token_of_a_form_is_that_of_one_session(door, cookies):
    token = door.token_of(cookies["otto"])
    assert door.post("/act", cookie=cookies["adam"], form_token=token).status == 403
    assert door.post("/act", cookie=door.as_("otto"), form_token=token).status == 403
    assert door.post("/act", cookie=cookies["otto"], form_token=door.ask("/login").form_token).status == 403
    assert door.post("/act", cookie=cookies["otto"], form_token=token).status == 200


def test_a_proxy_before_a_console_without_login_is_refused(alone):
    for name in ("x_forwarded_for", "x_forwarded_host", "x_forwarded_proto", "forwarded", "x_real_ip"):
        answer = alone.ask("/", **{name: "192.0.2.7"})
        assert (answer.status, "[console] hosts" in answer.body) == (403, True)


def test_a_proxy_on_this_machine_says_whom_it_passes_on(door, cookies):
    passed = {"x_forwarded_for": "6.6.6.6, 192.0.2.7", "cookie": cookies["vera"]}
    assert json.loads(door.ask("/who", **passed).body)["address"] == "192.0.2.7"
    assert json.loads(door.ask("/who", x_forwarded_for="<script>").body)["address"] == "127.0.0.1"


def test_every_answer_carries_the_headers_of_a_guarded_page(door, cookies):
    for answer in (door.ask("/", **PAGE), door.ask("/", cookie=cookies["vera"]), door.ask("/login"), door.ask("/act")):
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "private, no-store"
        assert {"permissions-policy", "referrer-policy", "cross-origin-opener-policy"} <= set(answer.headers)


def test_what_goes_wrong_is_a_page_to_somebody_who_reads_pages(door, cookies):
    for path, title in (("/nowhere/<b>", "Nothing here."), ("/unstated", "Refused"), ("/admin", "Refused")):
        page = door.ask(path, cookie=cookies["vera"], **PAGE)
        assert title in page.body
        assert "<b>" not in page.body
        assert page.status in (403, 404)


# Opening the door.


@pytest.mark.parametrize(
    ("extra", "told"),
    [(OPEN, r"console.hosts = \['console.example'\]"), ('host = "0.0.0.0"\n', "console.host = '0.0.0.0'")],
)
def test_a_door_for_others_does_not_open_while_nobody_may_log_in(tmp_path, extra, told):
    (tmp_path / "headrace.toml").write_text(project_toml(extra=f"[console]\nport = 0\n{extra}"))
    wanted = told + r" is open to others while nobody may log in. headrace key create NAME --console admin"
    with open_project(tmp_path) as project, pytest.raises(CallError, match=wanted):
        guard(project, App({}))


def test_up_says_that_nobody_may_log_in(tmp_path):
    (tmp_path / "project.py").write_text('from headrace import Project\nproject = Project("shop")\n')
    (tmp_path / "headrace.toml").write_text(project_toml(extra=f"[console]\nport = 0\n{OPEN}"))
    code, _, error = call("up", "console", "--project", tmp_path)
    assert (code, "headrace key create NAME --console admin" in error) == (2, True)


def test_loopback_by_any_name_needs_no_login(tmp_path):
    with gated(tmp_path, extra='host = "localhost"\nhosts = ["127.0.0.1"]\n', people={}) as alone:
        assert json.loads(alone.ask("/who").body)["level"] == "admin"
        assert alone.ask("/login").status == 404


# The login.


def test_the_login_leads_to_the_page_that_was_asked_for(door):
    asked = door.ask("/tables/a%2Fb?of=%25x&y=%C3%BC", **PAGE)
    assert asked.headers["location"].startswith("/login?next=/tables/a%252Fb%3Fof%3D%2525x")
    form = door.ask(asked.headers["location"])
    assert 'value="/tables/a%2Fb?of=%25x&amp;y=' in form.body
    answer = door.log_in("vera", next="/tables/a%2Fb?of=%25x")
    assert (answer.status, answer.headers["location"]) == (303, "/tables/a%2Fb?of=%25x")
    assert door.ask("/login?next=/tables", cookie=answer.cookie).headers["location"] == "/tables"
    assert door.ask("/", hx_request="true", accept="text/html").headers["hx-redirect"] == "/login"


@pytest.mark.parametrize(
    "text",
    [
        "https://evil.example", "//evil.example", "/\\evil.example", "\\\\evil.example", "/\t/evil.example",
        "/a\r\nx: y", "javascript:alert(1)", "", "evil.example", "///evil.example", " //evil.example", "/\x00",
        "/a\u2028b", "/\udcff",
    ],
)  # fmt: skip
def test_nobody_is_led_elsewhere(text):
    assert local_path(text) == "/"


WRONG = [
    ("vera", "wrong"), ("vera", ""), ("", ""), ("", PASSWORD), ("VERA", PASSWORD), ("vera ", PASSWORD),
    ("vera\x00", PASSWORD), ("vera' or 1=1 --", PASSWORD), ("ü" * 50, "ü"), ("\udcff", "\udcff"),
    ("otto", PASSWORD + "\x00"), ("otto", PASSWORD * 5_000), ("v" * 20_000, PASSWORD), ("<b>", "<b>"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_whatever_is_wrong_is_told_in_the_same_words(door, number):
    answer = door.log_in(*WRONG[number], headers=(("x-forwarded-for", f"192.0.2.{number}"),))
    assert answer.status == 401
    assert "The name or the password is wrong." in answer.body
    assert "set-cookie" not in answer.headers
    assert "<b>" not in answer.body


def test_a_form_of_another_browser_logs_nobody_in(door):
    form = door.ask("/login")
    fields = {"name": "vera", "password": PASSWORD, "form_token": form.form_token}
    other = door.ask("/login").cookie
    headers = (("accept", "text/html"),)
    refused = [
        door.post("/login", cookie=other, **fields, headers=headers),
        door.post("/login", **fields, headers=headers),
        door.post("/login", cookie=form.cookie, **(fields | {"form_token": ""}), headers=headers),
        door.post("/login", cookie=form.cookie, **fields, headers=(*headers, ("origin", "https://evil.example"))),
    ]
    assert [one.status for one in refused] == [403] * 4
    assert "Load its page again" in refused[0].body
    assert door.post("/login", cookie=form.cookie, **fields).status == 303


def test_a_login_gives_a_token_that_nobody_knew_before(door):
    form = door.ask("/login")
    planted = form.cookie
    fields = {"name": "vera", "password": PASSWORD, "form_token": form.form_token}
    answer = door.post("/login", cookie=planted, **fields)
    assert answer.cookie != planted
    assert door.ask("/", cookie=planted).status == 401
    assert door.ask("/", cookie=answer.cookie).status == 200
    assert door.log_in("vera").cookie != answer.cookie


def test_the_cookie_is_for_browsers_pages_alone_and_under_tls_for_tls_alone(door):
    plain = door.log_in("vera").headers["set-cookie"]
    assert plain.partition(";")[2] == " Path=/; HttpOnly; SameSite=Lax"
    secure = door.log_in("vera", headers=(("x-forwarded-proto", "https"),)).headers["set-cookie"]
    assert secure.startswith("__Host-headrace_console=")
    assert secure.partition(";")[2] == " Path=/; HttpOnly; SameSite=Lax; Secure"
    token = secure.partition(";")[0].partition("=")[2]
    assert door.ask("/", cookie=f"headrace_console={token}", x_forwarded_proto="https").status == 401


@pytest.mark.parametrize("forged", ["", "x", "0" * 43, "0" * 5_000, "../..", "\xff", "null", "' or 1=1"])
def test_a_forged_cookie_is_nobody(door, forged):
    assert door.ask("/", cookie=f"headrace_console={forged}").status == 401
    with closing(sqlite3.connect(door.folder / ".headrace" / "console.db")) as database:
        ((kept,),) = database.execute("select hash from sessions limit 1").fetchall()
    # Whoever reads the file has no session by it.
    assert door.ask("/", cookie=f"headrace_console={kept.hex()}").status == 401


def test_a_logout_ends_the_session_and_no_other(door):
    one, other = door.as_("vera"), door.as_("vera")
    assert door.post("/logout", cookie=one).status == 403
    answer = door.post("/logout", cookie=one, form_token=door.token_of(one))
    assert (answer.status, answer.headers["location"]) == (303, "/login")
    assert answer.headers["set-cookie"].startswith("headrace_console=; ")
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert (door.ask("/", cookie=one).status, door.ask("/", cookie=other).status) == (401, 200)


# Sessions.


def test_a_session_ends_when_it_is_unused_and_when_it_is_old(fresh):
    used, unused = fresh.as_("vera"), fresh.as_("vera")
    hours = 0
    while fresh.ask("/", cookie=used).status == 200:
        fresh.step_us += HOUR_US
        hours += 1
    assert hours == 12
    assert fresh.ask("/", cookie=unused).status == 401
    again = fresh.as_("vera")
    fresh.step_us += IDLE_SECONDS * 1_000_000
    assert fresh.ask("/", cookie=again).status == 401
    fresh.step_us = -HOUR_US
    assert fresh.ask("/", cookie=used).status == 401, "a clock that is set back revives nothing"


def test_a_disk_on_which_no_use_can_be_noted_closes_no_page(fresh, monkeypatch):
    cookie = fresh.as_("vera")
    fresh.step_us = 2 * 60_000_000
    monkeypatch.setattr(fresh.users, "_path", fresh.folder / "gone" / "console.db")
    assert fresh.ask("/", cookie=cookie).status == 200


def test_a_session_survives_a_new_process_and_a_user_taken_away_does_not(fresh):
    vera, otto = fresh.as_("vera"), fresh.as_("otto")
    token = fresh.token_of(vera)
    with open_project(fresh.folder) as project:
        other = guard(project, fresh.app).gate
        assert other.make_form_token(b"x") == fresh.app.gate.make_form_token(b"x")
        assert other.find_session(other.users._ask("select hash from sessions where name = 'vera'")[0][0])
        other.users.close()
    assert call("key", "revoke", "vera", "--project", fresh.folder)[0] == 0
    assert (fresh.ask("/", cookie=vera).status, fresh.ask("/", cookie=otto).status) == (401, 200)
    assert fresh.log_in("vera").status == 401
    code, _, error = call(
        "key", "create", "vera", "--console", "admin", "--password-stdin", "--project", fresh.folder, stdin=PASSWORD
    )
    assert (code, error) == (0, "")
    assert fresh.ask("/", cookie=vera).status == 401, "a name that is given again brings no session back"
    again = fresh.as_("vera")
    assert (fresh.ask("/admin", cookie=again).status, fresh.token_of(again) == token) == (200, False)


def test_a_file_of_users_that_cannot_be_read_closes_this_door_alone(tmp_path):
    (tmp_path / "project.py").write_text('from headrace import Project\nproject = Project("shop")\n')
    (tmp_path / "headrace.toml").write_text(project_toml(extra=f"[console]\nport = 0\n{OPEN}"))
    (tmp_path / ".headrace").mkdir()
    (tmp_path / ".headrace" / "console.db").write_bytes(b"no database" * 100)
    # A CallError is what a door may have wrong without closing those beside it.
    with open_project(tmp_path) as project, pytest.raises(CallError, match=r"cannot be read: .*headrace key create"):
        guard(project, App({}))


def test_a_login_on_the_way_while_its_user_is_taken_away_opens_nothing(tmp_path):
    with closing(Users(tmp_path)) as users:
        users.open_session(b"hash", "nobody", password="kept", now_us=1, since_us=0)
        assert users._ask("select count(*) from sessions") == [(0,)]


def test_a_user_has_few_sessions_and_old_ones_are_forgotten(fresh):
    fresh.as_("vera")
    user, kept = fresh.users.find("vera")
    for number in range(30):
        fresh.users.open_session(bytes([number]), user.name, password=kept, now_us=10**15 + number, since_us=0)
    assert fresh.users._ask("select count(*) from sessions") == [(20,)]
    fresh.users.open_session(b"new", user.name, password=kept, now_us=10**15 + 99, since_us=10**15 + 50)
    assert fresh.users._ask("select count(*) from sessions where made_us < 1000000000000050") == [(0,)]


def test_a_stream_ends_with_its_session(fresh):
    cookie = fresh.as_("vera")
    connection = http.client.HTTPConnection("127.0.0.1", fresh.port, timeout=10)
    with closing(connection):
        connection.request("GET", "/ticks", headers={"cookie": cookie})
        stream = connection.getresponse()
        assert (stream.status, stream.readline()) == (200, b"tick\n")
        fresh.step_us = 13 * HOUR_US
        while stream.readline():
            pass
    assert fresh.ask("/ticks", cookie=cookie).status == 401


def test_only_its_owner_may_read_what_is_kept_of_users(fresh):
    fresh.log_in("vera")
    state = fresh.folder / ".headrace"
    files = [state / name for name in ("console.db", "console.db-wal", "console.db-shm", "audit.jsonl", "audit.head")]
    assert {stat.S_IMODE(one.stat().st_mode) for one in files} == {0o600}
    assert PASSWORD.encode() not in b"".join(one.read_bytes() for one in files)


# Guesses.


def test_guesses_must_wait_longer_and_longer(fresh):
    guesses = [fresh.log_in("nobody", "wrong") for _ in range(6)]
    assert [one.status for one in guesses] == [401] * 5 + [429]
    assert guesses[5].headers["retry-after"] == "1"
    assert "Too many attempts. The next one counts in 1 s." in guesses[5].body
    # The right password must wait too, else the answer would tell that it is right.
    assert fresh.log_in("vera").status == 429
    assert fresh.log_in("vera", headers=(("x-forwarded-for", "192.0.2.7"),)).status == 303


def test_a_name_is_guessed_slowly_from_wherever(fresh):
    answers = [
        fresh.log_in("vera", "wrong", headers=(("x-forwarded-for", f"192.0.2.{number}"),)).status
        for number in range(12)
    ]
    assert answers == [401] * 10 + [429] * 2


def test_guesses_at_once_count_before_any_is_judged(fresh):
    form = fresh.ask("/login")
    fields = {"name": "vera", "password": "wrong", "form_token": form.form_token}
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(fresh.post("/login", cookie=form.cookie, **fields).status))
        for _ in range(9)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert answers.count(401) == 5
    assert answers.count(429) == 4


def test_waits_grow_to_a_bound_and_are_forgotten():
    now = [0.0]
    throttle = Throttle(free=3, longest_seconds=60.0, now=lambda: now[0])
    waits = []
    for _ in range(12):
        now[0] += (wait := throttle.wait_seconds("vera"))
        waits.append(wait)
        throttle.note("vera")
    assert waits == [0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    now[0] += 121
    assert throttle.wait_seconds("vera") == 0
    throttle.note("vera")
    assert throttle.wait_seconds("vera") == 0
    throttle.note("anna")
    throttle.forgive("anna")
    assert throttle._find("anna")[0] == 0


def test_what_is_remembered_of_guesses_is_bounded():
    throttle = Throttle(free=1, longest_seconds=60.0, now=lambda: 0.0, num_places=64)
    for number in range(5_000):
        throttle.note(f"name-{number}")
    assert len(throttle._places) == 64


def test_a_login_stops_nobody_else(fresh):
    form = fresh.ask("/login")
    fields = {"name": "vera", "password": PASSWORD, "form_token": form.form_token}
    done = []
    thread = threading.Thread(target=lambda: done.append(fresh.post("/login", cookie=form.cookie, **fields).status))
    thread.start()
    answered = 0
    while thread.is_alive():
        assert fresh.ask("/live").status == 200
        answered += 1
    thread.join()
    assert done == [303]
    assert answered > 3


def test_a_name_that_nobody_has_costs_as_much():
    kept = hash_password(PASSWORD)
    assert kept.rpartition("$")[0].rpartition("$")[0] == UNKNOWN.rpartition("$")[0].rpartition("$")[0]
    assert (is_password(PASSWORD, kept), is_password(PASSWORD, UNKNOWN), is_password("", kept)) == (True, False, False)


# What is written down.


def test_what_callers_change_stands_in_the_audit_log(fresh):
    otto = fresh.log_in("otto").cookie
    fresh.post("/act", cookie=otto, form_token=fresh.token_of(otto))
    fresh.post("/act", cookie=otto)
    fresh.post("/logout", cookie=otto, form_token=fresh.token_of(otto))
    text = (fresh.folder / ".headrace" / "audit.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(one["who"], one["level"], one["what"], one["subject"], one["outcome"]) for one in lines] == [
        ("otto", "operator", "login", "", "begun"),
        ("otto", "operator", "login", "", "done"),
        ("otto", "operator", "act", "/act", "begun"),
        ("otto", "operator", "act", "/act", "acted"),
        ("otto", "operator", "logout", "", "begun"),
        ("otto", "operator", "logout", "", "done"),
    ]
    assert {one["address"] for one in lines} == {"127.0.0.1"}
    assert check_audit(fresh.folder / ".headrace").is_whole
    assert PASSWORD not in text


def test_an_act_that_fails_says_so_in_the_audit_log(alone):
    caller = {}

    async def keep(request):
        caller["request"] = request
        raise RequestError(409, "kept")

    alone.app.routes["GET", "/keep"] = needs("viewer", keep)
    assert alone.ask("/keep").status == 409

    async def act():
        async with audited(caller["request"], "act", subject="home"):
            raise RequestError(409, "it serves already")

    with contextlib.suppress(RequestError):
        asyncio.run(act())
    last = json.loads((alone.folder / ".headrace" / "audit.jsonl").read_text().splitlines()[-1])
    assert (last["level"], last["subject"], last["outcome"]) == ("admin", "home", "RequestError: it serves already")


# Commands.


@pytest.fixture
def shop_folder(tmp_path):
    (tmp_path / "project.py").write_text('from headrace import Project\nproject = Project("shop")\n')
    (tmp_path / "headrace.toml").write_text(project_toml())
    return tmp_path


def _key(folder, *words, stdin=""):
    return call("key", *words, "--project", folder, stdin=stdin)


def test_users_are_made_listed_and_taken_away(shop_folder):
    created = _key(shop_folder, "create", "ann", "--console", "viewer", "--password-stdin", stdin=PASSWORD + "\n")
    assert created == (0, "ann may log in to the console as viewer\n", "")
    code, out, _ = _key(shop_folder, "list", "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert [(one["name"], one["for"], one["level"]) for one in found] == [
        ("ann", "console", "viewer"),
        ("dev", "events", None),
    ]
    assert "ann   console  viewer" in _key(shop_folder, "list")[1]
    again = _key(shop_folder, "create", "ann", "--console", "admin", "--password-stdin", stdin=PASSWORD)
    assert (again[0], "headrace key revoke ann" in again[2]) == (2, True)
    assert _key(shop_folder, "revoke", "ann")[:2] == (0, "ann may no longer log in, and is logged out\n")
    assert "no user 'ann'" in _key(shop_folder, "revoke", "ann")[2]
    assert r"no user '\udcff'" in _key(shop_folder, "revoke", "\udcff")[2]
    assert code == 0


@pytest.mark.parametrize(
    ("name", "password", "told"),
    [
        ("ann", "short", "the password has 5 characters, it must have 12 to 256"),
        ("ann", "x" * (MAX_PASSWORD + 1), "the password has 257 characters"),
        ("ann", "", "the password has 0 characters"),
        ("ann", PASSWORD + "\udcff", "the password is no UTF-8"),
        ("-", PASSWORD, "user '-': a name has 1 to 64 letters"),
        ("a b", PASSWORD, "user 'a b'"),
        ("a" * 65, PASSWORD, "a name has 1 to 64"),
    ],
)
def test_a_user_that_cannot_be_is_refused(shop_folder, name, password, told):
    code, _, error = _key(shop_folder, "create", name, "--console", "viewer", "--password-stdin", stdin=password)
    assert (code, told in error) == (2, True), error


def test_a_password_is_asked_for_on_a_terminal_alone(shop_folder):
    code, _, error = _key(shop_folder, "create", "ann", "--console", "viewer", stdin=PASSWORD)
    assert (code, "Give it as a line with --password-stdin" in error) == (2, True)


def test_commands_that_change_something_stand_in_the_audit_log(shop_folder):
    assert call("topic", "create", "news", "--partitions", "2", "--project", shop_folder)[0] == 0
    assert call("topic", "create", "news", "--project", shop_folder)[0] == 2
    assert call("topic", "list", "--project", shop_folder)[0] == 0
    assert call("table", "failed", "--project", shop_folder)[0] == 0
    lines = [json.loads(line) for line in (shop_folder / ".headrace" / "audit.jsonl").read_text().splitlines()]
    assert [(one["what"], one["subject"], one["level"]) for one in lines] == [("topic create", "news", "shell")] * 4
    assert lines[0]["given"] == {"partitions": "2"}
    assert [one["outcome"] for one in lines][:3] == ["begun", "done", "begun"]
    assert lines[3]["outcome"].startswith("CallError: ")


def test_status_tells_whether_the_audit_log_is_whole(shop_folder):
    assert "audit      0 lines, whole\n" in call("status", "--project", shop_folder)[1]
    call("topic", "create", "news", "--project", shop_folder)
    log = shop_folder / ".headrace" / "audit.jsonl"
    code, out, _ = call("status", "--json", "--project", shop_folder)
    (found,) = [one for one in map(json.loads, out.splitlines()) if one["kind"] == "audit"]
    assert (code, found["lines"], found["whole"], found["damages"]) == (0, 2, True, [])
    log.write_text(log.read_text().replace("news", "olds", 1))
    code, out, _ = call("status", "--project", shop_folder)
    assert code == 1
    assert "audit      audit.jsonl is not whole: line 1, the act 1, was changed\n" in out
    log.with_name("audit.head").unlink()
    log.write_text('{"at": "2026-11-21T10:00:00+00:00", "action": "topic replay", "by": "ann"}\n')
    code, out, _ = call("status", "--project", shop_folder)
    assert (code, "audit      1 line from before lines were chained: nothing proves them so far\n" in out) == (0, True)
    log.unlink()
    log.mkdir()
    code, out, _ = call("status", "--project", shop_folder)
    assert (code, "cannot be read" in out) == (1, True)

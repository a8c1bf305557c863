"""The pages beside Home without a browser: what they say, what their forms do, and the process that reads for them."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import msgspec
import pytest

from console.stage import NAME, NASTY, make_stage
from console.test_pages import Page
from endpoints.door import make_popular, make_tastes, make_trial, write_trial
from experiments.lake import make_crowd, start_trial, stop_at, told
from headrace.base.errors import DeadlineError, OverloadedError, UnavailableError, UnknownNameError
from headrace.console import charts
from headrace.console.answers import ANSWERS
from headrace.console.reader import Reader
from headrace.project import open_project
from headrace.verify.report import FILE as REPORT
from running import Answer, is_alive, running, wait_until
from streamline import make_project, write

pytestmark = pytest.mark.slow


def send(url, method, path, *, headers=None, form=None):
    """Returns the answer of the console's door, which waits for the reader to the end."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=40)
    sent = {"hx-request": "true"} if headers is None else headers
    if form is not None:
        sent = {"content-type": "application/x-www-form-urlencoded"}
    try:
        connection.request(method, path, None if form is None else urlencode(form), sent)
        found = connection.getresponse()
        return Answer(found.status, found.read(), {name.lower(): value for name, value in found.getheaders()})
    finally:
        connection.close()


def text_of(answer):
    return " ".join(Page(answer).text.split())


# What the pages say.


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    """A console on a project that has something for every page."""
    shop = make_stage(tmp_path_factory)
    with running(shop.folder, "console") as up:
        yield up


def test_pages_say_what_commands_say(staged):
    url = staged.urls["console"]
    tables = text_of(send(url, "GET", "/tables"))
    assert "events" in tables
    assert "product_clicked" in tables
    assert "Parquet" in tables
    table = text_of(send(url, "GET", "/tables/events"))
    assert "What happened: each event once" in table
    assert "0: 0 to" in table, "the offsets of a commit"
    model = text_of(send(url, "GET", "/models/old-ranker"))
    assert "NDCG@10 is lower than popularity" in model
    assert "-0.100" in model
    experiment = text_of(send(url, "GET", f"/experiments/{NAME}"))
    for words in ("The verdict", "Health first", "Sample ratio", "Both arms", "Planned in each arm"):
        assert words in experiment, words
    assert "Over time" in text_of(send(url, "GET", f"/experiments/{NAME}?lift=1"))
    verify = text_of(send(url, "GET", "/verify"))
    assert "1 of 2 checks hold" in verify
    assert NASTY in verify
    walk = text_of(send(url, "GET", f"/lineage?id={NAME}-1"))
    assert "Where it came from" in walk
    assert send(url, "GET", "/lineage?id=nobody").status == 404


def test_the_newest_look_is_the_verdict(tmp_path):
    with open_project(make_project(tmp_path)) as project:
        trial = start_trial(project)
        decisions, events = make_crowd(trial, visitors=60, rates=(0.1, 0.3))
        # Of one page it was said too late that it could not be logged, and somebody has met both arms elsewhere.
        withdrawn = msgspec.structs.replace(decisions[0], degraded=("unlogged",))
        both = [told(trial, decisions[-1].visitor, arm) for arm in ("control", "treatment")]
        write(project, decisions=[*decisions, withdrawn], events=[*events, *both])
        stop_at(project, trial, hours=10)
        newest = ANSWERS["lift"](project, name=NAME)[-1]
        verdict = ANSWERS["experiment"](project, name=NAME)["verdict"]
        assert (verdict["multiple"], verdict["degraded"]) == (1, {f"{withdrawn.arm}/unlogged": 1})
    assert (newest["lift"], newest["p"]) == (verdict["lift"], verdict["p"])
    assert newest["interval"] == list(verdict["lift_interval"])
    assert newest["visitors"] == [verdict[arm]["visitors"] for arm in ("control", "treatment")]


def test_a_page_asks_nobody_but_its_door(staged):
    answer = send(staged.urls["console"], "GET", "/tables")
    page = Page(answer)
    policy = answer.headers["content-security-policy"]
    nonces = {one["nonce"] for one in (*page.all("link"), *page.all("script")) if "nonce" in one}
    assert len(nonces) == 1
    assert f"script-src 'nonce-{nonces.pop()}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    addresses = [element[name] for _, element in page.elements for name in ("src", "href", "action") if name in element]
    assert {urlsplit(one).netloc for one in addresses} == {""}
    assert not [name for _, element in page.elements for name in element if name == "style" or name.startswith("on")]


def test_assets_are_kept_for_ever_and_sent_packed(staged):
    url = staged.urls["console"]
    addresses = re.findall(r'(?:src|href)="(/assets/[^"]+)"', send(url, "GET", "/live").body.decode())
    assert len(addresses) == 5
    for address in addresses:
        packed = send(url, "GET", address, headers={"accept-encoding": "gzip, br"})
        plain = send(url, "GET", address, headers={})
        assert packed.headers["content-encoding"] == "gzip"
        assert len(packed.body) < len(plain.body)
        assert "immutable" in packed.headers["cache-control"]
    assert send(url, "GET", "/assets/htmx.000000000000.js").status == 404


def test_sql_is_read_only_and_only_of_tables(staged):
    url = staged.urls["console"]
    for sql in (
        "DELETE FROM events",
        "SELECT * FROM read_csv('/etc/passwd')",
        "COPY events TO '/tmp/x'",
        "SELECT 1; SELECT 2",
        "SELECT 1" + 4_000 * " " + "WHERE false",
    ):
        assert "This does not run" in text_of(send(url, "GET", "/tables?" + urlencode({"sql": sql}))), sql
    found = text_of(send(url, "GET", "/tables?" + urlencode({"sql": f"SELECT '{NASTY}' AS a, 1234567 AS n"})))
    assert NASTY in found
    assert "1,234,567" in found


def test_a_page_whose_answer_takes_longer_says_so_and_asks_again(staged):
    url = staged.urls["console"]
    sql = "SELECT count(*) FROM range(300000000) t(n) WHERE n % 7 = 3"
    path = "/tables?" + urlencode({"sql": sql})
    page = Page(send(url, "GET", path, headers={}))
    assert "DuckDB reads the lake" in page.text
    (waiting,) = [one for one in page.all("hx-trigger") if one["hx-trigger"] == "load"]
    assert waiting["hx-get"] == path
    assert "42,857,143" in text_of(send(url, "GET", waiting["hx-get"]))


def test_forms_are_refused_without_their_token(staged):
    url = staged.urls["console"]
    for path in ("/experiments/stop", "/models/roll-back", "/pipelines/run"):
        assert send(url, "POST", path, form={"experiment": NAME}).status == 403
        assert send(url, "GET", path).status == 404


def test_a_trial_can_be_stopped_and_judged_while_a_question_keeps_the_reader_busy(staged):
    url = staged.urls["console"]
    begin_trial(staged.folder)
    assert "Stop and judge" in send(url, "GET", f"/experiments/{NAME}").body.decode()
    begin_trial(staged.folder, status="stopped")
    # Answers are shared for a second.
    wait_until(lambda: "has ended and is not judged" in send(url, "GET", f"/experiments/{NAME}").body.decode())
    body = send(url, "GET", f"/experiments/{NAME}").body.decode()
    assert "Judge it" in body
    token = re.search(r'name="form_token" value="([^"]+)"', body)[1]
    (reader,) = children_of(staged)
    form = {"experiment": NAME, "form_token": token}
    os.kill(reader, signal.SIGSTOP)
    try:
        refused = send(url, "POST", "/experiments/stop", form={**form, "trial": f"{NAME}-1"})
        answer = send(url, "POST", "/experiments/stop", form={**form, "trial": f"{NAME}-2"})
    finally:
        os.kill(reader, signal.SIGCONT)
    assert "The newest trial of 'taste-home' is 'taste-home-2' by now" in text_of(refused)
    served = send(url, "POST", "/models/roll-back", form={"page": "home", "bundle": "old", "form_token": token})
    assert "by now, not by 'old'" in text_of(served)
    assert (answer.status, answer.headers.get("location")) == (303, f"/experiments/{NAME}"), answer.body
    found = text_of(send(url, "GET", f"/experiments/{NAME}"))
    assert "The verdict" in found
    assert "Judge it" not in found
    asked = send(url, "POST", "/pipelines/run", form={"pipeline": "nope", "form_token": token})
    assert (asked.status, "No pipeline 'nope'" in text_of(asked)) == (404, True)
    lines = [json.loads(line) for line in (staged.folder / ".headrace" / "audit.jsonl").read_text().splitlines()]
    acts = [(one["level"], one["what"], one["subject"], one["outcome"][:9]) for one in lines[-6:-2]]
    assert acts == [("admin", "experiment stop", NAME, outcome) for outcome in ("begun", "CallError", "begun", "done")]


def begin_trial(folder, **more):
    """Makes a trial of two bundles the newest one of the stage's experiment."""
    with open_project(folder) as project:
        topics = {name: project.topics.describe(name).incarnation for name in ("decisions", "events")}
        ends = {name: tuple(bound.end for bound in project.topics.bounds(name)) for name in topics}
        hashes = [project.registry.add(bundle) for bundle in (make_popular(), make_tastes())]
        known = {"number": 2, "started_us": project.clock.now_us(), "positions": ends, "incarnations": topics}
        write_trial(project.registry, make_trial(*hashes, **known, **more))


def children_of(up):
    (door,) = set(up.pids.values())
    return [int(one) for one in Path(f"/proc/{door}/task/{door}/children").read_text().split()]


# Where there is nothing to show.


def test_an_empty_project_says_why_and_what_to_do(tmp_path):
    make_project(tmp_path, clock="real://")
    with running(tmp_path, "console") as up:
        url = up.urls["console"]
        for path, why, what in (
            ("/tables", "No tables yet", "headrace up"),
            ("/models", "Nothing fitted yet", "headrace model fit"),
            ("/experiments/taste-home", "Not started yet", "headrace experiment start taste-home"),
            ("/lineage", "Nothing to walk from", "headrace up"),
            ("/verify", "Nothing was checked yet", "headrace verify"),
            ("/verify", "The report cannot be read", "headrace verify"),
            ("/live", "No list was viewed yet", "open Home"),
        ):
            if "report" in why:
                (tmp_path / ".headrace" / REPORT).write_text('{"version": 0}')
            found = text_of(send(url, "GET", path))
            assert why in found, path
            assert what in found, path
        assert send(url, "GET", "/tables/events").status == 404
        assert "`headrace up` makes it" in text_of(send(url, "GET", "/tables/events"))


# The process that reads.


def ask_reader(folder, script, **options):
    """Returns what a coroutine makes of a reader on a project."""

    async def main():
        with open_project(folder) as project:
            reader = Reader(project, **options)
            try:
                return await script(reader)
            finally:
                await reader.close()

    return asyncio.run(main())


def test_a_reader_that_is_killed_is_begun_anew(staged):
    async def script(reader):
        first = await reader.ask("experiments")
        os.kill(reader.pid(), signal.SIGKILL)
        wait_until(lambda: reader._child.companion.poll() is not None)
        reader.forget()
        assert await reader.ask("experiments") == first, "nobody hears of one that died while it was asked nothing"
        pid = reader.pid()
        slow = asyncio.create_task(reader.ask("sql", sql="SELECT count(*) FROM range(3000000000) t(n) WHERE n % 7 = 3"))
        await asyncio.sleep(0.2)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(UnavailableError, match="begun anew"):
            await slow
        reader.forget()
        again = await reader.ask("experiments")
        assert first == again
        assert reader.pid() != pid
        return pid, reader.pid()

    assert not [pid for pid in ask_reader(staged.folder, script) if is_alive(pid)]


def test_a_reader_ends_before_an_answer_takes_all_memory(staged):
    async def script(reader):
        with pytest.raises(UnavailableError, match=r"takes more than 1,024 MB; it is begun anew"):
            await reader.ask("sql", sql="SELECT range(1000000) FROM range(2000)")
        return await reader.ask("experiments")

    assert ask_reader(staged.folder, script)


def test_small_numbers_are_drawn_as_large_ones_are():
    drawn = charts.line([(0, -2e-15), (1, -1e-15), (2, -4e-15)], label="", names=("", ""))
    heights = re.search('points="([^"]+)"', drawn)[1].split()
    assert heights == ["0.00,126.0", "50.00,69.0", "100.00,240.0"]
    assert charts.ticks(0, 4e-15) == [0.0, 1e-15, 2e-15, 3e-15, 4e-15]


def test_a_scale_around_zero_has_a_number_at_each_side():
    for hundredths in range(1, 1_000):
        around = charts.ticks(-hundredths / 100, hundredths / 100)
        assert 3 <= len(around) <= 7
        assert around[0] < 0 < around[-1]


@pytest.mark.parametrize(
    "values",
    [
        "i * 5e-324",
        "CASE WHEN i = 2 THEN 'inf'::DOUBLE ELSE i END",
        "CASE WHEN i > 0 THEN 'nan'::DOUBLE END",
        "1e308 * i",
    ],
)
def test_numbers_that_cannot_be_drawn_leave_no_gap(staged, values):
    sql = f"SELECT i, {values} AS v FROM range(6) t(i)"
    answer = send(staged.urls["console"], "GET", "/tables?" + urlencode({"sql": sql}))
    assert answer.status == 200
    assert "6 rows" in text_of(answer)
    drawn = b"".join(re.findall(rb"<svg class=\"chart\".*?</svg>", answer.body, re.DOTALL))
    assert not re.search(rb'="[^"]*\b(?:nan|inf)\b', drawn)


def test_a_reader_ends_when_nobody_asks(staged):
    async def script(reader):
        with pytest.raises(UnknownNameError):
            await reader.ask("table", name="nothing")
        pid = reader.pid()
        async with asyncio.timeout(10):
            while reader.pid() is not None:
                await asyncio.sleep(0.01)
        return pid

    assert not is_alive(ask_reader(staged.folder, script, idle_seconds=0.1))


def test_a_question_that_takes_too_long_ends_the_reader(staged):
    async def script(reader):
        await reader.ask("experiments")
        pid = reader.pid()
        reader.deadline_seconds = 0.3
        with pytest.raises(DeadlineError, match="no answer within"):
            await reader.ask("sql", sql="SELECT count(*) FROM range(3000000000) t(n) WHERE n % 7 = 3")
        return pid

    assert not is_alive(ask_reader(staged.folder, script))


def test_the_same_question_is_answered_once(staged):
    async def script(reader):
        return await asyncio.gather(*[reader.ask("tables") for _ in range(50)])

    answers = ask_reader(staged.folder, script)
    assert len(answers) == 50
    assert all(one == answers[0] for one in answers)


def test_more_questions_than_can_wait_are_refused(staged):
    async def script(reader):
        asked = [asyncio.ensure_future(reader.ask("table", name=f"nothing-{number}")) for number in range(30)]
        await asyncio.sleep(0)
        reader.forget()
        asked += [asyncio.ensure_future(reader.ask("table", name=f"nothing-{number}")) for number in range(9)]
        return await asyncio.gather(*asked, return_exceptions=True)

    found = [type(one) for one in ask_reader(staged.folder, script)]
    assert set(found) == {UnknownNameError, OverloadedError}
    assert found.count(UnknownNameError) == 12


def test_no_reader_outlives_its_door(tmp_path):
    make_project(tmp_path, clock="real://")
    with running(tmp_path, "console") as up:
        send(up.urls["console"], "GET", "/tables")
        children = children_of(up)
        (door,) = set(up.pids.values())
        assert len(children) == 1
        os.kill(door, signal.SIGKILL)
        wait_until(lambda: not is_alive(children[0]))


def test_the_door_loads_nothing_heavy():
    program = (
        "import sys, headrace.console.pages\n"
        "heavy = {'pyarrow', 'deltalake', 'duckdb', 'numba', 'rich', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# What comes as it happens.


def test_samples_stream_to_all_who_look_until_the_door_closes(tmp_path):
    make_project(tmp_path, clock="real://")
    with running(tmp_path, "collector", "console") as up:
        address = urlsplit(up.urls["console"])
        viewers = [socket.create_connection((address.hostname, address.port), timeout=20) for _ in range(3)]
        for viewer in viewers:
            viewer.sendall(f"GET /live/stream HTTP/1.1\r\nhost: {address.netloc}\r\n\r\n".encode())
        files = [viewer.makefile("rb") for viewer in viewers]
        heads = [b"".join(iter(file.readline, b"\r\n")) for file in files]
        assert all(b"text/event-stream" in head and b"content-length" not in head for head in heads)
        viewers.pop().close()
        files.pop().close()
        up.post("/v1/track", {"event": "x", "anonymousId": "ann", "messageId": "1"})
        samples = [_read_sample(file, lambda found: "1 acknowledged" in found["parts"]["figures"]) for file in files]
        assert samples[0] == samples[1], "the same bytes for all"
        os.kill(up.process.pid, signal.SIGTERM)
        assert up.process.wait(5) == 0
        assert all(file.read() is not None for file in files)
    for one in (*files, *viewers):
        one.close()


def _read_sample(file, fits):
    """Returns the first sample that fits."""
    for line in file:
        if line.startswith(b"data: ") and fits(json.loads(line[6:])):
            return line
    raise AssertionError("the stream has ended")

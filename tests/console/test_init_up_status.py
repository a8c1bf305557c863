"""headrace init, up and status as a user types them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from headrace.profile import read_profile
from headrace.project import DOORS, open_project
from running import call, freeze, headrace, is_alive, lines, project_toml, running, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def shop(tmp_path):
    """A project's folder as `headrace init` writes it, with a free port."""
    assert call("init", "shop", cwd=tmp_path)[0] == 0
    folder = tmp_path / "shop"
    (folder / "headrace.toml").write_text(project_toml())
    return folder


# init.


def test_init_writes_the_smallest_project_and_says_what_comes_next(tmp_path):
    code, out, error = call("init", "my shop", cwd=tmp_path)
    assert (code, error) == (0, "")
    assert out == "my shop/project.py\nmy shop/headrace.toml\n\nnext:\n  cd 'my shop'\n  headrace up\n"
    text = (tmp_path / "my shop" / "project.py").read_text()
    assert 'project = Project("my-shop", pages=(home,), experiments=(trial,), pipelines=(nightly,))' in text
    assert call("status", cwd=tmp_path / "my shop")[0] == 0
    with open_project(tmp_path / "my shop") as project:
        declared = project.declared
        names = ["Product Clicked", "Product List Viewed", "Video Content Playing"]
        assert [event.name for event in declared.events] == names
        assert [model.name for model in declared.models] == ["popular", "ranker"]
        assert [column.name for column in declared.columns] == [
            "taste_1d", "taste_28d", "appeal_1d", "appeal_7d", "latest_1h",
        ]  # fmt: skip
        assert [(one.name, one.on.name, one.goal.name) for one in declared.experiments] == [
            ("ranked-home", "home", "ctr"),
        ]  # fmt: skip


def test_profiles_of_a_new_project_share_nothing_that_goes_by_offsets(tmp_path):
    assert call("init", "shop", cwd=tmp_path)[0] == 0
    one, other = (read_profile(tmp_path / "shop", name) for name in ("laptop", "cluster"))
    assert not [noun for noun in ("topics", "tables", "registry", "online") if one.url(noun) == other.url(noun)]


def test_init_empty_declares_nothing_and_loads(tmp_path):
    assert call("init", "shop", "--empty", cwd=tmp_path)[0] == 0
    text = (tmp_path / "shop" / "project.py").read_text()
    assert text.endswith('from headrace import Project\n\nproject = Project("shop")\n')
    with running(tmp_path / "shop", toml=project_toml()) as up:
        assert up.get("/ready").status == 200
        assert set(up.urls) == {"collector"}, "without a page there is nothing to serve and nothing to look at"


def test_init_refuses_to_overwrite_either_file(tmp_path):
    assert call("init", "shop", cwd=tmp_path)[0] == 0
    before = (tmp_path / "shop" / "project.py").read_bytes()
    code, out, error = call("init", "shop", cwd=tmp_path)
    assert (code, out) == (2, "")
    assert error == "CallError: 'shop/project.py' stands already; choose another folder\n"
    (tmp_path / "shop" / "project.py").unlink()
    code, _, error = call("init", "shop", cwd=tmp_path)
    assert (code, error) == (2, "CallError: 'shop/headrace.toml' stands already; choose another folder\n")
    assert not (tmp_path / "shop" / "project.py").exists(), "nothing is written by halves"
    assert len(before) > 0


def test_init_in_an_existing_folder_leaves_other_files_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert call("init", ".", cwd=tmp_path)[0] == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_init_where_a_file_stands_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    code, _, error = call("init", "file/shop", cwd=tmp_path)
    assert (code, error) == (2, "CallError: cannot write into 'file/shop': Not a directory\n")


# up.


def test_up_prints_a_line_for_people_that_works_as_it_stands(shop):
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace", "up"], cwd=shop, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        printed = [process.stdout.readline() for _ in range(7)]
        for role, line in zip(DOORS, printed, strict=False):
            assert line.startswith(f"{role:<10} http://127.0.0.1:")
        assert printed[3] == "profile    laptop (sqlite:///.headrace/topics)\n"
        commands = [line.removeprefix("try        ").strip() for line in printed[4:6]]
        done = [subprocess.run(one, shell=True, capture_output=True, text=True, check=True).stdout for one in commands]
        assert done[0] == '{"success":true}'
        assert "headrace model fit popular" in done[1], "nothing was fitted yet"
        assert printed[6] == "stop       Ctrl-C\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 0
    finally:
        process.kill()
        process.communicate()
    code, out, _ = call("topic", "read", "clicks", "--json", cwd=shop)
    assert (code, lines(out)[0]["value"]["event"]) == (0, "Product Clicked")


@pytest.mark.soak
def test_up_twice_is_refused_and_the_first_goes_on(shop):
    with running(shop) as up:
        code, out, error = headrace("up", cwd=shop)
        assert (code, out) == (2, "")
        assert error == f"CallError: role 'collector' of {str(shop)!r} runs already. See: headrace status\n"
        assert up.get("/ready").status == 200
    with running(shop) as up:
        assert up.get("/ready").status == 200


def test_up_with_an_unknown_role_names_the_nearest(shop):
    code, _, error = headrace("up", "colector", cwd=shop)
    assert code == 2
    assert error.startswith("UnknownNameError: no role 'colector'. Did you mean collector?  known: ")
    assert error.endswith("collector, console, endpoint, keeper, runner, settler, sink, updater, watcher\n")


def test_up_of_one_role_needs_no_project_file(shop):
    (shop / "project.py").unlink()
    with running(shop, "collector") as up:
        assert up.get("/ready").status == 200


def test_up_of_an_endpoint_without_pages_works_and_says_so(shop):
    (shop / "project.py").write_text('from headrace import Project\n\nproject = Project("shop")\n')
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace", "up", "endpoint"], cwd=shop, stdout=subprocess.PIPE, text=True
    )
    try:
        printed = [process.stdout.readline() for _ in range(4)]
        assert printed[0].startswith("endpoint   http://127.0.0.1:")
        assert printed[2:] == ["pages      none: project 'shop' declares no Page\n", "stop       Ctrl-C\n"]
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("section", ["collect", "endpoint", "console"])
def test_up_on_a_taken_port_says_which_key_to_change(shop, section):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        toml = project_toml(port=port) if section == "collect" else project_toml(extra=f"[{section}]\nport = {port}\n")
        (shop / "headrace.toml").write_text(toml)
        code, _, error = headrace("up", cwd=shop)
    change = f"Choose another port under [{section}] port of headrace.toml, 0 for any free one"
    assert (code, error) == (2, f"CallError: cannot listen on 127.0.0.1:{port}: Address already in use. {change}\n")


@pytest.mark.soak
def test_two_projects_without_pages_come_up_beside_each_other(tmp_path):
    toml = project_toml().replace("[endpoint]\nport = 0", "[endpoint]").replace("[console]\nport = 0", "[console]")
    for name in ("one", "two"):
        assert call("init", name, "--empty", cwd=tmp_path)[0] == 0
    with running(tmp_path / "one", toml=toml) as one, running(tmp_path / "two", toml=toml) as two:
        assert (one.get("/ready").status, two.get("/ready").status) == (200, 200)


@pytest.mark.parametrize("workers", [0, 65])
def test_up_with_an_impossible_number_of_workers_is_refused(shop, workers):
    (shop / "headrace.toml").write_text(project_toml(workers=workers))
    code, _, error = headrace("up", cwd=shop)
    assert (code, error) == (2, f"CallError: collect.workers == {workers}, must be 1 to 64\n")


@pytest.mark.soak
def test_up_with_other_partitions_than_the_topic_has_is_refused(shop):
    assert call("topic", "create", "clicks", "--partitions", "3", cwd=shop)[0] == 0
    code, _, error = headrace("up", cwd=shop)
    assert code == 2
    assert error.startswith("CallError: topic 'clicks' stands with 3 partitions, asked for 4. ")
    (shop / "headrace.toml").write_text(project_toml(extra="[topic.clicks]\npartitions = 3\n"))
    with running(shop) as up:
        assert up.post("/v1/t", {"anonymousId": "ann"}).status == 200


@pytest.mark.parametrize("line", ["partitions = 0", "retention_days = inf"])
def test_up_with_an_impossible_topic_is_refused(shop, line):
    (shop / "headrace.toml").write_text(project_toml(extra=f"[topic.clicks]\n{line}\n"))
    code, _, error = headrace("up", cwd=shop)
    assert code == 2
    assert f"at `$.topic.clicks.{line.split()[0]}`" in error


def test_an_unknown_crash_point_is_refused(shop):
    code, _, error = headrace("up", cwd=shop, env={"HEADRACE_FAULT": "topics.writen=kill"})
    assert code == 2
    assert error.startswith("UnknownNameError: no crash point 'topics.writen'. Did you mean topics.written?")


def test_a_port_stays_open_while_a_worker_is_started_anew(shop):
    with running(shop) as up:
        first = up.pids["doors"]
        os.kill(first, signal.SIGKILL)
        # The door is the supervisor's: the request waits for the next worker, no connection is refused.
        assert up.post("/v1/t", {"n": 1}, timeout=10).status == 200
        assert up.pids["doors"] != first


def test_a_role_alone_has_a_process_of_its_own(shop):
    with running(shop, "collector") as collector, running(shop, "endpoint") as endpoint:
        assert (set(collector.urls), set(endpoint.urls)) == ({"collector"}, {"endpoint"})
        assert set(collector.pids) == {"collector-1", "endpoint-1"}
        assert collector.get("/ready").status == 200


def test_all_is_gone_a_second_after_up_is_killed(shop):
    with running(shop, toml=project_toml(workers=2)) as up:
        pids = list(up.pids.values())
        up.kill()
        wait_until(lambda: not any(map(is_alive, pids)), seconds=1.0)


# status.


def kinds(out):
    """Returns what `status --json` printed, by kind."""
    found = {}
    for line in lines(out):
        found.setdefault(line.pop("kind"), []).append(line)
    return found


def test_status_of_a_project_that_never_ran(shop):
    code, out, error = call("status", "--json", cwd=shop)
    assert (code, error) == (0, "")
    found = kinds(out)
    assert [role["role"] for role in found["role"]] == [
        "collector", "endpoint", "console", "settler", "sink", "keeper", "updater", "runner", "watcher",
    ]  # fmt: skip
    assert found["role"][0] == {
        "role": "collector", "state": "stopped", "url": None, "pids": [], "reasons": [],
        "events": 0, "ack_p99_seconds": None, "pages": 0, "page_p99_seconds": None,
    }  # fmt: skip
    assert found["stream"] == [{"unsettled": 0, "failed": 0, "uncounted": None, "uncounted_seconds": None}]
    assert found["disk"][0]["free_bytes"] > 0
    assert found.keys() == {"role", "stream", "disk", "audit"}
    code, out, _ = call("status", cwd=shop)
    assert code == 0
    assert "stopped" in out
    assert "no topics yet" in out
    assert "watch" not in out.partition("disk")[2]
    left = {"id": "a-1", "at_us": 1, "project_us": 1, "kind": "lag", "subject": "settler", "state": "open"}
    book = shop / ".headrace" / "alerts.jsonl"
    book.write_text(json.dumps({**left, "text": "9 clicks wait", "advice": "see: headrace status"}) + "\n")
    out = call("status", cwd=shop)[1]
    assert "alert      lag: 9 clicks wait. see: headrace status\n           nobody watches now" in out


def test_status_of_a_running_project_and_after(shop):
    with running(shop, toml=project_toml(extra="[sink]\nflush_seconds = 0.2\n")) as up:
        for n in range(3):
            assert up.post("/v1/t", {"anonymousId": "ann", "event": "Seen", "messageId": f"{n}"}).status == 200
        assert up.post("/v1/t", {"event": "Seen"}).status == 200
        wait_until(lambda: {t["table"]: t["rows"] for t in status_of(shop).get("table", ())} == {
            "events": 3, "failed": 1, "decisions": 0, "items": 0,
        })  # fmt: skip
        found = status_of(shop)
        role, endpoint, console, *others = found["role"]
        assert (role["state"], role["url"], role["events"]) == ("ready", up.url, 4)
        assert (endpoint["state"], endpoint["url"], endpoint["events"]) == ("not ready", up.urls["endpoint"], 0)
        assert "headrace model fit popular" in endpoint["reasons"][0]
        assert (console["url"], console["events"]) == (up.urls["console"], 0)
        assert [(one["state"], one["url"]) for one in others] == [("ready", None)] * 6
        assert {pid for one in found["role"] for pid in one["pids"]} == {up.process.pid, *up.pids.values()}
        assert role["ack_p99_seconds"] > 0
        assert {one["topic"]: one["records"] for one in found["topic"]} == {
            "clicks": 4, "events": 3, "failed": 1, "decisions": 0, "items": 0,
        }  # fmt: skip
        wait_until(lambda: status_of(shop)["stream"] == [
            {"unsettled": 0, "failed": 1, "uncounted": 0, "uncounted_seconds": 0.0},
        ])  # fmt: skip
        assert [(one["lag"], one["age_seconds"] < 60) for one in found["table"]] == [(0, True)] * 4
        assert found["disk"][0]["used_bytes"] > 0
        code, out, _ = call("status", cwd=shop)
        assert code == 0
        assert "collector  4 events acknowledged, ack p99 ≤ " in out
        assert "endpoint   is not ready: " in out
        assert "0 clicks to settle" in out
        assert "1 events, see: headrace table failed --group" in out
        freeze(up.pids["doors"])
        assert status_of(shop)["role"][0]["state"] == "not ready"
        os.kill(up.pids["doors"], signal.SIGCONT)
        up.kill()
        role = status_of(shop)["role"][0]
        assert (role["state"], role["pids"]) == ("stopped", [])
    assert {one["table"]: one["rows"] for one in status_of(shop)["table"]}["events"] == 3


def status_of(folder):
    code, out, error = call("status", "--json", cwd=folder)
    assert (code, error) == (0, "")
    return kinds(out)


def test_status_says_which_role_fails_and_why(shop):
    with running(shop, toml=project_toml(extra="[sink]\nflush_seconds = 0.2\n")) as up:
        assert up.post("/v1/t", {"anonymousId": "ann", "event": "Seen"}).status == 200
        wait_until(lambda: {one["table"]: one["rows"] for one in status_of(shop).get("table", ())}.get("events") == 1)
    with open_project(shop) as project:
        project.topics.drop("events")
    with running(shop) as up:
        # Others fail, too, as soon or sooner.
        wait_until(lambda: any(one["role"] == "sink" for one in status_of(shop).get("failure", ())))
        found = status_of(shop)
        assert {role["role"]: role["state"] for role in found["role"]}["sink"] == "failing"
        (failure,) = [one for one in found["failure"] if one["role"] == "sink"]
        assert failure["loop"] == "sink-events"
        assert "headrace topic replay events --fresh events | --continue events" in failure["message"]
        assert "sink       is failing: PositionError: table 'events' was made" in call("status", cwd=shop)[1]

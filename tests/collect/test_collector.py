"""The running collector as a whole: who may reach it, several workers, and pressure."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from headrace.base.errors import ProjectError
from headrace.collect.keys import Keys, hash_key
from headrace.console.init import write_project
from headrace.project import open_project
from running import Running, freeze, project_toml, running, wait_until

pytestmark = pytest.mark.slow


def refuse_to_start(folder, toml):
    (folder / "project.py").write_text('from headrace import Project\nproject = Project("shop")\n')
    (folder / "headrace.toml").write_text(toml)
    command = [sys.executable, "-m", "headrace", "up", "collector", "--project", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return done.returncode, done.stderr.strip()


def test_an_address_open_to_others_is_refused_while_dev_stands(tmp_path):
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        code, error = refuse_to_start(tmp_path, project_toml(host=host))
        assert code == 2
        assert error == (
            f"CallError: collect.host = '{host}' is open to others while the write key 'dev' stands, which everybody "
            "knows. Put a key of your own into [keys] of headrace.toml and remove dev"
        )


def test_the_dev_key_by_any_other_name_is_as_open(tmp_path):
    code, error = refuse_to_start(tmp_path, project_toml(host="0.0.0.0", keys={"web": "dev"}))
    assert (code, "is open to others while the write key 'dev' stands" in error) == (2, True)


def test_an_address_open_to_others_is_opened_with_a_key_of_ones_own(tmp_path):
    with running(tmp_path, toml=project_toml(host="0.0.0.0", keys={"web": "my-own-key"})) as up:
        assert up.post("/v1/t", {"anonymousId": "ann"}, key="my-own-key").status == 200
        assert up.post("/v1/t", {"anonymousId": "ann"}, key="dev").status == 401


@pytest.mark.parametrize("value", ["my-key", "", "sha256:abc", "sha256:" + "z" * 64, "md5:" + "0" * 64])
def test_a_key_in_plain_text_is_refused_and_not_repeated(tmp_path, value):
    toml = project_toml().replace(hash_key("dev"), value)
    code, error = refuse_to_start(tmp_path, toml)
    assert code == 2
    assert error == (
        'ProjectError: headrace.toml [keys] dev: found a plain text, write name = "sha256:HASH" with '
        "the output of: printf %s THE-KEY | sha256sum"
    )
    with pytest.raises(ProjectError):
        Keys.read({"dev": value})


def test_a_hash_in_capitals_is_the_same_hash():
    assert Keys.read({"dev": "sha256:" + hash_key("dev").partition(":")[2].upper()}).name_of("dev") == "dev"


def test_two_workers_share_one_door_and_one_topic(tmp_path):
    with running(tmp_path, "collector", toml=project_toml(workers=2)) as up:
        assert set(up.pids) == {"collector-1", "collector-2"}
        with ThreadPoolExecutor(16) as pool:
            sent = [{"anonymousId": f"visitor {n % 10}", "n": n} for n in range(300)]
            assert {answer.status for answer in pool.map(lambda event: up.post("/v1/t", event), sent)} == {200}
        clicks = up.read()
        assert sorted(click["value"]["n"] for click in clicks) == list(range(300))
        offsets = Counter((click["partition"], click["offset"]) for click in clicks)
        assert max(offsets.values()) == 1
        both = up.get("/metrics").body.decode()
        assert "\nheadrace_collect_events_total 300\n" in both, "any worker tells for all"
        os.kill(up.pids["collector-1"], signal.SIGKILL)
        wait_until(lambda: accepted(up))
    assert up.process.returncode == 0


def accepted(up):
    with suppress(OSError):
        return up.post("/v1/t", {"anonymousId": "ann"}).status == 200
    return False


@pytest.fixture
def frozen_writer(tmp_path):
    """Two workers, of which one is the topic's writer and frozen; yields `up` and a way to thaw it."""
    with running(tmp_path, "collector", toml=project_toml(workers=2)) as up:
        assert up.post("/v1/t", {"messageId": "before"}).status == 200
        writer = holder(up)
        freeze(writer)
        try:
            yield up, lambda: os.kill(writer, signal.SIGCONT)
        finally:
            os.kill(writer, signal.SIGCONT)


def holder(up):
    """Returns the worker that holds the lock of the topic's file."""
    (lock,) = (path for path in (up.folder / ".headrace").rglob("*.lock") if path.parent.name != "run")
    for line in Path("/proc/locks").read_text().splitlines():
        parts = line.split()
        if parts[1] == "FLOCK" and parts[5].endswith(f":{lock.stat().st_ino}"):
            return int(parts[4])
    raise AssertionError("nobody holds the topic")


def ask(up, body, timeout=5.0):
    """Returns status, Retry-After and seconds of a request; None if a frozen worker took it."""
    started = time.monotonic()
    try:
        answer = up.post("/v1/b", body, timeout=timeout)
    except OSError:
        return None
    return answer.status, answer.headers.get("retry-after"), time.monotonic() - started


def test_a_frozen_writer_is_503_within_a_second_and_service_resumes(frozen_writer):
    up, thaw = frozen_writer
    # The kernel deals connections out to both workers; those of the frozen one wait for it.
    with ThreadPoolExecutor(16) as pool:
        answers = [found for found in pool.map(lambda n: ask(up, {"batch": [{"n": n}]}, 2.0), range(16)) if found]
    assert answers, "the other worker answers"
    for status, retry, seconds in answers:
        assert (status, retry) == (503, "1")
        assert seconds < 1.5
    thaw()
    wait_until(lambda: accepted(up), seconds=5)
    assert "before" in [click["value"].get("messageId") for click in up.read()]


@contextmanager
def program(*arguments):
    command = [sys.executable, str(Path(__file__).with_name("small.py")), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        yield process, process.stdout.readline().decode().strip()
    finally:
        process.kill()
        process.communicate()


def test_a_full_buffer_is_429_and_ready_says_why(tmp_path):
    write_project(tmp_path, ports=(0, 0, 0))
    with program("writer", tmp_path) as (writer, _), program("door", tmp_path) as (_, port):
        door = Running(tmp_path, None, writer, tmp_path / "log", {"collector": f"http://127.0.0.1:{port}"})
        assert door.post("/v1/t", {"messageId": "before"}).status == 200
        freeze(writer.pid)
        with ThreadPoolExecutor(40) as pool:
            pressed = [pool.submit(door.post, "/v1/t", {"n": n, "x": "x" * 20_000}) for n in range(40)]
            wait_until(lambda: door.get("/ready").status == 503)
            reasons = door.get("/ready").json()["reasons"]
            answers = [one.result() for one in pressed]
        assert [re.sub(r"[0-9.]+ s", "1 s", reason) for reason in reasons] == ["the topic has not answered for 1 s"]
        # One frame flies, at most ten requests of 20 kB wait, and the rest is told at once.
        counts = Counter((answer.status, answer.headers["retry-after"]) for answer in answers)
        assert set(counts) == {(429, "1"), (503, "1")}
        assert counts[(429, "1")] >= 20
        overloaded = next(answer for answer in answers if answer.status == 429)
        assert overloaded.json()["error"] == "OverloadedError"
        writer.send_signal(signal.SIGCONT)
        wait_until(lambda: door.post("/v1/t", {"messageId": "after"}).status == 200)
        wait_until(lambda: door.get("/ready").status == 200)
        ids = [click["value"].get("messageId") for click in door.read()]
        assert {"before", "after"} <= set(ids)


def test_a_dropped_topic_is_503_which_sdks_send_again_and_ready_says_why(tmp_path):
    with running(tmp_path, "collector", toml=project_toml()) as up, open_project(tmp_path) as project:
        assert up.post("/v1/t", {"messageId": "before"}).status == 200
        project.topics.drop("clicks")
        assert up.post("/v1/t", {"messageId": "again"}).status == 503
        answer = up.post("/v1/t", {"messageId": "again"})
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert answer.json() == {
            "error": "UnavailableError",
            "message": "the topic 'clicks' takes no events: no topic 'clicks'.  known: decisions, events, failed",
        }
        ready = up.get("/ready")
        assert (ready.status, ready.json()["reasons"]) == (503, [answer.json()["message"]])
        project.make_topic("clicks")
        wait_until(lambda: up.post("/v1/t", {"messageId": "again"}).status == 200)
        assert up.get("/ready").status == 200
        assert [click["value"]["messageId"] for click in up.read()] == ["again"]

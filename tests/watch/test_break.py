"""A real project, broken by the real command: the watcher says what it is, and the webhook hears it once."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from headrace.base.errors import CallError, HeadraceError
from headrace.console.harm import FAULTS, Victim
from headrace.console.init import write_project
from headrace.console.state import sole
from headrace.lookout import post_alerts, read_webhook
from headrace.project import open_project
from headrace.watch.alert import FILE, Book, Finding, Now, read_alerts
from running import call, headrace, lines, running, wait_until


class Hook(ThreadingHTTPServer):
    """A webhook that fails at first, the first time with what is no HTTP, and keeps what it has taken."""

    daemon_threads = True

    def __init__(self, failures):
        self.failures, self.taken, self.asked = failures, [], 0
        super().__init__(("127.0.0.1", 0), _Answers)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/alerts?token=secret"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class _Answers(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.asked += 1
        fails = self.server.asked <= self.server.failures
        if not fails:
            self.server.taken.append(json.loads(body))
        if self.server.asked == 1 and fails:
            self.wfile.write(b"220 mail is welcome\r\n")
            return
        self.send_response(500 if fails else 204)
        self.end_headers()

    def log_message(self, *_):
        pass


def make_project(folder, extra=""):
    write_project(folder, ports=(0, 0, 0), flush_seconds=0.2)
    toml = folder / "headrace.toml"
    toml.write_text(toml.read_text() + extra)
    return folder


def told(folder, *words):
    """Returns exit code and answer of `headrace break`."""
    code, out, error = headrace("break", *words, "--json", cwd=folder)
    return code, lines(out)[0] if out else json.loads(error)["message"]


@pytest.mark.slow
def test_a_broken_project_is_told_of_once_everywhere(tmp_path):
    began_at = time.time()
    with Hook(failures=2) as hook:
        shop = make_project(tmp_path / "shop", f'[watch]\nwebhook = "{hook.url}"\n')
        with running(shop) as up:
            for fault, kind in (("duplicate", "duplicates"), ("bots", "bots")):
                code, found = told(shop, fault, "--seconds", "25")
                assert (code, found["alert"]["kind"], found["others"]) == (0, kind, 0), found
                assert found["seconds"] < 25
            code, error = told(shop, "bots")
            assert (code, "is open already" in error) == (2, True)
            code, error = told(shop, "srm")
            assert (code, error) == (
                2, "no trial runs, so there are no arms. Start one with: headrace experiment start NAME",
            )  # fmt: skip
            alerts = read_alerts(shop / ".headrace" / FILE)
            assert [one.kind for one in alerts] == ["duplicates", "bots"]
            code, out, _ = call("status", "--json", cwd=shop)
            shown = [one for one in lines(out) if one["kind"] == "alert"]
            assert {one["about"] for one in shown} <= {"duplicates", "bots"}
            assert "bots" in {one["about"] for one in shown}
            wait_until(lambda: {one["id"] for one in hook.taken if one["state"] == "open"} == {"a-1", "a-2"})
            opened = [one["id"] for one in hook.taken if one["state"] == "open"]
            assert opened == ["a-1", "a-2"]
            told_of = up.get("/metrics").body.decode()
            assert 'headrace_watch_alerts_total{kind="duplicates"} 1\n' in told_of
            assert 'headrace_watch_alerts_total{kind="drift"} 0\n' in told_of
            assert float(told_of.partition("\nheadrace_watch_looked_timestamp_seconds ")[2].split()[0]) > began_at
            assert "alert a-1, duplicates" in up.log.read_text()
            assert "secret" not in up.log.read_text()


def test_break_refuses_where_nothing_runs(tmp_path):
    shop = make_project(tmp_path / "shop")
    code, error = told(shop, "duplicate")
    assert code == 2
    assert error == "no watcher runs that could notice it. Start the project with: headrace up"
    code, error = told(shop, "duplicat")
    assert (code, "Did you mean duplicate?" in error) == (2, True)


def test_harm_that_cannot_be_undone_is_told_beside_its_alert(tmp_path, monkeypatch):
    def prepare(victim):
        book = Book(victim.project.profile.state / FILE)

        def harm(stop):
            book.note([Finding(kind="disk", subject="disk", text="full", advice="make room")], Now(0, 0, 0))
            stop.wait()
            # Undoing it took so long that the alert is over.
            book.note([], Now(1, 1, 1))
            book.note([], Now(20_000_000, 2, 20_000_000))
            raise OSError("the ballast cannot be removed")

        return harm

    monkeypatch.setitem(FAULTS, "disk", replace(FAULTS["disk"], prepare=prepare))
    shop = make_project(tmp_path / "shop")
    with open_project(shop) as project, sole(project, "watcher"):
        code, out, error = call("break", "disk", "--project", shop, "--json")
    assert (code, lines(out)[0]["alert"]["id"], lines(out)[0]["others"]) == (3, "a-1", 0)
    assert "the ballast cannot be removed" in error


def test_a_webhook_that_failed_hears_each_line_once_also_after_a_restart(tmp_path):
    stop = threading.Event()
    with Hook(failures=3) as hook:
        shop = make_project(tmp_path / "shop", f'[watch]\nwebhook = "{hook.url}"\n')
        with open_project(shop) as project:
            poster = threading.Thread(target=post_as_loops_do, args=(project, stop))
            poster.start()
            path = project.profile.state / FILE
            wait_until(lambda: path.with_suffix(".posted").exists())
            book = Book(path)
            finding = Finding(kind="disk", subject="disk", text="full", advice="make room")
            book.note([finding], Now(0, 0, 0))
            wait_until(lambda: len(hook.taken) == 1)
            stop.set()
            poster.join()
            book.note([], Now(1, 1, 1))
            book.note([], Now(20_000_000, 2, 20_000_000))
            stop.clear()
            poster = threading.Thread(target=post_as_loops_do, args=(project, stop))
            poster.start()
            wait_until(lambda: len(hook.taken) == 2)
            stop.set()
            poster.join()
    assert [(one["id"], one["state"]) for one in hook.taken] == [("a-1", "open"), ("a-1", "closed")]
    assert hook.asked == 5


def test_a_webhook_hears_each_line_once_where_nothing_can_be_noted(tmp_path):
    stop = threading.Event()
    with Hook(failures=0) as hook:
        shop = make_project(tmp_path / "shop", f'[watch]\nwebhook = "{hook.url}"\n')
        with open_project(shop) as project:
            path = project.profile.state / FILE
            # As on a full disk: no later note has room.
            path.with_suffix(".new").mkdir(parents=True)
            path.with_suffix(".posted").write_text("0")
            poster = threading.Thread(target=post_as_loops_do, args=(project, stop))
            poster.start()
            book = Book(path)
            for number in range(2):
                finding = Finding(kind="disk", subject=f"disk {number}", text="full", advice="make room")
                book.note([finding], Now(0, 0, 0))
                wait_until(lambda least=number: len(hook.taken) > least)
            stop.set()
            poster.join()
    assert [one["id"] for one in hook.taken] == ["a-1", "a-2"]


@pytest.mark.parametrize("is_asked_for", [True, False], ids=["asked for", "written, as on macOS"])
def test_the_ballast_takes_its_room_and_goes(tmp_path, monkeypatch, is_asked_for):
    if not is_asked_for:
        monkeypatch.delattr(os, "posix_fallocate")
    shop = make_project(tmp_path / "shop")
    with open_project(shop) as project:
        # Three and a half megabytes more than may be left: nobody's disk is filled for this.
        left = int(0.8 * project.profile.settings.watch.free_gb * 1e9)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: argparse.Namespace(free=left + 3_500_000))
        ballast, stop = project.profile.state / "break.ballast", threading.Event()
        project.profile.state.mkdir(parents=True, exist_ok=True)
        harm = threading.Thread(
            target=FAULTS["disk"].prepare(Victim(project, argparse.Namespace(yes=False))), args=(stop,)
        )
        harm.start()
        wait_until(lambda: ballast.exists() and ballast.stat().st_blocks * 512 >= 3_500_000)
        assert ballast.stat().st_size == 3_500_000
        stop.set()
        harm.join()
        assert not ballast.exists()


def post_as_loops_do(project, stop):
    while not stop.wait(0.01):
        with contextlib.suppress(HeadraceError):
            post_alerts(project, threading.Lock(), stop)


def test_a_webhook_may_stand_in_the_environment(tmp_path, monkeypatch):
    shop = make_project(tmp_path / "shop", '[watch]\nwebhook = "env:SHOP_HOOK"\n')
    with open_project(shop) as project:
        with pytest.raises(CallError, match="needs the environment variable SHOP_HOOK, which is not set"):
            read_webhook(project)
        monkeypatch.setenv("SHOP_HOOK", "ftp://somewhere")
        with pytest.raises(CallError, match=r"write http://\.\.\., https://\.\.\. or env:NAME"):
            read_webhook(project)
        monkeypatch.setenv("SHOP_HOOK", "https://hooks.example/abc")
        assert read_webhook(project) == "https://hooks.example/abc"

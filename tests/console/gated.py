"""A guarded console on loopback, in a thread of the test's own process, and a client that sends what it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import re
import secrets
import threading
from dataclasses import dataclass
from functools import cache
from urllib.parse import urlencode

from headrace.base.errors import RequestError
from headrace.base.http import App, Limits, Response, Service, answering, json_response, listen
from headrace.base.telemetry import Metrics
from headrace.console.guard import audited, caller_of, form_token, guard, hash_token, needs
from headrace.console.pages import open_console
from headrace.console.password import hash_password
from headrace.console.users import User, Users
from headrace.doors import Behind
from headrace.project import open_project
from running import project_toml

PASSWORD = "correct horse battery"
PEOPLE = {"vera": "viewer", "otto": "operator", "adam": "admin"}
NAME = "console.example"
PAGE = {"accept": "text/html"}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: str

    @property
    def cookie(self):
        """The session's cookie, as a browser sends it back."""
        return self.headers.get("set-cookie", "").partition(";")[0]

    @property
    def form_token(self):
        found = re.search(r'name="form_token" value="([0-9a-f]*)"', self.body)
        return found[1] if found else ""


@dataclass
class Gated:
    """The guarded application, where it listens, and its clock."""

    app: object
    port: int
    folder: object
    step_us: int = 0

    @property
    def users(self):
        return self.app.gate.users

    def ask(self, path, method="GET", *, body=b"", host=None, **headers):
        """Sends one request; `host` None names the address, and a list of hosts is sent as several headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for one in host if isinstance(host, list) else [f"127.0.0.1:{self.port}" if host is None else host]:
                connection.putheader("Host", one)
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            connection.putheader("content-length", str(len(body)))
            connection.endheaders(body)
            found = connection.getresponse()
            return Answer(found.status, {k.lower(): v for k, v in found.getheaders()}, found.read().decode())

    def post(self, path, *, cookie="", host=None, headers=(), **fields):
        """Sends a form as a browser does."""
        sent = {"content-type": "application/x-www-form-urlencoded", **dict(headers)}
        sent |= {"cookie": cookie} if cookie else {}
        return self.ask(path, "POST", body=urlencode(fields, errors="surrogateescape").encode(), host=host, **sent)

    def log_in(self, name, password=PASSWORD, *, headers=(), **fields):
        """Fills in the form and returns the answer to it."""
        form = self.ask("/login", **dict(headers))
        return self.post(
            "/login",
            cookie=form.cookie,
            headers=headers,
            name=name,
            password=password,
            form_token=form.form_token,
            **fields,
        )

    def as_(self, name):
        """Returns the cookie of somebody who has logged in, without the time that a password takes."""
        token, now = secrets.token_urlsafe(32), self.app.gate.now_us()
        _, kept = self.users.find(name)
        self.users.open_session(hash_token(token), name, password=kept, now_us=now, since_us=0)
        return f"headrace_console={token}"

    def token_of(self, cookie):
        """Returns the token of the forms of a session."""
        return self.app.gate.make_form_token(hash_token(cookie.partition("=")[2]))


@cache
def _kept():
    return hash_password(PASSWORD)


async def _home(request):
    return Response(200, form_token(request).encode(), ((b"content-type", b"text/plain"),))


async def _who(request):
    caller = caller_of(request)
    return json_response({"name": caller.name, "level": caller.level, "address": caller.address})


async def _act(request):
    async with audited(request, "act", subject=request.path, given={"size": str(len(request.body))}) as outcome:
        outcome.text = "acted"
    return json_response({"acted": True})


async def _secret(_):
    return json_response({"secret": 1})


async def _nowhere(_):
    raise RequestError(404, "nothing here")


async def _ticks(_):
    async def tell():
        while True:
            yield b"tick\n"
            await asyncio.sleep(0.01)

    return Response(200, b"", ((b"content-type", b"text/event-stream"),), tell())


ROUTES = {
    ("GET", "/"): needs("viewer", _home),
    ("GET", "/who"): needs("anybody", _who),
    ("GET", "/ticks"): needs("viewer", _ticks),
    ("POST", "/act"): needs("operator", _act),
    ("GET", "/admin"): needs("admin", _secret),
    ("GET", "/unstated"): _secret,
}


async def build_small(project):
    """Returns the guarded application of these routes."""
    return guard(project, App(ROUTES, fallback=needs("viewer", _nowhere), metrics_text=lambda: "up 1\n"))


async def build_console(project):
    """Returns the guarded application of all pages."""
    metrics = Metrics((), folder=project.profile.state / "metrics", process="test")
    app, _ = await open_console(Behind(project, None, metrics))
    return app


@contextlib.contextmanager
def gated(folder, *, extra="", people=PEOPLE, build=build_small):
    """Yields a guarded console that listens at loopback, and thinks that it does as `extra` says."""
    (folder / "project.py").write_text('from headrace import Project\nproject = Project("shop")\n')
    (folder / "headrace.toml").write_text(project_toml(extra=f"[console]\nport = 0\n{extra}"))
    with open_project(folder) as project:
        if people:
            kept = _kept()
            with contextlib.closing(Users(project.profile.state)) as users:
                for name, level in people.items():
                    users.add(User(name, level, 1), kept)
        door = Gated(None, 0, folder)
        ready, over = threading.Event(), threading.Event()
        listener = listen("127.0.0.1", 0)
        door.port = listener.getsockname()[1]
        thread = threading.Thread(target=asyncio.run, args=(_serve(door, build(project), listener, ready, over),))
        thread.start()
        try:
            assert ready.wait(10)
            yield door
        finally:
            over.set()
            thread.join(10)
            listener.close()


async def _serve(door, building, listener, ready, over):
    door.app = await building
    now_us = door.app.gate.now_us
    door.app.gate.now_us = lambda: now_us() + door.step_us
    async with answering([Service(door.app, listener, Limits())], drain_seconds=0.1):
        ready.set()
        while not over.is_set():
            await asyncio.sleep(0.01)
    if door.app.gate.users is not None:
        door.app.gate.users.close()

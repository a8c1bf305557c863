"""Who may do what on the console's pages: on loopback everybody, elsewhere whoever has logged in and may.

A route states the level that it needs, `needs("operator", promote)`; one that states none is refused to all. Every
request that may change something carries a token that only our own pages know: `form_token(request)`, as the field
`form_token` of a form or the header `x-form-token`. A change stands within `audited(request, "what", ...)`.
`guard(project, app)` returns the application that holds all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit

import msgspec

from headrace.base.audit import Act, Outcome
from headrace.base.audit import audited as audited_act
from headrace.base.clock import machine_us
from headrace.base.errors import CallError, HeadraceError, OutsideError, RequestError, StopError
from headrace.base.http import JSON, Answer, App, Request, Response, error_response, is_loopback
from headrace.base.process import find_user
from headrace.console.figures import capitalise
from headrace.console.frame import put, tag
from headrace.console.plain import respond_plainly
from headrace.console.users import Session, Users
from headrace.profile import ConsoleTable
from headrace.project import OpenProject

LEVELS = ("anybody", "viewer", "operator", "admin")
"""Each may do what those before it may; `anybody` needs no login."""

LOGIN = "/login"
FORM_TOKEN = "form_token"  # noqa: S105 - the name of a field
CALLER = "headrace.caller"
COOKIE = "headrace_console"

IDLE_SECONDS = 2 * 3600
_TOUCH_US = 60_000_000
_MAX_COOKIE = 100
_OPEN_PATHS = (("GET", "/live"), ("GET", "/ready"))
_SAFE = ("GET", "HEAD")
_FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip")
_ANYWHERE = ("0.0.0.0", "::")  # noqa: S104 - recognised, not listened at

_BACK = tag("p", tag("a", "To the first page", href="/"))

_HEADERS: Mapping[bytes, bytes] = {
    b"cache-control": b"private, no-store",
    b"content-security-policy": (
        b"default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
        b"frame-ancestors 'none'"
    ),
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    b"referrer-policy": b"same-origin",
    b"x-content-type-options": b"nosniff",
}
"""What every answer carries that does not say it for itself."""


class _Refusal(msgspec.Struct):
    message: str = ""


@dataclass(frozen=True)
class Caller:
    """Who asks."""

    name: str
    level: str
    address: str
    form_token: str
    state: Path
    """The folder of the audit log."""
    session: bytes = b""
    """The hash of the session's token; nothing for one who has not logged in, or need not."""

    def may(self, level: str) -> bool:
        """Returns whether the caller has at least this level: pages hide what would be refused."""
        return LEVELS.index(self.level) >= LEVELS.index(level)


@dataclass(frozen=True)
class Guarded:
    """A route with the level that it needs."""

    level: str
    answer: Answer

    async def __call__(self, request: Request) -> Response:
        """Answers those who may ask, and nobody who came by another way than the guard."""
        if not caller_of(request).may(self.level):
            raise RequestError(403, f"{request.path} needs the level {self.level}")
        return await self.answer(request)


def needs(level: str, answer: Answer) -> Guarded:
    """Returns a route that callers of a level may use.

    >>> needs("viewer", None).level
    'viewer'
    """
    if level not in LEVELS:
        raise ValueError(f"no level {level!r}, known: {', '.join(LEVELS)}")
    return Guarded(level, answer)


def caller_of(request: Request) -> Caller:
    """Returns who asks; raises RequestError 403 if no guard has let the request in."""
    found = request.scope.get(CALLER)
    if not isinstance(found, Caller):
        raise RequestError(403, "no guard has looked at this request")
    return found


def form_token(request: Request) -> str:
    """Returns the token that every form, and every request by script that changes something, must bring back."""
    return caller_of(request).form_token


def read_form(request: Request) -> dict[str, str]:
    """Returns the fields of a form that was sent."""
    kind = request.header(b"content-type").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        return {}
    return dict(parse_qsl(request.body.decode("latin-1"), keep_blank_values=True))


@contextlib.asynccontextmanager
async def audited(
    request: Request, what: str, *, subject: str = "", given: Mapping[str, str] | None = None
) -> AsyncIterator[Outcome]:
    """Writes an act into the audit log before it is done, and what became of it after.

    async with audited(request, "model promote", subject="home", given={"bundle": hash}) as outcome: ...
    """
    async with audited_by(caller_of(request), what, subject=subject, given=given) as outcome:
        yield outcome


@contextlib.asynccontextmanager
async def audited_by(
    caller: Caller, what: str, *, subject: str = "", given: Mapping[str, str] | None = None
) -> AsyncIterator[Outcome]:
    """Does the same for a caller who is known otherwise than by the request, as at the login."""
    scope = audited_act(caller.state, Act(caller.name, caller.level, what, subject, given or {}, caller.address))
    # Both ends wait for the disk, and the collector shares this loop.
    outcome = await asyncio.to_thread(scope.__enter__)
    try:
        yield outcome
    except BaseException as error:  # the other end is told of whatever it is
        await asyncio.to_thread(scope.__exit__, type(error), error, error.__traceback__)
        raise
    await asyncio.to_thread(scope.__exit__, None, None, None)


def demands_login(table: ConsoleTable) -> bool:
    """Returns whether others than this machine may come: by the address listened at, or by a name of a proxy.

    >>> demands_login(ConsoleTable()), demands_login(ConsoleTable(hosts=["console.example"]))
    (False, True)
    """
    return not all(is_loopback(host) for host in (table.host, *table.hosts))


def refuse_open_door(project: OpenProject) -> None:
    """Raises CallError for a console that others may come to while nobody could log in."""
    table = project.profile.settings.console
    if not demands_login(table):
        return
    with contextlib.closing(Users(project.profile.state)) as users:
        if users.users():
            return
    place = f"console.hosts = {table.hosts!r}" if is_loopback(table.host) else f"console.host = {table.host!r}"
    raise CallError(f"{place} is open to others while nobody may log in. headrace key create NAME --console admin")


@dataclass
class Gate:
    """Tells who asks, and whether the request is one of our own pages'."""

    table: ConsoleTable
    state: Path
    users: Users | None
    """Who may log in; None where nobody need."""
    key: bytes
    now_us: Callable[[], int] = machine_us

    def check_place(self, request: Request) -> None:
        """Refuses names that are not this console's, whatever address they lead to, and pages of other origins."""
        hosts = [value for name, value in request.scope["headers"] if name == b"host"]
        host = hosts[0].decode("latin-1").lower() if len(hosts) == 1 else ""
        if not self._is_own(_name_of(host)):
            hint = "Use the address that headrace up prints, or add the name to [console] hosts of headrace.toml"
            raise RequestError(421, f"this console is not called {host!r}. {hint}")
        if self.users is None and any(name in request.headers for name in _FORWARDED):
            raise RequestError(
                403,
                "a proxy has passed this on, and nobody need log in here. Add the proxy's name to [console] hosts of "
                "headrace.toml, which makes everybody log in",
            )
        origin, own = request.header(b"origin"), f"{'https' if is_secure(request) else 'http'}://{host}"
        if request.method not in _SAFE and origin and origin.lower() != own:
            raise RequestError(403, "this form stands on a page of another site")
        if not _is_from_here(request):
            raise RequestError(403, "a page of another site has asked for this")

    def _is_own(self, name: str) -> bool:
        if name in (self.table.host.lower(), *map(str.lower, self.table.hosts)):
            return bool(name)
        if self.table.host in _ANYWHERE:
            # Nobody rebinds an address: only names can be made to lead here.
            return is_loopback(name) or _is_address(name)
        return is_loopback(name) and (is_loopback(self.table.host))

    def find(self, request: Request) -> Caller:
        """Returns who asks."""
        address = _address_of(request)
        if self.users is None:
            return Caller(find_user(), LEVELS[-1], address, self.make_form_token(b""), self.state)
        token = read_cookie(request)
        hashed = hash_token(token) if token else b""
        shown = self.make_form_token(hashed) if hashed else ""
        return self.renew(Caller("", LEVELS[0], address, shown, self.state, hashed))

    def renew(self, caller: Caller) -> Caller:
        """Returns a caller with the level of this moment."""
        if self.users is None:
            return caller
        session = self.find_session(caller.session)
        if session is None:
            return replace(caller, name="", level=LEVELS[0], session=b"")
        return replace(caller, name=session.user.name, level=session.user.level)

    def find_session(self, hashed: bytes) -> Session | None:
        """Returns a session that is neither too old nor too long unused."""
        session = self.users.find_session(hashed) if self.users is not None and hashed else None
        if session is None or session.user.level not in LEVELS:
            return None
        now = self.now_us()
        # Under a clock that was set back a session could outlive its hours.
        if not 0 <= now - session.made_us < self.table.session_hours * 3600e6:
            return None
        return session if now - session.seen_us < IDLE_SECONDS * 1e6 else None

    async def touch(self, caller: Caller) -> None:
        """Notes once a minute that a session is in use."""
        session = self.find_session(caller.session)
        if self.users is not None and session is not None and self.now_us() - session.seen_us > _TOUCH_US:
            # A full disk is what somebody comes to look at: it must not close the pages.
            with contextlib.suppress(OutsideError):
                await asyncio.to_thread(self.users.touch_session, caller.session, self.now_us())

    def make_form_token(self, hashed: bytes) -> str:
        """Returns the token of the forms that are shown to the bearer of a cookie."""
        return hmac.new(self.key, b"form" + hashed, hashlib.sha256).hexdigest()

    def check_form(self, request: Request, caller: Caller) -> None:
        """Refuses a change that comes from no form of ours."""
        if request.method in _SAFE:
            return
        sent = request.header(b"x-form-token") or read_form(request).get(FORM_TOKEN, "")
        if not caller.form_token or not hmac.compare_digest(
            sent.encode("utf-8", "replace"), caller.form_token.encode()
        ):
            raise RequestError(403, "this form is not one of ours, or too old. Load its page again")


@dataclass
class GuardedApp(App):
    """An application that answers whoever may ask, and nothing else but /live and /ready."""

    gate: Gate = field(kw_only=True)

    async def answer(self, request: Request) -> Response:
        """Returns the response to a request, which is refused unless everything speaks for it."""
        asked = (request.method, request.path)
        if asked in _OPEN_PATHS and asked not in self.routes:
            return await super().answer(request)
        try:
            self.gate.check_place(request)
            caller = self.gate.find(request)
            known = Request({**request.scope, CALLER: caller}, request.body)
            level = self._level_of(request)
            if not caller.may(level):
                return _harden(_refuse_caller(request, caller, level))
            self.gate.check_form(request, caller)
            await self.gate.touch(caller)
        except HeadraceError as error:
            return _harden(_refuse(request, error))
        response = _harden(_shown(request, await super().answer(known)))
        if response.stream is None:
            return response
        return replace(response, stream=self._watch(response.stream, caller, level))

    async def _watch(
        self, stream: AsyncGenerator[bytes, None], caller: Caller, level: str
    ) -> AsyncGenerator[bytes, None]:
        """Yields what a stream does for as long as its reader may read it."""
        async with contextlib.aclosing(stream):
            async for part in stream:
                if not self.gate.renew(caller).may(level):
                    return
                yield part

    def _level_of(self, request: Request) -> str:
        asked = (request.method, request.path)
        if asked == ("GET", "/metrics"):
            return LEVELS[1]
        route = self.routes.get(asked) or self.fallback
        if route is None:
            return LEVELS[1]
        if not isinstance(route, Guarded):
            raise RequestError(403, f"{request.path} states no level, so nobody may use it")
        return route.level


def guard(project: OpenProject, app: App) -> GuardedApp:
    """Returns an application with the same routes, which answers whoever may ask."""
    table = project.profile.settings.console
    try:
        refuse_open_door(project)
        users = Users(project.profile.state) if demands_login(table) else None
    except (StopError, OutsideError) as error:
        # This door alone stays closed by it: the collector stands in the same process.
        raise CallError(str(error)) from error
    # Without a login a page that stands while the doors are started anew must be loaded again.
    gate = Gate(table, project.profile.state, users, users.secret() if users else secrets.token_bytes(32))
    routes = dict(app.routes)
    if users is not None:
        # Only here, so that a console on loopback needs neither the page nor the package of the passwords.
        login = import_module("headrace.console.login")
        login.load_passwords()
        routes |= login.Login(project.declared.name, gate).routes()
    return GuardedApp(routes, app.fallback, app.readiness, app.metrics_text, app.close, gate=gate)


def is_secure(request: Request) -> bool:
    """Returns whether the browser speaks TLS, with us or with a proxy in front.

    Who lies about it only changes the answer to himself.
    """
    return "https" in (request.scope["scheme"], request.header(b"x-forwarded-proto").rpartition(",")[2].strip())


def cookie_name(request: Request) -> str:
    """Returns the name of the session's cookie; under TLS one that no other host and no plain page can set."""
    return f"__Host-{COOKIE}" if is_secure(request) else COOKIE


def read_cookie(request: Request) -> str:
    """Returns the token in the session's cookie, or nothing."""
    wanted = cookie_name(request)
    for part in request.header(b"cookie").split(";"):
        name, _, value = part.strip().partition("=")
        if name == wanted and len(value) <= _MAX_COOKIE:
            return value
    return ""


def make_cookie(request: Request, token: str) -> tuple[bytes, bytes]:
    """Returns the header that gives a browser the session's cookie, or with an empty token takes it away."""
    parts = [f"{cookie_name(request)}={token}", "Path=/", "HttpOnly", "SameSite=Lax"]
    parts += [] if token else ["Max-Age=0"]
    parts += ["Secure"] if is_secure(request) else []
    return b"set-cookie", "; ".join(parts).encode()


def hash_token(token: str) -> bytes:
    """Returns what is kept of a session's token."""
    return hashlib.sha256(token.encode("latin-1", "replace")).digest()


def local_path(text: str) -> str:
    r"""Returns `text` if it is a path of this console, encoded for a header, else the first page.

    >>> local_path("/tables?of=a b"), local_path("//evil.example"), local_path("/\\evil.example")
    ('/tables?of=a%20b', '/', '/')
    """
    if not text.startswith("/") or text.startswith("//") or "\\" in text or not text.isprintable():
        return "/"
    return quote(text, safe="/?&=%:@!$'()*+,;~", errors="replace")


def see(path: str, *headers: tuple[bytes, bytes]) -> Response:
    """Returns the answer that leads to another page."""
    return Response(303, b"", ((b"location", path.encode("ascii")), *headers))


def _refuse_caller(request: Request, caller: Caller, level: str) -> Response:
    if caller.session or not _wants_page(request):
        status = 403 if caller.session else 401
        whose = f"{caller.name} has the level {caller.level}" if caller.session else "nobody has logged in"
        refused = _refuse(request, RequestError(status, f"{request.path} needs the level {level}, {whose}"))
        leads = () if caller.session or b"hx-request" not in request.headers else ((b"hx-redirect", LOGIN.encode()),)
        return replace(refused, headers=(*refused.headers, *leads))
    query = request.scope["query_string"].decode("latin-1")
    path = request.scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")
    next_path = local_path(path) if request.method == "GET" else "/"
    return see(LOGIN + ("" if next_path == "/" else "?next=" + quote(next_path, safe="/")))


def _refuse(request: Request, error: HeadraceError) -> Response:
    return _shown(request, error_response(error))


def _shown(request: Request, response: Response) -> Response:
    """Returns an answer, why there is none as a page to somebody who reads one."""
    if JSON not in response.headers or response.status < 400 or not _wants_page(request):
        return response
    message = msgspec.json.decode(response.body, type=_Refusal).message
    text = tag("p", f"{capitalise(message)}.")
    title = "Not found" if response.status == 404 else "Refused" if response.status < 500 else "It did not work"
    page = respond_plainly(title, put(text, _BACK), status=response.status)
    return replace(page, headers=(*page.headers, *(one for one in response.headers if one != JSON)))


def _wants_page(request: Request) -> bool:
    return "text/html" in request.header(b"accept") and b"hx-request" not in request.headers


def _harden(response: Response) -> Response:
    said = {name for name, _ in response.headers}
    return replace(response, headers=(*response.headers, *(one for one in _HEADERS.items() if one[0] not in said)))


def _name_of(host: str) -> str:
    """Returns the name in a Host header, without port and last dot.

    >>> [_name_of(one) for one in ("a.example.:80", "[::1]:7072", "127.0.0.1", "a:b:c", "evil@localhost")]
    ['a.example', '::1', '127.0.0.1', '', '']
    """
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return ""
    if any(sign in host for sign in "@/?#\\") or not parts.hostname:
        return ""
    return parts.hostname.removesuffix(".")


def _is_from_here(request: Request) -> bool:
    """Returns whether our own page asks, or a person: other sites may lead here, and may neither embed nor probe.

    Where nobody need log in, any site that is open in a browser could else time the answers of SQL.
    """
    if request.header(b"sec-fetch-site") in ("", "same-origin", "none"):
        return True
    asked = (request.method, request.header(b"sec-fetch-mode"), request.header(b"sec-fetch-dest"))
    return asked == ("GET", "navigate", "document")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _address_of(request: Request) -> str:
    """Returns where a request comes from; a proxy on this machine is believed."""
    client = request.scope.get("client")
    peer = str(client[0]) if client else ""
    passed = request.header(b"x-forwarded-for").rpartition(",")[2].strip()
    return passed if passed and is_loopback(peer) and _is_address(passed) else peer

"""The page at which people log in, and what slows down whoever guesses."""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from types import ModuleType

from headrace.base.errors import MissingExtraError, OverloadedError
from headrace.base.http import Answer, Request, Response
from headrace.base.telemetry import get_logger
from headrace.console.frame import NOTHING, put, tag
from headrace.console.guard import (
    FORM_TOKEN,
    LOGIN,
    Gate,
    Guarded,
    audited_by,
    caller_of,
    hash_token,
    local_path,
    make_cookie,
    needs,
    read_cookie,
    read_form,
    see,
)
from headrace.console.plain import respond_plainly
from headrace.console.users import NAME

LOGOUT = "/logout"
MIN_PASSWORD, MAX_PASSWORD = 12, 256

_MAX_WAITING = 8
_WRONG = "The name or the password is wrong."
_TYPED = {"required": "", "autocapitalize": "none"}


@dataclass
class Throttle:
    """How long a guess must wait: the more have failed, the longer; what it remembers is bounded.

    Names share places by a hash that nobody else can foresee, so no flood of names drives one out.
    """

    free: int
    """How many may fail before the first wait."""
    longest_seconds: float
    now: Callable[[], float] = time.monotonic
    num_places: int = 4096
    _key: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    _places: dict[int, tuple[int, float]] = field(default_factory=dict)

    def wait_seconds(self, of: str) -> float:
        """Returns for how long the next guess is too early."""
        failures, at = self._find(of)
        return max(at + self._pause(failures) - self.now(), 0.0)

    def note(self, of: str) -> None:
        """Counts a guess as failed; those at once count before any of them is known to be right."""
        self._places[self._place(of)] = (self._find(of)[0] + 1, self.now())

    def forgive(self, of: str) -> None:
        """Takes back one guess, which was right."""
        failures, at = self._find(of)
        self._places[self._place(of)] = (max(failures - 1, 0), at)

    def _find(self, of: str) -> tuple[int, float]:
        failures, at = self._places.get(self._place(of), (0, -math.inf))
        return (0, at) if self.now() - at > 2 * self.longest_seconds else (failures, at)

    def _pause(self, failures: int) -> float:
        return 0.0 if failures < self.free else min(2.0 ** min(failures - self.free, 30), self.longest_seconds)

    def _place(self, of: str) -> int:
        digest = hashlib.blake2b(of.encode("utf-8", "replace"), key=self._key, digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.num_places


@dataclass
class Login:
    """The routes by which people come in and leave."""

    project: str
    gate: Gate
    by_name: Throttle = field(default_factory=lambda: Throttle(free=10, longest_seconds=60.0))
    """Short, since whoever knows a name could keep its owner out."""
    by_address: Throttle = field(default_factory=lambda: Throttle(free=5, longest_seconds=900.0))
    _waiting: int = 0
    # One at a time: each takes 46 MiB, and the collector needs the processor.
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "password"))

    def routes(self) -> dict[tuple[str, str], Guarded]:
        """Returns the routes, all of which anybody may use."""
        found: dict[tuple[str, str], Answer] = {
            ("GET", LOGIN): self.show,
            ("POST", LOGIN): self.enter,
            ("POST", LOGOUT): self.leave,
        }
        return {asked: needs("anybody", answer) for asked, answer in found.items()}

    async def show(self, request: Request) -> Response:
        """Returns the form, or leads on who need not fill it in."""
        next_path = local_path(request.query.get("next", "/"))
        if caller_of(request).may("viewer"):
            return see(next_path)
        token = read_cookie(request) or secrets.token_urlsafe(32)
        return self._write(request, token, next_path=next_path)

    async def enter(self, request: Request) -> Response:
        """Opens a session for whoever knows a user's password."""
        form = read_form(request)
        name, password = form.get("name", ""), form.get("password", "")
        next_path = local_path(form.get("next", "/"))
        address = caller_of(request).address
        refused = self._throttle(request, name, address, next_path=next_path)
        if refused is not None or self.gate.users is None:
            return refused or see(next_path)
        found = self.gate.users.find(name) if NAME.fullmatch(name) else None
        try:
            is_right = await self._is_password(password, found[1] if found else "")
        except OverloadedError:
            self._forgive(name, address)
            raise
        if found is None or not is_right:
            get_logger("console").warning("a login as %r from %s was refused", name[:64], address)
            return self._write(request, read_cookie(request), next_path=next_path, wrong=_WRONG, status=401)
        self._forgive(name, address)
        user, kept = found
        # A token that stood before the login may be known to others.
        token, now = secrets.token_urlsafe(32), self.gate.now_us()
        since = now - int(self.gate.table.session_hours * 3600e6)
        open_session = partial(self.gate.users.open_session, password=kept, now_us=now, since_us=since)
        async with audited_by(replace(caller_of(request), name=name, level=user.level), "login"):
            await asyncio.to_thread(open_session, hash_token(token), name)
        return see(next_path, make_cookie(request, token))

    def _forgive(self, name: str, address: str) -> None:
        self.by_name.forgive(name)
        self.by_address.forgive(address)

    async def leave(self, request: Request) -> Response:
        """Ends the session."""
        caller = caller_of(request)
        if self.gate.users is not None and caller.session:
            async with audited_by(caller, "logout"):
                await asyncio.to_thread(self.gate.users.close_session, caller.session)
        return see(LOGIN, make_cookie(request, ""))

    def _throttle(self, request: Request, name: str, address: str, *, next_path: str) -> Response | None:
        """Returns the refusal of a guess that comes too early, and counts one that does not."""
        seconds = math.ceil(max(self.by_name.wait_seconds(name), self.by_address.wait_seconds(address)))
        if not seconds:
            self.by_name.note(name)
            self.by_address.note(address)
            return None
        wrong = f"Too many attempts. The next one counts in {seconds} s."
        shown = self._write(request, read_cookie(request), next_path=next_path, wrong=wrong, status=429)
        return replace(shown, headers=(*shown.headers, (b"retry-after", str(seconds).encode())))

    async def _is_password(self, password: str, kept: str) -> bool:
        """Returns whether a hash is that of the password; no hash at all takes as long."""
        if self._waiting >= _MAX_WAITING:
            raise OverloadedError("too many log in at this moment")
        module = load_passwords()
        check = partial(module.is_password, password[:MAX_PASSWORD], kept or module.UNKNOWN)
        self._waiting += 1
        try:
            is_right: bool = await asyncio.get_running_loop().run_in_executor(self._thread, check)
        finally:
            self._waiting -= 1
        return is_right and bool(kept) and len(password) <= MAX_PASSWORD

    def _write(self, request: Request, token: str, *, next_path: str, wrong: str = "", status: int = 200) -> Response:
        fields = {FORM_TOKEN: self.gate.make_form_token(hash_token(token)), "next": next_path}
        hidden = [tag("input", type="hidden", name=name, value=value) for name, value in fields.items()]
        form = tag(
            "form",
            *hidden,
            tag("label", "Name", for_="name"),
            tag("input", id="name", name="name", autocomplete="username", autofocus="", **_TYPED),
            tag("label", "Password", for_="password"),
            tag("input", id="password", name="password", type="password", autocomplete="current-password", **_TYPED),
            tag("button", "Log in"),
            method="post",
            action=LOGIN,
        )
        said = tag("p", wrong, role="alert") if wrong else NOTHING
        page = respond_plainly(f"Log in to {self.project}", put(said, form), status=status)
        if read_cookie(request) == token:
            return page
        return replace(page, headers=(*page.headers, make_cookie(request, token)))


def load_passwords() -> ModuleType:
    """Returns the module that hashes passwords; raises MissingExtraError if its package is not installed."""
    try:
        return import_module("headrace.console.password")
    except ModuleNotFoundError as error:
        if error.name != "argon2":
            raise
        raise MissingExtraError("passwords need the package 'argon2-cffi'.  pip install 'headrace[login]'") from error

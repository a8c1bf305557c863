"""Who may do what on the console's pages: on loopback everybody, elsewhere whoever has logged in and may.

A route states the level that it needs, `needs("operator", promote)`; one that states none is refused to all. Every
request that may change something carries a token that only our own pages know: `form_token(request)`, as the field
`form_token` of a form or the header `x-form-token`. A change stands within `audited(request, "what", ...)`.
`guard(project, app)` returns the application that holds all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from headrace.base.audit import Act, Outcome
from headrace.base.audit import audited as audited_act
from headrace.base.errors import RequestError
from headrace.base.http import Answer, Request, Response

LEVELS = ("anybody", "viewer", "operator", "admin")
"""Each may do what those before it may; `anybody` needs no login."""

FORM_TOKEN = "form_token"  # noqa: S105 - the name of a field
CALLER = "headrace.caller"


@dataclass(frozen=True)
class Caller:
    """Who asks."""

    name: str
    level: str
    address: str
    form_token: str
    state: Path
    """Where the audit log stands."""

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
            raise RequestError(403, f"{request.path!r} needs the level {self.level}")
        return await self.answer(request)


def needs(level: str, answer: Answer) -> Guarded:
    """Returns a route that callers of a level may use.

    >>> needs("viewr", None)
    Traceback (most recent call last):
    ValueError: tuple.index(x): x not in tuple
    """
    LEVELS.index(level)
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
    if request.header(b"content-type").partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        return {}
    return dict(parse_qsl(request.body.decode("latin-1"), keep_blank_values=True))


@contextlib.asynccontextmanager
async def audited(
    request: Request, what: str, *, subject: str = "", given: Mapping[str, str] | None = None
) -> AsyncIterator[Outcome]:
    """Writes an act into the audit log before it is done, and what became of it after.

    async with audited(request, "model promote", subject="home", given={"bundle": hash}) as outcome: ...
    """
    caller = caller_of(request)
    act = Act(caller.name, caller.level, what, subject, given or {}, caller.address)
    scope = audited_act(caller.state, act)
    # Both ends wait for the disk, and the collector shares this loop.
    outcome = await asyncio.to_thread(scope.__enter__)
    try:
        yield outcome
    except BaseException as error:
        await asyncio.to_thread(scope.__exit__, type(error), error, error.__traceback__)
        raise
    await asyncio.to_thread(scope.__exit__, None, None, None)

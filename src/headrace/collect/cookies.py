"""The cookie that remembers a visitor's id: it adopts the first id seen and never re-keys an event."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, unquote

NAME = "headrace_visitor"

_MAX_ID_LENGTH = 200


@dataclass(frozen=True)
class CookieOptions:
    """How long and where the cookie lives."""

    days: int = 365
    domain: str = ""
    same_site: str = "Lax"


def read_visitor(cookie_header: str) -> str:
    """Returns the visitor's id in a Cookie header, or nothing.

    >>> read_visitor("a=1; headrace_visitor=ann%201; b=2")
    'ann 1'
    """
    for part in cookie_header.split(";"):
        name, _, value = part.strip().partition("=")
        if name == NAME:
            return unquote(value.strip('"'))
    return ""


def visitor_cookie(visitor: str, options: CookieOptions, *, secure: bool) -> bytes:
    """Returns the Set-Cookie header that remembers a visitor, or nothing for an id that is too long.

    >>> visitor_cookie("ann", CookieOptions(days=1), secure=False)
    b'headrace_visitor=ann; Path=/; Max-Age=86400; HttpOnly; SameSite=Lax'
    """
    if len(visitor) > _MAX_ID_LENGTH:
        return b""
    parts = [f"{NAME}={quote(visitor, safe='')}", "Path=/", f"Max-Age={options.days * 86400}", "HttpOnly"]
    parts.append(f"SameSite={options.same_site}")
    if options.domain:
        parts.append(f"Domain={options.domain}")
    if secure:
        parts.append("Secure")
    return "; ".join(parts).encode()

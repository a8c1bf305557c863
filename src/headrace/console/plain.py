"""A page without the console's frame: the login, and what is refused to somebody who may not see the rest."""

from __future__ import annotations

import secrets

from headrace.base.http import Response
from headrace.console.frame import MARK, Html, document, put, read_asset, tag

_STYLE = """
* { box-sizing: border-box; margin: 0 }
body { background: var(--ground); color: var(--text); min-height: 100vh; display: grid; place-items: center }
main { width: min(28rem, 100%); padding: var(--s5) }
main > svg { width: 44px; height: 44px }
h1 { font-size: 1.8rem; line-height: 1.15; letter-spacing: -.025em; margin: var(--s4) 0; overflow-wrap: anywhere }
p { margin-top: var(--s4); overflow-wrap: anywhere }
a { color: var(--link) }
label { display: block; font-weight: 600; margin: var(--s4) 0 var(--s1) }
input, button { width: 100%; padding: var(--s3) var(--s4); font: inherit; border-radius: 10px }
input { color: inherit; background: var(--raised); border: 1px solid var(--idle) }
button { margin-top: var(--s5); font-weight: 700; border: 0; background: var(--accent); color: #0a0c11 }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px }
[role=alert] { border-left: 4px solid var(--bad); padding-left: var(--s3) }
"""
"""Beside the tokens of all pages: before the login there is nothing else to fetch."""


def respond_plainly(title: str, inside: Html, *, status: int = 200) -> Response:
    """Returns a page that asks nobody for anything."""
    nonce = secrets.token_hex(12)
    style = tag("style", Html(read_asset("tokens.css").body.decode() + _STYLE), nonce=nonce)
    main = tag("main", Html(MARK), tag("h1", title), inside)
    text = document(f"{title} · Headrace", style, put(main))
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; img-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    )
    headers = ((b"content-type", b"text/html; charset=utf-8"), (b"content-security-policy", policy.encode()))
    return Response(status, text.encode("utf-8", "replace"), headers)

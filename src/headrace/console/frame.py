"""What stands around each page of the console, and the parts that all are made of.

What comes from outside is text, and escaped here; only `Html` is taken as it is.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from html import escape
from importlib import resources
from urllib.parse import quote, urlencode

from headrace.base.http import Request, Response
from headrace.console.figures import format_time

MARK = (
    '<svg viewBox="0 0 32 32" aria-hidden="true"><rect width="32" height="32" rx="8" fill="#ffb547"/>'
    '<g fill="none" stroke="#0a0c11" stroke-width="3" stroke-linecap="round"><path d="M6 12q5-5 10 0t10 0"/>'
    '<path d="M6 20q5-5 10 0t10 0" opacity=".55"/></g></svg>'
)

NAV = (
    ("/", "Home"),
    ("/live", "Live"),
    ("/tables", "Tables"),
    ("/models", "Models"),
    ("/experiments", "Experiments"),
    ("/lineage", "Lineage"),
    ("/verify", "Verify"),
)
"""The pages, in the order of a click's life."""

SHORT = 12
"""So much of a hash is shown."""

_YEAR = (b"cache-control", b"public, max-age=31536000, immutable")
_STYLES = ("tokens.css", "console.css", "uplot.css")
_VOID = frozenset(("input", "link", "meta"))
"""Elements that have no end."""
_KINDS = {"css": b"text/css; charset=utf-8", "js": b"text/javascript; charset=utf-8"}


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


NOTHING = Html("")


def put(*parts: object) -> Html:
    """Returns parts one after the other; what is no markup is escaped.

    >>> put(Html("<b>"), "a < b", Html("</b>"))
    '<b>a &lt; b</b>'
    """
    return Html("".join(part if isinstance(part, Html) else escape(str(part)) for part in parts))


def tag(kind: str, *inside: object, **attributes: object) -> Html:
    """Returns an element; of a name in Python `_` stands for `-`, and one behind it for nothing.

    >>> tag("a", "5 > 4", href="/?a&b", class_="up", aria_label="five", hidden=None)
    '<a href="/?a&amp;b" class="up" aria-label="five">5 &gt; 4</a>'
    """
    listed = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return put(Html(f"<{kind}{listed}>"), *inside, Html("" if kind in _VOID else f"</{kind}>"))


def document(title: str, head: Html, body: Html, *, kind: str | None = "desk") -> str:
    """Returns a whole page: what the head of each has, then its own; all but the kind `desk` are always dark."""
    start = Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">')
    inside = put(tag("head", start, tag("title", title), head), tag("body", body))
    return f"<!doctype html>{tag('html', inside, lang='en', class_=kind)}"


FAVICON = tag("link", rel="icon", href="/favicon.ico", type="image/svg+xml")


def address(path: str, **query: str | None) -> str:
    """Returns the address of a page."""
    given = {name: value for name, value in query.items() if value is not None}
    return quote(path, errors="replace") + (f"?{urlencode(given, errors='replace')}" if given else "")


# Parts.


def link(text: object, path: str, **query: str | None) -> Html:
    """Returns a link to a page of the console."""
    return tag("a", text, href=address(path, **query))


def code(text: str, *, short: bool = False) -> Html:
    """Returns an id; of a long one the beginning, the whole of which is told to a pointer."""
    if short and len(text) > SHORT:
        return tag("code", text[:SHORT], title=text, class_="code")
    return tag("code", text, class_="code")


def when(time_us: int | None) -> Html:
    """Returns an instant, to the second."""
    return tag("span", format_time(time_us)[:19] if time_us else "-", class_="code")


def offsets(found: Sequence[int]) -> Html:
    """Returns an offset for each partition."""
    return code(" · ".join(f"{partition}: {offset:,}" for partition, offset in enumerate(found)))


def badge(kind: str, text: str) -> Html:
    """Returns a state: `good`, `bad`, `warn`, or nothing of these."""
    return tag("span", text, class_=f"badge {kind}".strip())


def panel(title: str, *inside: object, note: object = "", **attributes: object) -> Html:
    """Returns a part of a page under its own heading."""
    told = tag("p", note) if note else ""
    return tag("section", tag("h2", title), told, *inside, **{"class_": "panel", **attributes})


def figures(found: Iterable[tuple[str, object, object]]) -> Html:
    """Returns large figures side by side: name, figure, and a note below."""
    cells = [
        tag("div", tag("dt", name), tag("dd", value), tag("dd", note, class_="note") if note else "")
        for name, value, note in found
    ]
    return tag("dl", *cells, class_="figures")


def facts(found: Iterable[tuple[str, object]]) -> Html:
    """Returns facts, the name of each before it."""
    return tag("dl", *[put(tag("dt", name), tag("dd", value)) for name, value in found], class_="facts")


def table(
    name: str,
    heads: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numbers: Iterable[int] = (),
    wide: int | None = None,
) -> Html:
    """Returns a table, which scrolls by itself where it is too wide.

    The columns `numbers` stand to the right. The column `wide` has sentences; on a phone its rows are stacked.
    """
    right = set(numbers)
    kinds = ["number" if place in right else "wide" if place == wide else None for place in range(len(heads))]
    head = tag("tr", *[tag("th", text, scope="col", class_=kind) for text, kind in zip(heads, kinds, strict=True)])
    body = [
        tag("tr", *[tag("td", _shown(cell), class_=kind) for cell, kind in zip(row, kinds, strict=True)])
        for row in rows
    ]
    inside = tag("table", tag("thead", head), tag("tbody", *body), class_=None if wide is None else "stacks")
    return tag("div", inside, class_="scroll", tabindex=0, role="region", aria_label=name)


def _shown(cell: object) -> object:
    if isinstance(cell, bool) or not isinstance(cell, int):
        return "-" if cell is None else cell
    return f"{cell:,}"


def command(text: str) -> Html:
    """Returns a command to type."""
    return tag("pre", text, tabindex=0)


def empty(title: str, sentence: object, what_to_do: str = "") -> Html:
    """Returns what stands where there is nothing to show: why, and what to do."""
    told = command(what_to_do) if what_to_do else ""
    return tag("section", tag("h2", title), tag("p", sentence), told, class_="panel empty")


def waiting(request: Request, text: str) -> Html:
    """Returns what stands where an answer is still on its way; the page asks again by itself until it is there."""
    # As it was sent: a name may hold what means something else in an address.
    path, query = (request.scope[part].decode("latin-1") for part in ("raw_path", "query_string"))
    again = f"{path}?{query}" if query else path
    asks = {"hx_get": again, "hx_trigger": "load", "hx_target": "main", "hx_select": "main", "hx_swap": "outerHTML"}
    return tag("section", tag("p", text, class_="wait", role="status"), class_="panel", **asks)


# Pages.


@dataclass(frozen=True)
class Sheet:
    """A page of the console without its frame."""

    place: str
    """Where it stands in the bar."""
    title: str
    lead: object
    """One sentence: what it shows."""
    body: Html
    following: tuple[str, str] = ("", "")
    """The page that makes sense next, and why."""
    crumb: Html = NOTHING
    scripts: tuple[str, ...] = ("htmx.js",)
    status: int = 200


def respond(sheet: Sheet, *, project: str, nonce: str, who: Html = NOTHING) -> Response:
    """Returns a page, which asks nobody but this door."""
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
    headers = ((b"content-type", b"text/html; charset=utf-8"), (b"content-security-policy", policy.encode("latin-1")))
    return Response(sheet.status, _write(sheet, project, nonce, who).encode("utf-8", "replace"), headers)


def _write(sheet: Sheet, project: str, nonce: str, who: Html) -> str:
    head = put(
        FAVICON,
        # Nothing of htmx that would need eval or styles of its own.
        tag("meta", name="htmx-config", content='{"includeIndicatorCSS":false}'),
        *[tag("link", rel="stylesheet", href=asset_path(name), nonce=nonce) for name in _STYLES],
        *[tag("script", src=asset_path(name), nonce=nonce, defer="") for name in sheet.scripts],
    )
    body = put(
        tag("a", "Skip to the page", class_="skip", href="#main"),
        _bar(sheet.place, project, who),
        tag("main", _heading(sheet), sheet.body, _next(sheet), id="main"),
        tag("footer", f"Headrace, project {project}. Times are UTC."),
    )
    return document(f"{sheet.title} · Headrace", head, body)


def _bar(place: str, project: str, who: Html) -> Html:
    brand = tag("a", Html(MARK), "Headrace", class_="brand", href="/live")
    return tag("header", brand, nav(place), tag("div", project, who, class_="whose"), class_="top")


def nav(place: str) -> Html:
    """Returns the bar of pages, of which one is open."""
    links = [tag("a", name, href=path, aria_current="page" if path == place else None) for path, name in NAV]
    return tag("nav", *links, aria_label="Pages")


def _heading(sheet: Sheet) -> Html:
    crumb = tag("p", sheet.crumb, class_="crumb") if sheet.crumb else ""
    return put(crumb, tag("h1", sheet.title), tag("p", sheet.lead, class_="lead"))


def _next(sheet: Sheet) -> Html:
    path, why = sheet.following
    name = next((name for one, name in NAV if one == path), path)
    return tag("p", "Next: ", link(name, path), f", {why}", class_="next") if path else NOTHING


# Assets.


@dataclass(frozen=True)
class Asset:
    """A file that pages ask for by an address that holds its hash."""

    body: bytes
    packed: bytes
    kind: bytes
    hash: str


@cache
def read_asset(name: str) -> Asset:
    """Returns a file of the wheel, compressed once."""
    body = resources.files("headrace.console").joinpath("assets", name).read_bytes()
    packed = gzip.compress(body, 9, mtime=0)
    return Asset(body, packed, _KINDS[name.rpartition(".")[2]], blake2b(body, digest_size=6).hexdigest())


def asset_path(name: str) -> str:
    """Returns the address of an asset, which changes with its bytes."""
    stem, _, kind = name.rpartition(".")
    return f"/assets/{stem}.{read_asset(name).hash}.{kind}"


ASSETS = ("tokens.css", "console.css", "uplot.css", "htmx.js", "uplot.js", "live.js")
"""What pages ask for, beside what they are."""


async def show_asset(name: str, request: Request) -> Response:
    """Returns an asset, which a browser may keep for ever."""
    asset = read_asset(name)
    headers = [(b"content-type", asset.kind), _YEAR, (b"vary", b"accept-encoding")]
    if "gzip" in request.header(b"accept-encoding"):
        return Response(200, asset.packed, (*headers, (b"content-encoding", b"gzip")))
    return Response(200, asset.body, headers)

"""The HTML of the console's pages. All that comes from outside is escaped here, once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib import resources
from urllib.parse import quote, urlencode

from headrace.console.frame import FAVICON, MARK, Html, document, nav, put
from headrace.endpoints.endpoint import Row, Shown, ShownItem

ICON = MARK.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"')

_COLUMNS = ("position", "item", "title", "because", "score", "propensity")
_SHORT = 8


@dataclass(frozen=True)
class Named:
    """What an item is called."""

    id: str
    title: str
    genre: str

    def poster(self, *, wide: bool = False) -> str:
        """Returns the address of its poster."""
        values = {"item": self.id, "title": self.title, "genre": self.genre}
        return "/poster?" + urlencode({**values, "wide": "1"} if wide else values, errors="replace")


@dataclass(frozen=True)
class Frame:
    """What stands around each page."""

    project: str
    visitor: str
    nonce: str
    collector: str = ""
    """Where events go; nothing if nobody takes them."""
    is_chosen: bool = False
    """Whether somebody chose to be this visitor."""

    def link(self, path: str, **values: str) -> str:
        """Returns the address of one of these pages, for the same visitor."""
        if self.is_chosen:
            values["visitor"] = self.visitor
        query = urlencode(values, errors="replace")
        return quote(path, errors="replace") + (f"?{query}" if query else "")


def write_home(frame: Frame, shown: Shown, names: Sequence[Sequence[Named]]) -> str:
    """Returns the page of carousels; `names` tells what their items are called."""
    rows = []
    for number, (row, named) in enumerate(zip(shown.rows, names, strict=True)):
        if row.items:
            rows.append(_row(frame, shown, (row, named), has_hero=number == 0))
    body = f'<main id="main">{"".join(rows)}{_decision(shown, names)}</main>{_foot(frame, shown.page)}'
    return _page(frame, ("Home", "Streamline"), _pills(shown) + _who(frame), body)


def write_empty(frame: Frame, heading: str, sentence: str, *, poster: str, seconds: int = 0) -> str:
    """Returns a page that has nothing to show and says why; it is loaded again after some seconds."""
    body = (
        f'<main id="main" class="empty"><img src="{escape(poster)}" width="300" height="450" alt="">'
        f"<h1>{escape(heading)}</h1><p>{escape(sentence)}</p></main>{_foot(frame, '')}"
    )
    again = f'<meta http-equiv="refresh" content="{seconds}">' if seconds else ""
    return _page(frame, ("Home", "Streamline"), _who(frame), body, head=again)


def write_watch(frame: Frame, named: Named, *, recommendation: str, session: str) -> str:
    """Returns the page on which one title is played."""
    poster, title = escape(named.poster()), escape(named.title)
    data = f' data-recommendation="{escape(recommendation)}"' if recommendation else ""
    body = (
        f'<main id="main" class="watch"><img class="behind" src="{escape(named.poster(wide=True))}" alt="">'
        f'<div class="stage"><img src="{poster}" width="300" height="450" alt="Poster of {title}"><div>'
        f'<p class="kicker">Now playing</p><h1>{title}</h1>{_genre(named)}'
        f'<section id="player" class="player" aria-label="Player" data-item="{escape(named.id)}"'
        f' data-session="{escape(session)}"{data}><div><button type="button">Pause</button>'
        '<progress max="10" value="0" aria-label="Until the next heartbeat"></progress><time>0:00</time></div>'
        f'<p>Playing</p></section><a class="button" href="{escape(frame.link("/"))}">← Back to home</a>'
        f"</div></div></main>{_foot(frame, '')}"
    )
    script = f'<script nonce="{frame.nonce}">{_text("player.js")}</script>'
    return _page(frame, ("Watch", f"{named.title} · Streamline"), _who(frame), body + script)


def _page(frame: Frame, names: tuple[str, str], bar: str, body: str, *, head: str = "") -> str:
    name, title = names
    own = (
        f'<meta name="theme-color" content="#0a0c11">{head}'
        f'<style nonce="{frame.nonce}">{_text("assets/tokens.css")}{_text("pages.css")}</style>{_snippet(frame, name)}'
    )
    inside = (
        '<a class="skip" href="#main">Skip to the titles</a><header class="bar">'
        f'<a class="brand" href="{escape(frame.link("/"))}">{MARK}Streamline</a>{nav("/")}{bar}</header>{body}'
    )
    return document(title, put(FAVICON, Html(own)), Html(inside), kind=None)


def _snippet(frame: Frame, name: str) -> str:
    """Returns the two lines that track a page."""
    if not frame.collector:
        # What the page tells is dropped.
        return f'<script nonce="{frame.nonce}">window.headrace = []</script>'
    return (
        f'<script src="{escape(frame.collector)}/headrace.js" data-key="dev" data-visitor="{escape(frame.visitor)}" '
        f'defer></script>\n<script nonce="{frame.nonce}">(window.headrace = window.headrace || [])'
        f'.push(["page", "{name}"])</script>'
    )


def _row(frame: Frame, shown: Shown, row: tuple[Row, Sequence[Named]], *, has_hero: bool) -> str:
    """Returns one carousel; that of the hero begins with the second item."""
    items = list(zip(row[0].items, row[1], strict=True))
    title, recommendation = escape(row[0].title), escape(shown.recommendation_id or "")
    thread = f' data-headrace-recommendation="{recommendation}"' if recommendation else ""
    hero = _hero(frame, shown, row[0], items.pop(0)) if has_hero else ""
    cards = "".join(_card(frame, shown, row[0], item) for item in items)
    return (
        f'<section aria-label="{title}" data-headrace-list="{title}"{thread}>{hero}'
        f'<div class="row"><h2>{title}</h2><ul class="cards" role="list">{cards}</ul></div></section>'
    )


def _hero(frame: Frame, shown: Shown, row: Row, item: tuple[ShownItem, Named]) -> str:
    one, named = item
    return (
        f'<a class="hero" {_place(frame, shown, one)}><img src="{escape(named.poster(wide=True))}" width="964" '
        f'height="450" alt="" fetchpriority="high"><div class="words"><p class="kicker">First for you</p>'
        f'<h1>{escape(named.title)}</h1>{_genre(named)}<span class="play"><svg width="14" height="16" '
        f'viewBox="0 0 14 16" aria-hidden="true"><path d="M0 0l14 8-14 8z"/></svg>Play</span></div>'
        f"{_why(shown, row, one)}</a>"
    )


def _card(frame: Frame, shown: Shown, row: Row, item: tuple[ShownItem, Named]) -> str:
    one, named = item
    about = escape(", ".join(filter(None, (named.title, named.genre))))
    return (
        f'<li><a class="card" aria-label="{about}" {_place(frame, shown, one)}><div class="art">'
        f'<img src="{escape(named.poster())}" width="300" height="450" loading="lazy" alt="">'
        f"{_why(shown, row, one)}</div>"
        f'<span class="name">{escape(named.title)}</span>{_genre(named)}</a></li>'
    )


def _place(frame: Frame, shown: Shown, one: ShownItem) -> str:
    """Returns where a click leads, and what the tracker tells of it."""
    told = {"recommendation": shown.recommendation_id} if shown.recommendation_id else {}
    link = escape(frame.link(f"/watch/{one.id}", **told))
    category = f' data-headrace-category="{escape(one.category)}"' if one.category else ""
    item = escape(one.id)
    return f'href="{link}" data-headrace-item="{item}" data-headrace-position="{one.position}"{category}'


def _genre(named: Named) -> str:
    return f'<p class="genre">{escape(named.genre.replace("-", " "))}</p>' if named.genre else ""


def _why(shown: Shown, row: Row, one: ShownItem) -> str:
    values = {
        **({"because": one.why} if one.why else {}),
        "position": str(one.position),
        "score": f"{one.score:.4g}",
        "propensity": f"{one.propensity:.3g}",
        "bundle": row.bundle[:_SHORT],
        "decision": shown.recommendation_id or "not logged",
    }
    lines = "".join(f"<b>{name}</b><span>{escape(value)}</span>" for name, value in values.items())
    return f'<div class="why" aria-hidden="true">{lines}</div>'


def _pills(shown: Shown) -> str:
    arm, experiment = shown.arm or "", shown.experiment or ""
    kind, text = (arm, f"{arm} · {experiment}") if arm else ("", "no trial")
    pills = [
        f'<span class="pill {escape(kind)}" title="The arm of this visitor"><i></i><span>{escape(text)}</span></span>'
    ]
    if shown.degraded:
        told = escape(", ".join(shown.degraded))
        pills.append(
            f'<span class="pill warn" title="What is other than planned"><i></i><span>degraded: {told}</span></span>'
        )
    return "".join(pills)


def _who(frame: Frame) -> str:
    visitor = escape(frame.visitor)
    return (
        f'<details class="who"><summary class="pill" title="{visitor}"><span>You are {visitor}</span></summary>'
        '<form action="/" method="get"><p>Everybody gets a page of their own. Look at it as somebody else:</p><div>'
        '<input name="visitor" aria-label="Visitor" placeholder="a name" maxlength="200" required autocomplete="off">'
        '<button>Be them</button></div><a class="button" href="/?visitor=">Be somebody new</a></form></details>'
    )


def _decision(shown: Shown, names: Sequence[Sequence[Named]]) -> str:
    """Returns what was decided, for those who have no pointer to hover with."""
    rows = "".join(_decided(*one) for one in zip(shown.rows, names, strict=True))
    if shown.recommendation_id:
        told = f"Logged before it was shown as <code>{escape(shown.recommendation_id)}</code>."
    else:
        told = "It could not be logged, so it takes no part in any analysis."
    arm = (
        f"The arm is {escape(shown.arm)} of {escape(shown.experiment or '')}."
        if shown.arm
        else "No trial runs for this visitor."
    )
    heads = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    return (
        f'<details class="decision"><summary>Why these titles?</summary><div class="inside"><p>{told} {arm} '
        f"A propensity is the chance that the item came to its place, given those above.</p>"
        f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _decided(row: Row, names: Sequence[Named]) -> str:
    by = f'<tr><th colspan="{len(_COLUMNS)}">{escape(row.title)}, ranked by <code>{escape(row.bundle)}</code></th></tr>'
    return by + "".join(
        f"<tr><td>{one.position}</td><td><code>{escape(one.id)}</code></td><td>{escape(named.title)}</td>"
        f"<td>{escape(one.why or '-')}</td><td>{one.score:.4g}</td><td>{one.propensity:.3g}</td></tr>"
        for one, named in zip(row.items, names, strict=True)
    )


def _foot(frame: Frame, page: str) -> str:
    shown = f"the page {escape(page)} of " if page else ""
    tracked = (
        ""
        if frame.collector
        else " Nothing is tracked: no collector takes the key dev. Start one with: headrace up collector"
    )
    return f"<footer>Headrace shows {shown}the project {escape(frame.project)}.{tracked}</footer>"


@cache
def _text(name: str) -> str:
    return resources.files("headrace.console").joinpath(name).read_text(encoding="utf-8").strip()

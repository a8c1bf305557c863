"""Posters, drawn: the same item, title and genre always give the same SVG, which asks nobody for anything."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from hashlib import blake2b
from html import escape
from random import Random

from headrace.console import scenes
from headrace.console.scenes import HEIGHT, Canvas, Colours

_POSTER = (-150.0, 150.0)
# As 15 to 7, with the focus right of what is written beside it.
_WIDE = (-675.0, 289.0)

_MOST_LINES = 4
_MOST_LETTERS = 60
_TURN = 0.035
_SMALL_WORDS = frozenset(("a", "an", "and", "at", "for", "in", "of", "on", "the", "to", "with"))

_SERIF = "Georgia, 'Times New Roman', 'DejaVu Serif', serif"
_SANS = "'Helvetica Neue', 'Segoe UI', Roboto, Arial, 'DejaVu Sans', sans-serif"
_NARROW = "'Avenir Next Condensed', 'Roboto Condensed', 'Arial Narrow', 'DejaVu Sans Condensed', sans-serif"


@dataclass(frozen=True)
class _Style:
    """How a genre looks."""

    scene: Callable[[Canvas], str]
    colours: Colours
    font: str = _SANS


_STYLES: Mapping[str, _Style] = {
    "action": _Style(scenes.draw_action, Colours("#2b0a0a", "#c8321e", "#ffd166", "#f77f00", "#190406"), _NARROW),
    "adventure": _Style(scenes.draw_adventure, Colours("#0b3954", "#f4a259", "#ffe8b6", "#1f6f78", "#082032")),
    "animation": _Style(scenes.draw_animation, Colours("#3a0ca3", "#4cc9f0", "#ffd60a", "#f72585", "#1b0a4b")),
    "comedy": _Style(scenes.draw_comedy, Colours("#f8821a", "#ffc93c", "#fff0b3", "#ef476f", "#3d1308")),
    "crime": _Style(scenes.draw_crime, Colours("#0d1321", "#3e5c76", "#f0ebd8", "#1d2d44", "#070b14"), _NARROW),
    "documentary": _Style(scenes.draw_documentary, Colours("#10302f", "#3f7d6e", "#e9dcc0", "#1d4a48", "#08191a")),
    "drama": _Style(scenes.draw_drama, Colours("#2d1e2f", "#b5525c", "#f7c59f", "#803d5c", "#180f1b"), _SERIF),
    "family": _Style(scenes.draw_family, Colours("#3ca6d8", "#c9efe3", "#fff4d0", "#ff7a59", "#1e5a4c")),
    "fantasy": _Style(scenes.draw_fantasy, Colours("#1a1446", "#8a4fa8", "#ffe6a7", "#4b2a86", "#0e0a2b"), _SERIF),
    "history": _Style(scenes.draw_history, Colours("#4a2511", "#d79a4b", "#f6e1b0", "#8c4d1f", "#251106"), _SERIF),
    "horror": _Style(scenes.draw_horror, Colours("#0a0507", "#3b0a12", "#e63946", "#1f0509", "#050203"), _SERIF),
    "music": _Style(scenes.draw_music, Colours("#240046", "#7b2cbf", "#ff9e00", "#e0267c", "#0b0019")),
    "mystery": _Style(scenes.draw_mystery, Colours("#0a1f2b", "#35606e", "#f2d98d", "#16394a", "#04101a"), _SERIF),
    "nature": _Style(scenes.draw_nature, Colours("#1f6f6b", "#e9d985", "#fff3c4", "#386641", "#0b2318")),
    "romance": _Style(scenes.draw_romance, Colours("#5f0f40", "#ff8c69", "#ffd6ba", "#b5385c", "#2c0620"), _SERIF),
    "science-fiction": _Style(
        scenes.draw_science_fiction, Colours("#03071e", "#1d3b8b", "#7df9ff", "#5a3fd1", "#01020f")
    ),
    "sport": _Style(scenes.draw_sport, Colours("#0a5c36", "#34a65f", "#f8f9fa", "#e4572e", "#06311d"), _NARROW),
    "thriller": _Style(scenes.draw_thriller, Colours("#7d1f12", "#e8562a", "#fbe9d0", "#c23b1c", "#120806"), _NARROW),
    "war": _Style(scenes.draw_war, Colours("#22261a", "#8a8558", "#f2e3b3", "#4b4d33", "#11130b"), _NARROW),
    "western": _Style(scenes.draw_western, Colours("#8c2f1b", "#f2a65a", "#ffe0a3", "#a8431f", "#33100a"), _SERIF),
}


def draw_poster(item: str, title: str, genre: str) -> str:
    """Returns the poster of an item, two by three, with its title on it.

    >>> draw_poster("item-1", "The Paper Moon", "drama") == draw_poster("item-1", "The Paper Moon", "drama")
    True
    """
    title, genre = _plain(title)[:_MOST_LETTERS] or "?", _plain(genre)[:_MOST_LETTERS]
    style, canvas = _prepare(item, genre, _POSTER)
    light = scenes.mix(canvas.colours.glow, "#ffffff", 0.65)
    label = (
        f'<text x="-128" y="34" fill="{light}" font-family="{_SANS}" font-size="10" letter-spacing="3.2" '
        f'font-weight="600" opacity=".85">{escape(genre.replace("-", " ").upper())}</text>'
    )
    return _document(canvas, style, escape(title), label + _letter(title, style, light))


def draw_wide(item: str, genre: str) -> str:
    """Returns the same scene for a wide place, with room on the left."""
    genre = _plain(genre)[:_MOST_LETTERS]
    style, canvas = _prepare(item, genre, _WIDE)
    return _document(canvas, style, "", "")


def _prepare(item: str, genre: str, reach: tuple[float, float]) -> tuple[_Style, Canvas]:
    style = _STYLES.get(genre.lower()) or _Style(scenes.draw_abstract, _make_colours(genre))
    chance = Random(f"{item}\n{genre}".encode("utf-8", "replace"))
    turn = chance.uniform(-_TURN, _TURN)
    colours = Colours(*(_turn(colour, turn) for colour in astuple(style.colours)))
    return style, Canvas(*reach, colours, chance)


def _document(canvas: Canvas, style: _Style, title: str, letters: str) -> str:
    colours = canvas.colours
    place = f'x="{canvas.left:g}" width="{canvas.width:g}" height="{HEIGHT:g}"'
    sky = (
        f'<linearGradient id="sky" x1="0" y1="0" x2="0" y2="1"><stop stop-color="{colours.top}"/>'
        f'<stop offset=".78" stop-color="{colours.low}"/></linearGradient>'
    )
    stops = ((0, 0.5), (0.16, 0), (0.5, 0), (0.86, 0.92))
    shades = (f'<stop offset="{at}" stop-color="{colours.dark}" stop-opacity="{opacity}"/>' for at, opacity in stops)
    dusk = f'<linearGradient id="dusk" x1="0" y1="0" x2="0" y2="1">{"".join(shades)}</linearGradient>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{canvas.left:g} 0 {canvas.width:g} {HEIGHT:g}" role="img">'
        f"<title>{title}</title><defs>{sky}{dusk}</defs>"
        f'<rect {place} fill="url(#sky)"/>{style.scene(canvas)}'
        + (f'<rect {place} fill="url(#dusk)"/>{letters}' if letters else "")
        + "</svg>"
    )


def _letter(title: str, style: _Style, light: str) -> str:
    """Returns the title in lines of one width at the foot of the poster."""
    y, lines = 422.0, []
    for line in reversed(_wrap(title)):
        is_small = line.lower() in _SMALL_WORDS
        # Capitals of the widest of these fonts take .8 of their size; none may leave the poster.
        size = 15.0 if is_small else min(250 / (max(len(line), 1) * 0.8), 50.0)
        spacing = 4 if is_small else 0.5
        lines.append(
            f'<text x="-128" y="{y:.0f}" fill="{light}" font-family="{style.font}" font-size="{size:.0f}" '
            f'font-weight="{600 if is_small else 800}" letter-spacing="{spacing}">{escape(line.upper())}</text>'
        )
        y -= size * 0.98 + 4
    return "".join(reversed(lines))


def _wrap(title: str) -> Sequence[str]:
    """Returns a title in at most four lines; a small word stands alone.

    >>> _wrap("The Silent Harbour 2")
    ['The', 'Silent', 'Harbour 2']
    """
    lines: list[str] = []
    for word in title.split() or ["?"]:
        joins = lines and lines[-1].lower() not in _SMALL_WORDS and len(lines[-1]) + len(word) < 10
        if joins or len(lines) == _MOST_LINES:
            lines[-1] = f"{lines[-1]} {word}"
        else:
            lines.append(word)
    return lines


def _plain(text: str) -> str:
    """Returns a text without what XML cannot hold."""
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()


def _turn(colour: str, turn: float) -> str:
    """Returns a colour with its hue turned."""
    red, green, blue = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    hue, light, depth = colorsys.rgb_to_hls(red, green, blue)
    return _hex(hue + turn, light, depth)


def _hex(hue: float, light: float, depth: float) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue % 1, light, depth))


def _make_colours(genre: str) -> Colours:
    """Returns the palette of a genre that has no style of its own."""
    hue = int.from_bytes(blake2b(genre.encode("utf-8", "replace"), digest_size=2).digest(), "big") / 65536
    far = hue + 0.5
    return Colours(
        _hex(hue, 0.2, 0.5), _hex(hue, 0.45, 0.5), _hex(far, 0.82, 0.75), _hex(far, 0.5, 0.6), _hex(hue, 0.09, 0.5)
    )

"""Charts as SVG. Along the page they measure in percent and down it in pixels, so that text keeps its size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headrace.console.frame import Html, put, tag

_ROW = 46
_BAR_ROW = 34
_HEIGHT = 240
_FOOT = 26
_SIDE = 4.0
# Beyond them a scale has no digits left.
_LEAST, _MOST = 1e-290, 1e290


@dataclass(frozen=True)
class Range:
    """An estimate with its interval."""

    name: str
    low: float
    estimate: float
    high: float
    text: str


@dataclass(frozen=True)
class Point:
    """An estimate at an instant, with its interval."""

    x: float
    low: float
    estimate: float
    high: float


def ticks(low: float, high: float, *, count: int = 4) -> list[float]:
    """Returns round numbers between two others.

    >>> ticks(-0.13, 0.52), ticks(0, 7_300)
    ([0.0, 0.2, 0.4], [0.0, 2000.0, 4000.0, 6000.0])
    """
    span = (high - low) / count
    if not _LEAST < span < _MOST:
        return [low]
    size = 10 ** math.floor(math.log10(span))
    # A little closer than asked for is better than one alone.
    step = next(size * times for times in (1, 2, 5, 10) if size * times >= 0.7 * span)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [float(f"{number * step:.12g}") + 0.0 for number in range(first, last + 1)]


def _svg(height: float, label: str, *inside: object) -> Html:
    return tag("svg", *inside, class_="chart", width="100%", height=f"{height:g}", role="img", aria_label=label)


def _text(x: str, y: float, text: str, *, anchor: str | None = None, kind: str | None = None) -> Html:
    return tag("text", text, x=x, y=f"{y:g}", text_anchor=anchor, class_=kind)


def _line(ends: tuple[float, float, float, float], kind: str) -> Html:
    x1, y1, x2, y2 = ends
    return tag("line", x1=f"{x1:.2f}%", y1=f"{y1:g}", x2=f"{x2:.2f}%", y2=f"{y2:g}", class_=kind)


def _dot(x: float, y: float, kind: str = "mark", radius: float = 5.5) -> Html:
    return tag("circle", cx=f"{x:.2f}%", cy=f"{y:.1f}", r=f"{radius:g}", class_=kind)


def _stretched(height: float, *inside: object) -> Html:
    """Returns shapes in a plane that is 100 wide; only their outlines keep their width."""
    plane = {"viewBox": f"0 0 100 {height:g}", "preserveAspectRatio": "none"}
    return tag("svg", *inside, width="100%", height=f"{height:g}", **plane)


def _path(points: Sequence[tuple[float, float]], kind: str, *, name: str = "polyline") -> Html:
    listed = " ".join(f"{x:.2f},{y:.1f}" for x, y in points)
    return tag(name, points=listed, class_=kind, vector_effect="non-scaling-stroke")


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    size = (high - low) or 1.0
    return lambda value: start + (end - start) * (value - low) / size


def forest(rows: Sequence[Range], *, label: str, form: Callable[[float], str]) -> Html:
    """Returns intervals below one another, around a line at 0."""
    reach = 1.08 * max((abs(end) for row in rows for end in (row.low, row.high)), default=1.0) or 1.0
    place = _scale(-reach, reach, _SIDE, 100 - _SIDE)
    bottom = _ROW * len(rows)
    parts = [_line((place(0), 0, place(0), bottom), "zero")]
    for number, row in enumerate(rows):
        y = _ROW * number
        parts += [
            _text("0", y + 15, row.name, kind="strong"),
            _text("100%", y + 15, row.text, anchor="end"),
            _line((place(row.low), y + 30, place(row.high), y + 30), "range"),
            _dot(place(row.estimate), y + 30),
        ]
    scale = [_text(f"{place(value):.2f}%", bottom + 18, form(value), anchor="middle") for value in ticks(-reach, reach)]
    return _svg(bottom + _FOOT, label, *parts, *scale)


def band(points: Sequence[Point], *, label: str, form: Callable[[float], str], times: tuple[str, str]) -> Html:
    """Returns an estimate over time within its interval; the first and the last instant are named."""
    # Few visitors say little, and their intervals would flatten all that follows.
    last = points[-1]
    limit = 3 * max(abs(last.low), abs(last.high), abs(last.estimate), 0.05)
    low = max(min(0.0, *(point.low for point in points)), -limit)
    high = min(max(0.0, *(point.high for point in points)), limit)
    down = _scale(low, high, _HEIGHT, 12)
    across = _scale(points[0].x, last.x, 0, 100)

    def clip(value: float) -> float:
        return down(min(max(value, low), high))

    edges = [(across(one.x), clip(one.high)) for one in points]
    edges += [(across(one.x), clip(one.low)) for one in reversed(points)]
    middle = [(across(one.x), clip(one.estimate)) for one in points]
    lines, names = _grid(ticks(low, high), down, form)
    plane = _stretched(_HEIGHT, _path(edges, "band", name="polygon"), _path(middle, "line"))
    return _svg(
        _HEIGHT + _FOOT,
        label,
        lines,
        plane,
        names,
        _dot(100, middle[-1][1]),
        _text("0", _HEIGHT + 20, times[0]),
        _text("100%", _HEIGHT + 20, times[1], anchor="end"),
    )


def _grid(values: Sequence[float], down: Callable[[float], float], form: Callable[[float], str]) -> tuple[Html, Html]:
    """Returns lines at some values, which stand behind what is drawn, and their names, which stand before it."""
    lines = [_line((0, down(value), 100, down(value)), "axis" if value else "zero") for value in values]
    names = [_text("0", down(value) - 4, form(value), kind="halo") for value in values]
    return put(*lines), put(*names)


def calibration(bins: Sequence[tuple[float, float]], *, label: str, form: Callable[[float], str]) -> Html:
    """Returns what came against what was expected; where both are the same stands a dashed line."""
    most = 1.08 * max((max(pair) for pair in bins), default=1.0) or 1.0
    down, across = _scale(0, most, _HEIGHT, 12), _scale(0, most, 0, 100)
    points = [(across(expected), down(came)) for expected, came in bins]
    lines, names = _grid(ticks(0, most), down, form)
    ideal = _path([(0, down(0)), (100, down(most))], "ideal")
    scale = [_text(f"{across(value):.2f}%", _HEIGHT + 20, form(value), anchor="middle") for value in ticks(0, most)[1:]]
    return _svg(
        _HEIGHT + _FOOT,
        label,
        lines,
        _stretched(_HEIGHT, ideal, _path(points, "line")),
        names,
        *[_dot(x, y) for x, y in points],
        *scale,
    )


def bars(rows: Sequence[tuple[str, float, str]], *, label: str) -> Html:
    """Returns bars with their names and figures above them; those below 0 grow to the left of it."""
    most, least = (choose((value for _, value, _ in rows), default=0.0) for choose in (max, min))
    place = _scale(min(least, 0.0), max(most, 0.0), 0, 100)
    parts = []
    for number, (name, value, text) in enumerate(rows):
        y, ends = _BAR_ROW * number, sorted((place(0.0), place(value)))
        width = f"{max(ends[1] - ends[0], 0.3):.2f}%"
        kind = "bar negative" if value < 0 else "bar"
        parts += [
            _text("0", y + 14, name, kind="strong"),
            _text("100%", y + 14, text, anchor="end"),
            tag("rect", x=f"{ends[0]:.2f}%", y=y + 19, width=width, height=8, rx=2, class_=kind),
        ]
    return _svg(_BAR_ROW * len(rows), label, *parts)


def line(points: Sequence[tuple[float, float]], *, label: str, names: tuple[str, str]) -> Html:
    """Returns values joined by a line; the first and the last of those along the page are named."""
    lowest, highest = min(0.0, *(y for _, y in points)), max(0.0, *(y for _, y in points))
    down = _scale(lowest, highest, _HEIGHT, 12)
    across = _scale(points[0][0], points[-1][0], 0, 100)
    lines, figures = _grid(ticks(lowest, highest), down, lambda value: f"{value:,.12g}")
    path = _path([(across(x), down(y)) for x, y in points], "line")
    return _svg(
        _HEIGHT + _FOOT,
        label,
        lines,
        _stretched(_HEIGHT, path),
        figures,
        _text("0", _HEIGHT + 20, names[0]),
        _text("100%", _HEIGHT + 20, names[1], anchor="end"),
    )

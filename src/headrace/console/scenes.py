"""What posters show: a scene for each genre, drawn with flat shapes from a seeded source of chance.

All are 450 high; 0 is their focus, and they reach from `left` to `right` of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

HEIGHT = 450.0

Point = tuple[float, float]


@dataclass(frozen=True)
class Colours:
    """The palette of a scene: the sky from top to bottom, what shines, what stands between, what is near."""

    top: str
    low: str
    glow: str
    mid: str
    dark: str


@dataclass(frozen=True)
class Canvas:
    """Where a scene is drawn."""

    left: float
    right: float
    colours: Colours
    chance: Random

    @property
    def width(self) -> float:
        """The whole width; a poster has 300."""
        return self.right - self.left

    def many(self, count: int) -> Iterator[int]:
        """Yields as many numbers as a poster needs `count` of."""
        yield from range(round(count * self.width / 300))

    def place(self, top: float, foot: float) -> Point:
        """Returns any place between two heights."""
        return self.chance.uniform(self.left, self.right), self.chance.uniform(top, foot)


def circle(centre: Point, radius: float, fill: str, **options: object) -> str:
    """Returns a disc; the other functions of shapes return theirs."""
    return ellipse(centre, (radius, radius), fill, **options)


def ellipse(centre: Point, radii: Point, fill: str, **options: object) -> str:
    """Returns an ellipse."""
    (x, y), (rx, ry) = centre, radii
    return f'<ellipse cx="{x:.1f}" cy="{y:.1f}" rx="{rx:.1f}" ry="{ry:.1f}" fill="{fill}"{_write(options)}/>'


def box(corner: Point, size: Point, fill: str, **options: object) -> str:
    """Returns a rectangle from its upper left corner."""
    (x, y), (wide, tall) = corner, size
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall:.1f}" fill="{fill}"{_write(options)}/>'


def polygon(points: Sequence[Point], fill: str, **options: object) -> str:
    """Returns a polygon."""
    return f'<polygon points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" fill="{fill}"{_write(options)}/>'


def line(steps: str, stroke: str, width: float, **options: object) -> str:
    """Returns a line with round ends."""
    return path(steps, "none", stroke=stroke, stroke_width=width, stroke_linecap="round", **options)


def path(steps: str, fill: str, **options: object) -> str:
    """Returns a path."""
    return f'<path d="{steps}" fill="{fill}"{_write(options)}/>'


def _write(options: dict[str, object]) -> str:
    texts = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in options.items()}
    return "".join(f' {name.replace("_", "-")}="{text}"' for name, text in texts.items())


def moved(shapes: str, place: Point, *, turn: float = 0.0, size: float = 1.0) -> str:
    """Returns shapes that were drawn around 0, 0 at another place."""
    x, y = place
    return f'<g transform="translate({x:.1f} {y:.1f}) rotate({turn:.1f}) scale({size:.3g})">{shapes}</g>'


def mix(first: str, second: str, share: float) -> str:
    """Returns a colour between two.

    >>> mix("#000000", "#ff8040", 0.5)
    '#804020'
    """
    pairs = [(int(first[place : place + 2], 16), int(second[place : place + 2], 16)) for place in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def ring(centre: Point, radius: float, count: int, *, turn: float = 0.0) -> list[Point]:
    """Returns points on a circle.

    >>> ring((0, 0), 2, 1)
    [(2.0, 0.0)]
    """
    x, y = centre
    angles = [turn + 2 * math.pi * number / count for number in range(count)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


def _halo(canvas: Canvas, centre: Point, radius: float) -> str:
    """Returns a disc that shines."""
    glow = canvas.colours.glow
    outer = circle(centre, radius * 1.9, glow, opacity=0.08) + circle(centre, radius * 1.4, glow, opacity=0.14)
    return outer + circle(centre, radius, glow)


def _rays(canvas: Canvas, centre: Point, count: int, fill: str, opacity: float) -> str:
    far = ring(centre, canvas.width + HEIGHT, 2 * count, turn=canvas.chance.random())
    rays = "".join(polygon([centre, far[n], far[n + 1]], fill) for n in range(0, 2 * count, 2))
    return f'<g opacity="{opacity}">{rays}</g>'


def _ridge(canvas: Canvas, base: float, reach: float, fill: str, *, step: float = 34) -> str:
    """Returns a line of peaks from edge to edge."""
    points: list[Point] = [(canvas.left - step, HEIGHT)]
    for number in range(math.ceil(canvas.width / step) + 2):
        peak = reach * (1 if number % 2 else 0.25) * canvas.chance.uniform(0.45, 1.2)
        points.append((canvas.left + (number - 0.5 + 0.4 * canvas.chance.random()) * step, base - peak))
    return polygon([*points, (canvas.right + step, HEIGHT)], fill)


def _hill(canvas: Canvas, top: float, fill: str) -> str:
    """Returns one soft hill from edge to edge."""
    lift, crest = canvas.chance.uniform(18, 50), canvas.chance.uniform(-60, 60)
    start, end = f"{canvas.left:.0f} {top + lift:.0f}", f"{canvas.right:.0f} {top + lift * canvas.chance.random():.0f}"
    return path(f"M{start}Q{crest:.0f} {top - lift:.0f} {end}V{HEIGHT:.0f}H{canvas.left:.0f}Z", fill)


def _stars(canvas: Canvas, count: int, foot: float) -> str:
    uniform = canvas.chance.uniform
    return "".join(
        circle(canvas.place(0, foot), uniform(0.5, 1.7), "#fff", opacity=uniform(0.3, 0.9)) for _ in canvas.many(count)
    )


def _figure(foot: Point, height: float, fill: str, *, turn: float = 0.0) -> str:
    """Returns somebody who stands there, seen from afar."""
    body = path("M-13 0L-16-66Q0-86 16-66L13 0H3L0-38L-3 0Z", fill) + circle((0, -89), 10.5, fill)
    return moved(body, foot, size=height / 100, turn=turn)


def draw_action(canvas: Canvas) -> str:
    """A burst of light, debris, and who walks away from it."""
    colours, chance = canvas.colours, canvas.chance
    centre = (0.0, chance.uniform(160, 190))
    parts = [_rays(canvas, centre, 22, colours.glow, 0.13)]
    for size, fill in ((140, colours.mid), (100, colours.glow), (54, "#fffdf0")):
        tips = ring(centre, size, 36, turn=chance.random())
        burst = [
            (centre[0] + (x - centre[0]) * near, centre[1] + (y - centre[1]) * near)
            for number, (x, y) in enumerate(tips)
            for near in (chance.uniform(0.85, 1.1) if number % 2 else chance.uniform(0.55, 0.7),)
        ]
        parts.append(polygon(burst, fill))
    for x, y in ring((0.0, 0.0), 165, 15, turn=chance.random()):
        far = chance.uniform(0.75, 1.35)
        shard = ring((x * far, centre[1] + y * far), chance.uniform(4, 15), 3, turn=chance.random() * 6)
        parts.append(polygon(shard, colours.dark))
    parts.append(_ridge(canvas, 351, 30, colours.dark, step=26))
    return "".join(parts) + _figure((0, 342), 96, colours.dark)


def draw_adventure(canvas: Canvas) -> str:
    """Mountains behind mountains, and a way that leads there."""
    colours = canvas.colours
    parts = [_halo(canvas, (canvas.chance.uniform(-60, 60), 135), 48)]
    for number, (base, reach) in enumerate(((252, 117), (297, 90), (351, 72))):
        fill = mix(colours.low, colours.mid, 0.45 + 0.27 * number)
        parts.append(_ridge(canvas, base, reach, fill, step=48 - 8 * number))
    parts.append(_hill(canvas, 342, colours.dark))
    way = "M-46 450C-90 396 70 387 8 346C100 391-30 405 40 450Z"
    return "".join(parts) + path(way, colours.glow, opacity=0.55)


def draw_animation(canvas: Canvas) -> str:
    """A friendly monster among balls that bounce."""
    colours, chance = canvas.colours, canvas.chance
    fills = (colours.glow, colours.low, "#ffffff", mix(colours.mid, "#ffffff", 0.4))
    parts = [
        circle(canvas.place(10, 270), chance.uniform(6, 30), chance.choice(fills), opacity=chance.uniform(0.35, 0.9))
        for _ in canvas.many(9)
    ]
    top, wide = chance.uniform(148, 175), chance.uniform(82, 100)
    for side in (-1, 1):
        tip = (side * wide * 0.62, top - 46)
        bend = f"M{side * wide * 0.4:.0f} {top + 20:.0f}Q{tip[0]:.0f} {top:.0f} {tip[0]:.0f} {tip[1]:.0f}"
        parts += [line(bend, colours.mid, 7), circle(tip, 11, colours.glow)]
    parts.append(box((-wide, top), (2 * wide, HEIGHT), colours.mid, rx=wide))
    eyes = chance.choice((1, 2, 3))
    for number in range(eyes):
        x, y = (number - (eyes - 1) / 2) * 52, top + wide * 0.72
        parts += [circle((x, y), 36 - 5 * eyes, "#fff"), circle((x + 5, y + 3), 17 - 2 * eyes, colours.dark)]
    return "".join(parts) + moved(path("M-38 0Q0 62 38 0Z", colours.dark), (0, top + wide * 1.22))


def draw_comedy(canvas: Canvas) -> str:
    """A laughing face in confetti."""
    colours, chance = canvas.colours, canvas.chance
    centre = (0.0, chance.uniform(166, 189))
    parts = [_rays(canvas, centre, 12, "#ffffff", 0.16)]
    for _ in canvas.many(34):
        fill = chance.choice((colours.mid, colours.dark, "#ffffff", colours.top))
        confetti = box((-6, -2), (13, 5), fill, opacity=0.85)
        parts.append(moved(confetti, canvas.place(0, 360), turn=chance.uniform(0, 180)))
    wink, jaw = chance.choice((-1, 0, 1)), chance.uniform(62, 74)
    face = [circle((0, 7), 112, colours.dark, opacity=0.18), circle((0, 0), 110, colours.glow)]
    for side in (-1, 1):
        if side == wink:
            face.append(line(f"M{side * 40 - 18} -24q18-22 36 0", colours.dark, 8))
        else:
            face.append(ellipse((side * 40, -30), (12, 19), colours.dark))
    grin = f"M{-jaw:.0f} 14h{2 * jaw:.0f}a{jaw:.0f} {jaw:.0f} 0 0 1 {-2 * jaw:.0f} 0Z"
    face += [path(grin, colours.dark), ellipse((0, jaw * 0.98), (jaw * 0.52, jaw * 0.28), colours.mid)]
    face.append(box((-jaw * 0.84, 14), (jaw * 1.68, 13), "#ffffff"))
    return "".join(parts) + moved("".join(face), centre, turn=chance.uniform(-9, 9))


def draw_crime(canvas: Canvas) -> str:
    """A city at night, seen through blinds."""
    colours, chance = canvas.colours, canvas.chance
    parts = [_halo(canvas, (chance.uniform(-40, 40), 122), 72)]
    for depth in (0, 1):
        x, fill = canvas.left - 10, mix(colours.mid, colours.dark, 0.2 + 0.8 * depth)
        while x < canvas.right:
            wide, top = chance.uniform(26, 52), chance.uniform(162, 252) + 58 * depth
            parts.append(box((x, top), (wide, HEIGHT), fill))
            for _ in range(3 + depth):
                window = (x + wide * chance.uniform(0.15, 0.7), top + chance.uniform(12, 130))
                parts.append(box(window, (5, 8), colours.glow, opacity=chance.choice((0.15, 0.35, 0.95))))
            x += wide
    for top in range(-20, 450, 28):
        slat = [(canvas.left, top), (canvas.right, top + 22), (canvas.right, top + 37), (canvas.left, top + 15)]
        parts.append(polygon(slat, colours.dark, opacity=0.3))
    return "".join(parts)


def draw_documentary(canvas: Canvas) -> str:
    """The world, in the blades of a lens."""
    colours, chance = canvas.colours, canvas.chance
    centre, count, turn = (0.0, 176.0), chance.choice((6, 7, 8)), chance.random()
    parts = [
        circle(centre, 150 + 46 * n, "none", stroke=colours.glow, opacity=max(0.35 - 0.05 * n, 0.05)) for n in range(9)
    ]
    parts.append(circle(centre, 128, colours.dark))
    outer, inner = ring(centre, 122, count, turn=turn + 0.75), ring(centre, 60, count, turn=turn)
    for number in range(count):
        after = (number + 1) % count
        blade = [inner[number], inner[after], outer[after], outer[number]]
        parts.append(polygon(blade, mix(colours.mid, colours.low, number % 3 * 0.3), stroke=colours.dark))
    parts += [polygon(inner, colours.glow), circle(centre, 40, colours.low)]
    globe = [ellipse((0, 0), (40 * share, 40), "none") for share in (0, 0.4, 0.75, 1)]
    globe += [path(f"M{-half} {y}H{half}", "none") for y, half in ((-20, 34.6), (0, 40), (20, 34.6))]
    return (
        "".join(parts) + f'<g stroke="{colours.dark}" stroke-width="1.6">{moved("".join(globe), centre, turn=18)}</g>'
    )


def draw_drama(canvas: Canvas) -> str:
    """Two who eclipse each other, and one who is alone."""
    colours, chance = canvas.colours, canvas.chance
    apart, away = chance.uniform(38, 62), chance.choice((-120, 120))
    parts = [
        circle((-apart, 153), 92, colours.glow, opacity=0.92),
        circle((apart, 153), 92, colours.mid, opacity=0.88),
        box((canvas.left, 333), (canvas.width, HEIGHT), colours.dark),
    ]
    x = chance.uniform(-30, 30)
    parts.append(polygon([(x - 8, 339), (x + 8, 339), (x + away, HEIGHT)], "#000000", opacity=0.5))
    return "".join(parts) + _figure((x, 340), 108, colours.dark)


def draw_family(canvas: Canvas) -> str:
    """Balloons over hills."""
    colours, chance = canvas.colours, canvas.chance
    parts = [_halo(canvas, (chance.uniform(60, 110), 74), 28)]
    for top, shade in ((279, 0.35), (315, 0.65), (355, 1.0)):
        parts.append(_hill(canvas, top, mix(colours.low, colours.dark, shade)))
    fills = (colours.mid, colours.glow, mix(colours.mid, colours.dark, 0.45))
    for number, (x, y, size) in enumerate(((-46, 140, 0.62), (62, 190, 0.4), (-96, 262, 0.24), (104, 96, 0.2))):
        fill = fills[number % 3]
        balloon = path("M-93 38L-20 150H20L93 38Z", fill) + circle((0, 0), 100, fill)
        balloon += ellipse((0, 0), (42, 100), "#ffffff", opacity=0.5) + box((-20, 162), (40, 30), colours.dark)
        parts.append(moved(balloon, (x + chance.uniform(-14, 14), y + chance.uniform(-14, 14)), size=size))
    return "".join(parts)


def draw_fantasy(canvas: Canvas) -> str:
    """A castle before a large moon."""
    colours, chance = canvas.colours, canvas.chance
    parts = [_stars(canvas, 46, 270), _halo(canvas, (chance.uniform(-30, 30), 148), 88)]
    parts.append(_ridge(canvas, 324, 72, mix(colours.mid, colours.low, 0.3), step=44))
    for x in (-58, -30, 0, 31, 60):
        tall, wide = chance.uniform(60, 110) + (70 if x == 0 else 0), chance.uniform(15, 22)
        top = 324 - tall
        roof = [(x - wide * 0.75, top), (x, top - wide * 1.9), (x + wide * 0.75, top)]
        parts += [box((x - wide / 2, top), (wide, tall + 40), colours.dark)]
        parts += [polygon(roof, mix(colours.dark, colours.mid, 0.5)), box((x - 2, top + 24), (4, 9), colours.glow)]
    parts.append(box((-66, 290), (132, 60), colours.dark))
    return "".join(parts) + _hill(canvas, 322, colours.dark)


def draw_history(canvas: Canvas) -> str:
    """What stands of a temple."""
    colours, chance = canvas.colours, canvas.chance
    stone, count = mix(colours.glow, colours.low, 0.35), chance.choice((4, 5, 6))
    parts = [_halo(canvas, (0, 150), 106), polygon([(-122, 168), (0, 112), (122, 168)], colours.mid)]
    parts.append(box((-116, 168), (232, 13), stone))
    broken = chance.randrange(count)
    for number in range(count):
        x, top = -100 + 200 * number / (count - 1), 181.0
        if number == broken:
            top += chance.uniform(40, 90)
        parts.append(box((x - 11, top), (22, 336 - top), stone))
        parts += [box((x + groove - 1, top), (2, 336 - top), colours.mid, opacity=0.6) for groove in (-5, 0, 5)]
    for step in range(3):
        corner, size = (-126 - 10 * step, 334 + 10 * step), (252 + 20 * step, 10)
        parts.append(box(corner, size, mix(stone, colours.dark, 0.25 * (step + 1))))
    return "".join(parts) + _hill(canvas, 362, colours.dark)


def draw_horror(canvas: Canvas) -> str:
    """A door that is open, and somebody in it."""
    colours, chance = canvas.colours, canvas.chance
    tall, lean, spread = chance.uniform(126, 150), chance.uniform(-50, 50), chance.uniform(120, 170)
    parts = []
    for _ in canvas.many(8):
        bend, thick = chance.uniform(-26, 26), chance.uniform(5, 15)
        trunk = f"M0 0Q{bend:.0f} 180 0 310H{thick:.0f}Q{bend + thick:.0f} 160 9 0Z"
        parts.append(moved(path(trunk, colours.dark, opacity=0.85), (canvas.place(0, 0)[0], 0)))
    for radii, opacity in (((130.0, 165.0), 0.09), ((84.0, 120.0), 0.13)):
        parts.append(ellipse((0, 280 - tall / 2), radii, colours.glow, opacity=opacity))
    light = [(-34, 280), (34, 280), (spread + lean, HEIGHT), (lean - spread, HEIGHT)]
    parts += [polygon(light, colours.glow, opacity=0.5), box((-34, 280 - tall), (68, tall), colours.glow)]
    parts.append(polygon([(-8, 280), (8, 280), (lean + 52, HEIGHT), (lean - 52, HEIGHT)], "#000000", opacity=0.85))
    return "".join(parts) + _figure((0, 281), tall * 0.74, "#000000")


def draw_music(canvas: Canvas) -> str:
    """A record over bars that dance."""
    colours, chance = canvas.colours, canvas.chance
    centre, turn = (0.0, 162.0), chance.uniform(0, 6)
    parts = [circle(centre, 150, colours.mid, opacity=0.25), circle(centre, 122, colours.dark)]
    parts += [circle(centre, radius, "none", stroke=colours.low, opacity=0.45) for radius in range(58, 120, 7)]
    for start in (turn, turn + math.pi):
        parts.append(polygon([centre, *ring(centre, 122, 16, turn=start)[:2]], "#ffffff", opacity=0.13))
    for radius, fill in ((46, colours.glow), (30, colours.mid), (6, colours.dark)):
        parts.append(circle(centre, radius, fill))
    for number in range(int(canvas.width / 15) + 1):
        tall = 20 + 96 * abs(math.sin(number * 0.7 + turn)) * chance.uniform(0.5, 1)
        fill = mix(colours.mid, colours.glow, number * 15 / (canvas.width + 15))
        parts.append(box((canvas.left + number * 15 + 2, 369 - tall), (11, tall + 90), fill, rx=3))
    return "".join(parts)


def draw_mystery(canvas: Canvas) -> str:
    """Who stands in the light of a keyhole."""
    colours, chance = canvas.colours, canvas.chance
    y = chance.uniform(126, 144)
    parts = [circle((0, y), 62 * size, colours.glow, opacity=0.06) for size in (3.4, 2.6, 1.9, 1.4)]
    parts.append(polygon([(-28, y), (28, y), (66, y + 205), (-66, y + 205)], colours.glow))
    parts.append(circle((0, y), 62, colours.glow))
    parts.append(_figure((chance.uniform(-20, 20), y + 205), chance.uniform(110, 140), colours.dark))
    for _ in canvas.many(7):
        fog = mix(colours.low, "#ffffff", chance.uniform(0, 0.25))
        parts.append(
            ellipse(canvas.place(270, 385), (chance.uniform(90, 190), chance.uniform(8, 20)), fog, opacity=0.22)
        )
    return "".join(parts)


def draw_nature(canvas: Canvas) -> str:
    """Leaves before hills."""
    colours, chance = canvas.colours, canvas.chance
    parts = [_halo(canvas, (chance.uniform(-50, 50), 122), 50)]
    for number, base in enumerate((243, 284, 333)):
        fill = mix(colours.low, colours.mid, 0.3 + 0.3 * number)
        parts.append(_ridge(canvas, base, 54, fill, step=52 - 8 * number))
    for number in range(int(canvas.width / 42) + 2):
        fill = mix(colours.mid, colours.dark, chance.uniform(0.25, 0.95))
        leaf = path("M0 0C22-48 22-112 0-160C-22-112-22-48 0 0Z", fill)
        leaf += line("M0 0V-146", colours.low, 1.4, opacity=0.5)
        place = (canvas.left + number * 42, 441.0)
        parts.append(moved(leaf, place, turn=chance.uniform(-38, 38), size=chance.uniform(0.75, 1.2)))
    return "".join(parts)


def draw_romance(canvas: Canvas) -> str:
    """Two at the sea, while the sun goes down."""
    colours, chance = canvas.colours, canvas.chance
    radius = chance.uniform(80, 100)
    parts = [circle((0, 243), radius * 1.5, colours.glow, opacity=0.14), circle((0, 243), radius, colours.glow)]
    parts.append(box((canvas.left, 243), (canvas.width, HEIGHT), mix(colours.mid, colours.dark, 0.35)))
    for number in range(11):
        half = radius * (1 - number / 13) * chance.uniform(0.55, 1.05)
        corner = (chance.uniform(-10, 10) - half, 249 + number * 10)
        parts.append(box(corner, (2 * half, 4), colours.glow, opacity=0.75 - number * 0.05, rx=2))
    for _ in range(3):
        bird = line("M-12-5q7-6 12 4q5-10 12-4", colours.dark, 2.4)
        parts.append(moved(bird, (chance.uniform(-110, 110), chance.uniform(54, 144))))
    parts.append(_hill(canvas, 334, colours.dark))
    side = chance.uniform(-40, 40)
    parts.append(_figure((side - 12, 346), 108, colours.dark))
    return "".join(parts) + _figure((side + 13, 346), 97, colours.dark)


def draw_science_fiction(canvas: Canvas) -> str:
    """A planet with its ring, and a moon."""
    colours, chance = canvas.colours, canvas.chance
    planet = [circle((0, 0), 112, colours.glow, opacity=0.1), circle((0, 0), 100, colours.mid)]
    for y, half, opacity in ((-50, 85, 0.35), (-12, 97, 0.15), (30, 93, 0.3)):
        planet.append(ellipse((0, y), (half, 10), colours.glow, opacity=opacity))
    planet.append(path("M0-100A100 100 0 0 1 0 100A130 130 0 0 0 0-100Z", colours.dark, opacity=0.5))
    back = line("M-175 0A175 42 0 0 1 175 0", colours.glow, 7, opacity=0.9)
    front = line("M-175 0A175 42 0 0 0 175 0", colours.glow, 7, opacity=0.9)
    centre, turn = (0.0, chance.uniform(150, 180)), chance.uniform(-32, -12)
    moon = circle((0, 0), 17, mix(colours.glow, "#ffffff", 0.4)) + circle((6, -2), 14, colours.top)
    return (
        _stars(canvas, 70, 430)
        + moved(back + "".join(planet) + front, centre, turn=turn, size=chance.uniform(0.78, 0.96))
        + moved(moon, (chance.choice((-104, 100)), chance.uniform(62, 82)))
        + _ridge(canvas, 387, 45, colours.dark, step=40)
    )


def draw_sport(canvas: Canvas) -> str:
    """A ball on the grass, under floodlights."""
    colours, chance = canvas.colours, canvas.chance
    parts = [box((canvas.left, 0), (canvas.width, 162), colours.dark)]
    for side in (-1, 1):
        beam = [(side * 105, 45), (side * -60, 162), (side * 190, 162)]
        parts.append(polygon(beam, colours.glow, opacity=0.14))
        parts += [circle((side * 105 + 13 * n, 45 + 12 * m), 5, colours.glow) for n in (-1, 0, 1) for m in (0, 1)]
    for number in range(-15, 16, 2):
        parts.append(
            polygon([(0, 135), (110 * number, HEIGHT), (110 * number + 110, HEIGHT)], colours.low, opacity=0.35)
        )
    parts.append(box((canvas.left, 132), (canvas.width, 30), colours.dark))
    inner, outer, edge = ring((0, 0), 30, 5), ring((0, 0), 60, 5), ring((0, 0), 83, 50)
    ball = [circle((0, 0), 84, colours.glow), polygon(inner, colours.dark)]
    for number in range(5):
        (x, y), (end_x, end_y) = inner[number], outer[number]
        ball.append(line(f"M{x:.0f} {y:.0f}L{end_x:.0f} {end_y:.0f}", colours.dark, 4))
        ball.append(polygon([outer[number], *(edge[(10 * number + shift) % 50] for shift in (-3, 0, 3))], colours.dark))
    x = chance.uniform(-30, 30)
    parts.append(ellipse((x, 324), (92, 18), "#000000", opacity=0.35))
    return "".join(parts) + moved("".join(ball), (x, 238), turn=chance.uniform(0, 72))


def draw_thriller(canvas: Canvas) -> str:
    """A fall into a spiral."""
    colours, chance = canvas.colours, canvas.chance
    turn, parts = chance.uniform(0, 180), []
    for number in range(round(14 + canvas.width / 25), 0, -1):
        radius = 4 + number * 11.5
        disc = ellipse((number * 1.2, 0), (radius, radius * 0.86), colours.mid if number % 2 else colours.glow)
        parts.append(moved(disc, (0, 180), turn=turn + number * 17))
    tilt = chance.choice((-1, 1)) * chance.uniform(115, 155)
    return "".join(parts) + moved(_figure((0, 59), 118, colours.dark), (0, 180), turn=tilt)


def draw_war(canvas: Canvas) -> str:
    """Aeroplanes in searchlights."""
    colours, chance = canvas.colours, canvas.chance
    parts = [_halo(canvas, (chance.uniform(-60, 60), 99), 34)]
    for _ in canvas.many(4):
        foot, aim, wide = canvas.place(0, 0)[0], chance.uniform(-110, 110), chance.uniform(26, 46)
        beam = [(foot, 360), (foot + aim - wide, 0), (foot + aim + wide, 0)]
        parts.append(polygon(beam, colours.glow, opacity=0.2))
    plane = path("M0-12L2-3L15 2V4L2 4L5 11L0 9L-5 11L-2 4L-15 4V2L-2-3Z", colours.dark)
    for number in range(-2, 3):
        place = (number * 46 + chance.uniform(-8, 8), 153.0 + 16 * abs(number))
        parts.append(moved(plane, place, size=1.5 if number == 0 else 1.0))
    parts.append(_ridge(canvas, 333, 45, colours.mid, step=30))
    return "".join(parts) + _ridge(canvas, 378, 36, colours.dark, step=22)


def draw_western(canvas: Canvas) -> str:
    """A sun too large for the desert."""
    colours, chance = canvas.colours, canvas.chance
    parts = [_halo(canvas, (0, 189), chance.uniform(96, 116))]
    for number in canvas.many(4):
        x, wide, tall = (
            canvas.left + 80 * number + chance.uniform(-30, 10),
            chance.uniform(40, 84),
            chance.uniform(30, 92),
        )
        mesa = [(x - wide * 0.75, 330), (x - wide / 2, 306 - tall), (x + wide / 2, 306 - tall), (x + wide * 0.75, 330)]
        parts.append(polygon(mesa, mix(colours.low, colours.mid, chance.uniform(0.55, 1))))
    parts.append(_hill(canvas, 306, mix(colours.mid, colours.dark, 0.5)))
    parts.append(_hill(canvas, 346, colours.dark))
    cactus = line("M0 0V-158", colours.dark, 17)
    cactus += line("M0-62H-34V-106", colours.dark, 13, stroke_linejoin="round")
    cactus += line("M0-86H32V-122", colours.dark, 13, stroke_linejoin="round")
    return "".join(parts) + moved(cactus, (chance.choice((-88, 84)), 369))


def draw_abstract(canvas: Canvas) -> str:
    """Quarters of circles in a grid."""
    colours, chance = canvas.colours, canvas.chance
    fills, parts = (colours.glow, colours.mid, colours.dark, colours.low, colours.top), []
    for row in range(6):
        for column in range(math.ceil(canvas.width / 75)):
            under, over = chance.sample(fills, 2)
            if chance.random() < 0.25:
                shape = circle((0, 0), 26, over)
            else:
                shape = path("M-37.5-37.5h75a75 75 0 0 1-75 75Z", over)
            tile = box((-37.5, -37.5), (75.5, 75.5), under) + shape
            place = (canvas.left + 75 * column + 37.5, 75 * row + 37.5)
            parts.append(moved(tile, place, turn=90 * chance.randrange(4)))
    return "".join(parts)

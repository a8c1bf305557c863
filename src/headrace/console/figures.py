"""Figures as people read them, on a page as in a terminal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime.fromtimestamp(0, UTC)


def format_time(time_us: int) -> str:
    """Returns an instant for people, in UTC.

    >>> format_time(1_795_277_634_612_000)
    '2026-11-21 16:13:54.612'
    """
    return (_EPOCH + timedelta(microseconds=time_us)).isoformat(sep=" ", timespec="milliseconds")[:-6]


def format_seconds(seconds: float) -> str:
    """Returns a length of time for people.

    >>> format_seconds(3.21), format_seconds(200), format_seconds(90_000)
    ('3.2 s', '3 min', '25 h')
    """
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"


def format_bytes(count: float) -> str:
    """Returns a size for people.

    >>> format_bytes(1536)
    '1.5 kB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TB"


def format_share(share: float) -> str:
    """Returns a change relative to what was there, as people write a lift.

    >>> format_share(0.2134), format_share(-0.05), format_share(12.3)
    ('+21.3 %', '-5.0 %', '+1,230 %')
    """
    return f"{100 * share:+,.0f} %" if abs(share) >= 10 else f"{100 * share:+.1f} %"


def format_tick(share: float) -> str:
    """Returns a change as the scale of a chart has it.

    >>> format_tick(0.2), format_tick(0.0)
    ('+20 %', '0')
    """
    return f"{100 * share:+.0f} %" if share else "0"


def format_chance(p: float) -> str:
    """Returns a p value for people.

    >>> format_chance(0.04231), format_chance(1e-9)
    ('0.042', '< 0.000001')
    """
    return f"{p:.2g}" if p >= 1e-6 else "< 0.000001"


def format_rate(per_second: float) -> str:
    """Returns how much comes in a second.

    >>> format_rate(0), format_rate(0.25), format_rate(12.34), format_rate(4321.5)
    ('0', '0.25', '12.3', '4,322')
    """
    if not per_second:
        return "0"
    return f"{per_second:.3g}" if per_second < 100 else f"{per_second:,.0f}"


def capitalise(text: str) -> str:
    """Returns a text as a sentence begins.

    >>> capitalise("no table 'Clcks'")
    "No table 'Clcks'"
    """
    return text[:1].upper() + text[1:]


def count_of(number: int, noun: str) -> str:
    """Returns a number of things.

    >>> count_of(1, "visitor"), count_of(2_000, "visitor")
    ('1 visitor', '2,000 visitors')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"

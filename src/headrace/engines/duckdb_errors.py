"""What DuckDB reports, as one structure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from headrace.base.errors import FullError, OutsideError, OverloadedError
from headrace.engines.engine import Place

_PLAIN = re.compile(r"([A-Z][A-Za-z ]*?) Error: (.*)", re.DOTALL)


@dataclass(frozen=True)
class Failure:
    """One error of DuckDB."""

    kind: str
    message: str
    place: Place | None = None
    name: str = ""
    subtype: str = ""
    candidates: tuple[str, ...] = ()


def read_failure(error: BaseException) -> Failure:
    """Returns what an error says, whether it came from DuckDB or through Arrow's stream.

    >>> failure = read_failure(OSError('{"exception_type":"Binder","exception_message":"no","location":"[7,3]"}'))
    >>> failure.kind, failure.message, failure.place
    ('Binder', 'no', Place(start=7, length=3))
    """
    text = str(error)
    start = text.find('{"exception_type"')
    if start < 0:
        plain = _PLAIN.match(text)
        return Failure(plain[1], plain[2]) if plain else Failure("", text)
    found, _ = json.JSONDecoder().raw_decode(text, start)
    # A message in several lines goes on with hints that name DuckDB's settings, which are locked here.
    return Failure(
        kind=found["exception_type"],
        message=found["exception_message"],
        place=_read_place(found),
        name=found.get("name", ""),
        subtype=found.get("error_subtype", ""),
        candidates=tuple(one.strip('" ') for one in found.get("candidates", "").split(",") if one),
    )


def _read_place(found: dict[str, str]) -> Place | None:
    if "location" in found:
        start, length = json.loads(found["location"])
        return Place(start, length)
    return Place(int(found["position"])) if "position" in found else None


def read_outside(failure: Failure) -> OutsideError | None:
    """Returns the error of a machine that has no room, if that is what a failure says."""
    message = failure.message.split("\n", 1)[0]
    if failure.kind == "Out of Memory":
        if "max_temp_directory_size" in failure.message or "offload" in failure.message:
            return FullError(f"the query spills more than the spill folder may hold (spill_limit): {message}")
        return OverloadedError(f"the query needs more memory than it may have (memory), or a spill folder: {message}")
    if failure.kind == "IO" and ("No space left" in failure.message or "Failed to create directory" in failure.message):
        return FullError(f"the spill folder cannot take what the query spills: {message}")
    return None


def is_damage(failure: Failure) -> bool:
    """Returns whether a failure may come of damaged bytes, though it names no file.

    What Parquet's own structures say wrong comes as "Invalid" or without a kind; "Invalid Input" is also
    what `error('...')` or a bad format raises, so it counts only if it names a file.
    """
    return failure.kind in ("", "Invalid", "IO", "Serialization", "FATAL", "INTERNAL")

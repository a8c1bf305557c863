"""The contract `decision`, version 1: what the topic `decisions` holds, one record for each row of a page answered."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Raw, UnsetType

DECISIONS = "decisions"
VERSION = 1


class Decision(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """What one visitor was shown in one row, why, and by which chances; written down before the answer left.

    All rows of a page carry its `recommendation_id`, and no item stands in two of them. Items stand in the order of
    their positions, from 1; `propensities` and `scores` follow them.
    """

    version: int
    """The version of this contract."""
    recommendation_id: str
    """The id that the page, its impressions and its clicks carry."""
    page: str
    """The page that was asked for."""
    list_id: str
    """The carousel, which tells the rows of a page apart."""
    at_us: int
    """The instant that the decision was made for: the clock, or just after the newest event it knew of."""
    received_us: int
    """When the request reached the door, by the project's clock."""
    person: str
    """The user, else the visitor."""
    items: tuple[str, ...]
    """The ids of the items shown."""
    categories: tuple[str, ...]
    """Their categories, empty where none is known."""
    propensities: tuple[float, ...]
    """The chance of each item at its position, given the context and the items above it."""
    scores: tuple[float, ...]
    """What each item was ranked by."""
    num_candidates: int
    """How many items could have been shown: those of the bundle without the seen ones."""
    seed: int
    """What all its randomness follows from."""
    explore: float
    """The share of positions that were filled at random."""
    per_row: int
    """How many items were asked for."""
    bundle: str
    """The hash of the bundle that ranked."""
    events: str
    """The incarnation of the topic `events` that `applied` counts in."""
    applied: tuple[int, ...]
    """Of each partition of `events` the offset that comes next: what lies below was known."""
    seen: tuple[str, ...] = ()
    """What the person had clicked within a day, which is not shown again."""
    visitor: str | None = None
    """The visitor, if the request had one; only then it is enrolled in a trial."""
    user_id: str | None = None
    """The user that the request named, else the one that the visitor was known as."""
    bot: bool = False
    """Whether the user agent says that it is a robot."""
    experiment: str | None = None
    """The experiment that ran on the page."""
    trial: str | None = None
    """Its trial, in which arms, bundles and seed are frozen."""
    arm: str | None = None
    """The arm that the visitor is in: `control` or `treatment`."""
    degraded: tuple[str, ...] = ()
    """What went other than planned: see `DEGRADED`."""
    known: tuple[int, ...] = ()
    """Of each partition of `events` how many rows the features knew: those whose `seq` lies below."""
    dimensions: Raw | UnsetType = UNSET
    """Up to which offset each dimension was read, JSON: `{"items": 240}`."""
    vectors: Raw | UnsetType = UNSET
    """The features of each item shown, in the order of the bundle's columns, JSON: `[[3, 0, "item-007"], ...]`."""
    above: tuple[str, ...] = ()
    """The items of the rows above this one on the page, which are not shown again."""


DEGRADED = {
    "all_seen": "every item was seen within a day, so that rule was left out",
    "behind": "what the person has clicked lately may not be known yet",
    "bundle": "the bundle that should have ranked is missing or damaged; an older one or the fallback did",
    "features": "the features could not be read, so the page's fallback ranked",
    "fallback": "ranking failed or came too late; the page's fallback ranked",
    "rows": "a row below the first could not be ranked, or not in time, and was left out",
    "unlogged": "the decision could not be written down in time, so the page has no recommendation_id",
}

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Decision)

encode = _encoder.encode


class _Mark(msgspec.Struct):
    """What every version of this contract has."""

    version: int
    recommendation_id: str


_marks = msgspec.json.Decoder(_Mark)


def decode_decision(value: bytes) -> Decision:
    """Returns the decision in a record's value; raises msgspec.DecodeError for anything else.

    >>> decode_decision(b'{"version":9,"recommendation_id":"r"}')
    Traceback (most recent call last):
    ...
    msgspec.DecodeError: the decision 'r' has version 9, this Headrace reads version 1. Run a newer one
    """
    try:
        found = _decoder.decode(value)
    except (ValueError, RecursionError) as error:
        _check_version(value)
        raise msgspec.DecodeError(str(error)) from error
    if found.version != VERSION:
        _check_version(value)
    return found


def _check_version(value: bytes) -> None:
    """Raises msgspec.DecodeError for a decision of another version."""
    if not is_decision(value):
        return
    mark = _marks.decode(value)
    if mark.version != VERSION:
        raise msgspec.DecodeError(
            f"the decision {mark.recommendation_id!r} has version {mark.version}, "
            f"this Headrace reads version {VERSION}. Run a newer one"
        )


def is_decision(value: bytes) -> bool:
    """Returns whether a record of `decisions` is a decision, of whatever version.

    >>> is_decision(b"hello"), is_decision(b'{"version":9,"recommendation_id":"r"}')
    (False, True)
    """
    try:
        _marks.decode(value)
    except (ValueError, RecursionError):
        # Text that is no UTF-8, and nesting without end, have errors of their own.
        return False
    return True

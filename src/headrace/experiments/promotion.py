"""The contract `promotion`, version 1: which bundle serves a page since when and why, and which was tried in vain."""

from __future__ import annotations

from typing import Literal, TypeVar

import msgspec

from headrace.base.errors import FormatError
from headrace.experiments.experiment import check_version

VERSION = 1

CHAMPION = "champion"
"""The kind of the registry's rows, by page, that say which bundle serves it."""

CHALLENGER = "challenger"
"""The kind of the registry's rows, by page, that say which bundle was tried and refused."""

How = Literal["verdict", "hand", "rollback"]

State = Literal["idle", "refused", "waits", "started", "runs", "decided"]


class Champion(msgspec.Struct, kw_only=True, frozen=True):
    """A row `champion` of the registry: what serves a page from then on, whoever is in no trial."""

    version: int
    """The version of this contract."""
    page: str
    bundle: str
    """The hash of the bundle; nothing where the newest of the page's fallback serves again."""
    model: str
    """The model that the bundle is of."""
    how: How
    """What promoted it: the verdict on a trial, somebody by hand, or a way back to what served before."""
    trial: str | None = None
    """The trial that it won."""
    verdict: str | None = None
    """The outcome of that trial's verdict."""
    before: str = ""
    """The hash of the champion before; nothing if there was none."""
    reason: str = ""
    """Why, in a sentence."""


class Refusal(msgspec.Struct, kw_only=True, frozen=True):
    """A row `challenger` of the registry: a bundle that was tried on a page and does not serve it."""

    version: int
    """The version of this contract."""
    page: str
    bundle: str
    """The hash of the bundle."""
    model: str
    """The model that the bundle is of."""
    trial: str
    """The trial that it was in."""
    verdict: str
    """The outcome of that trial's verdict."""
    reason: str
    """Why it is refused, in a sentence."""


class Standing(msgspec.Struct, frozen=True):
    """Where the promotion of an experiment's challengers stands after a step."""

    state: State
    text: str
    """What was done, or what it waits for, in a sentence."""
    again_us: int | None = None
    """When it is worth another look, by the project's clock; nothing if only a new bundle changes anything."""


encode_promotion = msgspec.json.Encoder().encode

FoundT = TypeVar("FoundT", Champion, Refusal)


def decode_champion(value: bytes) -> Champion:
    """Returns the champion in a row of the registry; raises FormatError for anything else.

    >>> decode_champion(b'{"version":9}')
    Traceback (most recent call last):
    ...
    headrace.base.errors.FormatError: the champion has version 9, this Headrace reads version 1. Run a newer one
    """
    return _decode(value, CHAMPION, Champion)


def decode_refusal(value: bytes) -> Refusal:
    """Returns the refusal in a row of the registry; raises FormatError for anything else."""
    return _decode(value, CHALLENGER, Refusal)


def _decode(value: bytes, what: str, kind: type[FoundT]) -> FoundT:
    check_version(value, what, VERSION)
    try:
        return msgspec.json.decode(value, type=kind)
    except ValueError as error:
        raise FormatError(f"this is no {what}: {error}") from error

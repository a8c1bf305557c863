"""The online store: tiles, and how far `events` is counted in them, changed together or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import msgspec

from headrace.base.urls import Registry as Schemes
from headrace.base.urls import Scheme, Url
from headrace.features.feature import Column

Place = tuple[bytes, int]
"""The entity of a blob, and the partition of `events` that it comes from."""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """How far one generation of tiles is."""

    generation: int
    """When it was begun, by the machine's clock, which no other generation was."""
    definitions: str
    """The hash of its columns."""
    incarnation: str
    """That of the topic `events` that the offsets count in."""
    revision: int = 0
    """How many commits it has seen."""
    offsets: tuple[int, ...] = ()
    """Of each partition the offset that comes next."""
    known: tuple[int, ...] = ()
    """Of each partition how many events are counted: those whose `seq` lies below."""
    newest_us: tuple[int, ...] = ()
    """Of each partition the newest event."""


@dataclass(frozen=True)
class Snapshot:
    """What is served at one instant."""

    state: State
    blobs: Mapping[bytes, Sequence[tuple[int, bytes]]]
    """Of each entity that was asked for its blobs, by partition."""
    changed: Sequence[tuple[Place, bytes]]
    """The blobs of all that is no person, those that changed since a revision, or all of another generation."""


class Online(Protocol):
    """What every online store implements; `testing.check_online` holds it to this."""

    @classmethod
    def from_url(cls, url: Url) -> Self:
        """Returns the store at a URL; nothing is made before something is written."""

    def read_state(self) -> State | None:
        """Returns the state of the generation that serves; None if none does yet."""

    def read_states(self) -> list[State]:
        """Returns the states of all generations, the oldest first; all but one are still being made."""

    def read_columns(self, generation: int) -> tuple[Column, ...]:
        """Returns the columns that a generation has tiles for."""

    def begin(self, state: State, columns: Sequence[Column]) -> None:
        """Makes a generation that serves nobody yet."""

    def load(self, generation: int, places: Sequence[Place]) -> dict[Place, bytes]:
        """Returns the blobs at some places, without those that are not there."""

    def commit(self, changes: Mapping[Place, bytes], state: State, expected: State) -> None:
        """Writes blobs and state together; raises FencedError if the generation's state is not the expected one."""

    def promote(self, state: State) -> bool:
        """Lets a generation serve instead of all others, which are taken away.

        Returns False, and changes nothing, while one that serves has counted more of the same topic.
        Raises FencedError if the generation's state is not this one.
        """

    def drop(self, generation: int) -> None:
        """Takes away a generation that does not serve."""

    def sweep(self) -> bool:
        """Removes some blobs of generations that were taken away; returns whether there may be more."""

    def snapshot(self, entities: Sequence[bytes], *, since: tuple[int, int] | None = None) -> Snapshot:
        """Returns what serves, as of one instant: the blobs of entities, and what changed since a revision.

        `since` is a generation with its revision; without one nothing that changed is read.
        Raises UnavailableError while no generation serves.
        """

    def close(self) -> None:
        """Lets go of it."""


SCHEMES = Schemes(
    noun="online store",
    group="headrace.online",
    schemes={"sqlite": Scheme("headrace.features.online_sqlite:SqliteOnline")},
)


def open_online(url: Url | str) -> Online:
    """Returns the open online store of a URL."""
    online: Online = SCHEMES.open(url)
    return online

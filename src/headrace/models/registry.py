"""The registry: every bundle that was fitted, and an audited row for each change of what serves."""

from __future__ import annotations

from typing import Protocol, Self

import msgspec

from headrace.base.urls import Registry as Schemes
from headrace.base.urls import Scheme, Url
from headrace.models.model import Bundle


class Entry(msgspec.Struct, frozen=True):
    """A row of the registry: it is never changed; the newest of its kind and name counts."""

    id: int
    kind: str
    """What it is about: `trial`, `aa` ..."""
    name: str
    value: bytes
    """What it says, JSON."""
    at_us: int
    """When it was written, by the project's clock."""
    by: str
    """Who wrote it."""


class Fitted(msgspec.Struct, frozen=True):
    """A bundle as the registry lists it."""

    hash: str
    name: str
    kind: str
    at_us: int
    size: int
    manifest: bytes


class Registry(Protocol):
    """What every registry implements."""

    @classmethod
    def from_url(cls, url: Url) -> Self:
        """Returns the registry at a URL."""

    def stamp(self) -> int:
        """Returns a number that changes whenever a bundle or a row is added."""

    def add(self, bundle: Bundle, *entries: Entry) -> str:
        """Returns the hash of a bundle, which stands in the registry from then on, and rows with it, all or none."""

    def load(self, name_hash: str) -> Bundle:
        """Returns a bundle; raises UnknownNameError, or FormatError if it is damaged."""

    def bundles(self, name: str | None = None) -> list[Fitted]:
        """Returns the bundles, the newest first."""

    def write(self, *entries: Entry) -> tuple[Entry, ...]:
        """Returns the rows with their ids, all written or none.

        Raises FencedError unless the `id` of each is that of the newest of its kind and name; 0 stands for none yet.
        """

    def newest(self, kind: str) -> dict[str, Entry]:
        """Returns the newest row of each name."""

    def entries(self, kind: str, name: str) -> list[Entry]:
        """Returns all rows of a kind and name, the oldest first."""

    def close(self) -> None:
        """Lets go of it."""


SCHEMES = Schemes(
    noun="registry",
    group="headrace.registries",
    schemes={"sqlite": Scheme("headrace.models.registry_sqlite:SqliteRegistry")},
)


def open_registry(url: Url | str) -> Registry:
    """Returns the open registry of a URL."""
    registry: Registry = SCHEMES.open(url)
    return registry

"""A topic read on as it grows, without a group: nobody sees that it was read."""

from __future__ import annotations

import time
from collections.abc import Sequence

from headrace.base.errors import PositionError
from headrace.topics import Message, Topics

_PORTION = 5_000
_CHECK_SECONDS = 2.0


class Follower:
    """Reads a topic, from not too many records before its end on; where too many come, it leaves some out."""

    def __init__(self, topics: Topics, name: str, *, most: int) -> None:
        self._topics, self._name = topics, name
        self._incarnation = topics.describe(name).incarnation
        self._checked_at = time.monotonic()
        bounds = topics.bounds(name)
        self._most = max(most // len(bounds), 1)
        self.starts = tuple(max(bound.start, bound.end - self._most) for bound in bounds)
        """Where in each partition it has begun."""
        self.offsets = dict(enumerate(self.starts))
        """Behind which record of each partition it goes on."""
        self.behind = sum(bound.end for bound in bounds) - sum(self.starts)
        """How many records it has not read yet."""

    @property
    def is_level(self) -> bool:
        """Whether at its last read all but the newest was read."""
        return self.behind < _PORTION

    def read(self) -> Sequence[Message]:
        """Returns what comes next, by its time.

        Raises PositionError for a topic that was created anew, or has been outrun.
        """
        if time.monotonic() - self._checked_at > _CHECK_SECONDS:
            self._check()
        messages = self._topics.read(self._name, self.offsets, max_records=_PORTION, wait_seconds=0)
        for message in messages:
            self.offsets[message.partition] = message.offset + 1
        ends = {p: bound.end for p, bound in enumerate(self._topics.bounds(self._name))}
        # On Kafka nothing but the markers of transactions may stand before the ends; a read ends early where records
        # are long.
        self.behind = sum(ends[p] - offset for p, offset in self.offsets.items()) if messages else 0
        # Partitions are read one after the other.
        return sorted(messages, key=lambda message: message.time_us)

    def _check(self) -> None:
        self._checked_at = time.monotonic()
        found = self._topics.describe(self._name).incarnation
        if found != self._incarnation:
            raise PositionError(f"topic {self._name!r} was created anew ({found}); what was seen of it is forgotten")
        behind = max(
            bound.end - self.offsets[partition] for partition, bound in enumerate(self._topics.bounds(self._name))
        )
        if behind > 2 * self._most:
            raise PositionError(f"topic {self._name!r} grows faster than it is watched; going on near its end")

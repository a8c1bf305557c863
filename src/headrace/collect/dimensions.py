"""What the dimensions hold, read from their topics and kept in memory at every offset."""

from __future__ import annotations

import time
from collections.abc import Iterable

from headrace.base.errors import FormatError, PositionError, UnknownNameError, unknown_name
from headrace.base.telemetry import get_logger
from headrace.events.dimension import History, decode_member, is_member
from headrace.topics import Message, Topics

_PORTION = 10_000
# Shorter than a lease, which who waits here cannot renew.
_WAIT_SECONDS = 2.0

_LOGGER = get_logger("dimensions")


class Dimensions:
    """The histories of some dimensions, each as far as it has been read; one thread reads on, any may look up."""

    def __init__(self, topics: Topics, names: Iterable[str], *, wait_seconds: float = _WAIT_SECONDS) -> None:
        self._topics = topics
        self._wait_seconds = wait_seconds
        self._histories = {name: History() for name in names}
        self._incarnations: dict[str, str] = {}

    def history(self, name: str) -> History:
        """Returns the members of a dimension, as far as they have been read."""
        try:
            return self._histories[name]
        except KeyError as error:
            raise unknown_name("dimension", name, self._histories) from error

    def end(self, name: str) -> int:
        """Returns the offset up to which a dimension has been read; 0 while nothing was ever loaded."""
        return self.history(name).end

    def refresh(self) -> None:
        """Reads all dimensions to where they end now; raises PositionError for a topic that was created anew."""
        for name, history in self._histories.items():
            if self._stands(name):
                end = self._topics.bounds(name)[0].end
                while history.end < end and self._read(name):
                    pass
                # On Kafka the last offsets may be markers of transactions.
                history.end = max(history.end, end)

    def at_least(self, name: str, offset: int) -> History:
        """Returns the members of a dimension known below an offset at least; raises PositionError if they do not come.

        A copy of `clicks` may be ahead of the copy of a dimension's topic; it is waited for.
        """
        history = self.history(name)
        if history.end >= offset:
            return history
        until = time.monotonic() + self._wait_seconds
        while history.end < offset:
            self.refresh()
            if history.end < offset:
                if time.monotonic() > until:
                    raise PositionError(
                        f"a marker in 'clicks' says that dimension {name!r} is known up to offset {offset}, and its "
                        f"topic {name!r} ends at {history.end}. Bring the rest of its records back, or load the "
                        f"dimension again: headrace table load FILE --table {name}"
                    )
                time.sleep(0.02)
        return history

    def _stands(self, name: str) -> bool:
        try:
            found = self._topics.describe(name).incarnation
        except UnknownNameError:
            if name in self._incarnations:
                raise
            return False
        began = self._incarnations.setdefault(name, found)
        if found != began:
            raise PositionError(
                f"topic {name!r} was created anew: its members were read from incarnation {began}, it is {found} now. "
                f"Start this role again, and load the dimension: headrace table load FILE --table {name}"
            )
        return True

    def _read(self, name: str) -> bool:
        history = self._histories[name]
        start = max(history.end, self._topics.bounds(name)[0].start)
        messages = self._topics.read(name, {0: start}, max_records=_PORTION, wait_seconds=0)
        for message in messages:
            _take(history, name, message)
        return bool(messages)


def _take(history: History, name: str, message: Message) -> None:
    value = message.value or b""
    try:
        member = decode_member(value)
    except (ValueError, RecursionError) as error:
        place = f"topic {name!r}, offset {message.offset}"
        if is_member(value):
            raise FormatError(f"{place} holds a member that this Headrace cannot read: {error}") from error
        # Somebody has appended it by hand; whoever reads the topic passes it over.
        _LOGGER.warning("%s is no member and is passed over", place)
        history.end = message.offset + 1
    else:
        history.add(message.offset, member.key, member.attributes)

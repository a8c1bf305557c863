"""Sessions: which of a visitor's events belong together."""

from __future__ import annotations

import msgspec

GAP_US = 30 * 60 * 1_000_000
"""A pause longer than this ends a session."""


class Session(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The session that is open for a visitor: its id, and its first and last event."""

    id: str
    first_us: int
    last_us: int


def join_session(found: Session | None, event_us: int, fresh_id: str) -> tuple[str, Session | None]:
    """Returns the session id of an event, and the open session if the event has changed it.

    Within half an hour before its first or after its last event, an event joins the open session and
    widens it. A later one opens a new session. An earlier one, which arrived late, belongs to a session
    of its own and changes nothing.

    >>> _, morning = join_session(None, 0, "a")
    >>> join_session(morning, GAP_US, "b")
    ('a', Session(id='a', first_us=0, last_us=1800000000))
    >>> join_session(morning, GAP_US + 1, "c")
    ('c', Session(id='c', first_us=1800000001, last_us=1800000001))
    >>> join_session(morning, -GAP_US - 1, "d")
    ('d', None)
    """
    if found is None or event_us > found.last_us + GAP_US:
        return fresh_id, Session(fresh_id, event_us, event_us)
    if event_us < found.first_us - GAP_US:
        return fresh_id, None
    if event_us > found.last_us:
        return found.id, Session(found.id, found.first_us, event_us)
    if event_us < found.first_us:
        return found.id, Session(found.id, event_us, found.last_us)
    return found.id, found

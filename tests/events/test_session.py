"""Sessions: which events belong together, whatever the order in which they arrive."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.events.session import GAP_US, Session, join_session

SECOND = 1_000_000
OPEN = Session("s", 10 * GAP_US, 12 * GAP_US)


@pytest.mark.parametrize(
    ("event_us", "expected"),
    [
        (OPEN.last_us + GAP_US - SECOND, ("s", Session("s", OPEN.first_us, OPEN.last_us + GAP_US - SECOND))),
        (OPEN.last_us + GAP_US, ("s", Session("s", OPEN.first_us, OPEN.last_us + GAP_US))),
        (OPEN.last_us + GAP_US + SECOND, ("n", Session("n", *[OPEN.last_us + GAP_US + SECOND] * 2))),
        (OPEN.first_us - GAP_US + SECOND, ("s", Session("s", OPEN.first_us - GAP_US + SECOND, OPEN.last_us))),
        (OPEN.first_us - GAP_US, ("s", Session("s", OPEN.first_us - GAP_US, OPEN.last_us))),
        (OPEN.first_us - GAP_US - SECOND, ("n", None)),
        (OPEN.first_us, ("s", OPEN)),
        (OPEN.last_us, ("s", OPEN)),
        (11 * GAP_US, ("s", OPEN)),
        (0, ("n", None)),
    ],
)
def test_session_reaches_half_an_hour_beyond_both_its_ends(event_us, expected):
    assert join_session(OPEN, event_us, "n") == expected


def test_first_event_of_a_visitor_opens_a_session():
    assert join_session(None, 5, "n") == ("n", Session("n", 5, 5))


@settings(derandomize=True, deadline=None)
@given(times=st.lists(st.integers(0, 6 * GAP_US), min_size=1, max_size=30))
def test_open_session_spans_its_events_and_has_no_longer_gap(times):
    found, joined = None, {}
    for number, event_us in enumerate(times):
        session_id, changed = join_session(found, event_us, str(number))
        joined.setdefault(session_id, []).append(event_us)
        found = changed or found
    assert found is not None
    members = sorted(joined[found.id])
    assert (members[0], members[-1]) == (found.first_us, found.last_us)
    assert all(later - earlier <= GAP_US for earlier, later in pairwise(members))
    assert sum(map(len, joined.values())) == len(times)

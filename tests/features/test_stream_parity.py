"""Parity over the whole way: what pages were made of is what rows of the lake give, through all that clicks go through.

Clicks come late, again, by wrong clocks, from robots, before and after logins; genres change, and roles restart.
"""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from dataclasses import dataclass
from itertools import compress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from msgspec import UNSET, Raw
from msgspec.structs import replace

from features.chain import BUNDLE, Chain
from features.lakes import RowsLake, table_of
from features.oracle import is_known, millionths, read_path, rows_of
from features.test_parity import rows_of as rows_of_decisions
from headrace import learn
from headrace.collect.app import CLICKS
from headrace.collect.dimensions import Dimensions
from headrace.events.decision import Decision
from headrace.events.dimension import History, text_of
from headrace.events.settled import EVENTS, FAILED, SettledEvent, decode_settled
from headrace.features import Column, join
from headrace.features.parity import Parity, diff
from headrace.features.window import hop_of, tail_of
from survive.account import read_topic

MINUTE = 60_000_000
HOUR = 60 * MINUTE

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Stream:
    """What a stream has left behind, read once."""

    chain: Chain
    events: list[tuple[SettledEvent, int]]
    """All that was settled, with the partition of each."""
    history: History
    """The genres of all items."""
    labels: list[list[dict[str, Any]]]
    """Of each decision one for each item."""
    served: list[list[Any]]
    """The vectors of all decisions, one after the other."""
    lake: RowsLake
    """All rows of the lake, in memory."""

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.chain.columns

    def compare(self, decisions: list[Decision]) -> Parity:
        """Returns what decisions served, compared with the rows in memory."""
        return diff(self.lake, rows_of_decisions(decisions), {BUNDLE: self.columns})


@pytest.fixture(scope="module", params=[1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(2, 14))])
def stream(tmp_path_factory, request):
    chain = Chain(tmp_path_factory.mktemp("chain"), request.param)
    with contextlib.closing(chain):
        chain.play()
        chain.sink()
        yield read(chain)


def read(chain):
    project = chain.project
    events = [(decode_settled(m.value), m.partition) for m in read_topic(project, EVENTS) if not m.headers]
    dimensions = Dimensions(project.topics, ["items"])
    dimensions.refresh()
    history = dimensions.history("items")
    lake = learn.open_lake(project)
    rows, items = (lake.rows(f"SELECT * FROM {name}", {}) for name in (EVENTS, "items"))
    return Stream(
        chain=chain,
        events=events,
        history=history,
        labels=[labels_of(decision, history) for decision in chain.decisions],
        served=[vector for decision in chain.decisions for vector in json.loads(bytes(decision.vectors))],
        lake=RowsLake(rows, others={"items": items}),
    )


def labels_of(decision, history):
    end = json.loads(bytes(decision.dimensions))["items"]
    about = {"at_us": decision.at_us, "person": decision.person, "known": list(decision.known)}
    genres = {one: text_of((history.at(one, end) or {}).get("genre")) for one in decision.items}
    return [about | {"item": one, "@genre": genre} for one, genre in genres.items()]


# What was served.


def test_vectors_are_what_the_lake_gives(stream):
    lake = learn.open_lake(stream.chain.project)
    found = diff(lake, lake.rows("SELECT * FROM decisions", {}), {BUNDLE: stream.columns})
    assert (found.decisions, found.behind) == (len(stream.chain.decisions), 0)
    assert found.mismatches == 0, [one.examples for one in found.columns if one.mismatches]
    assert len(stream.served) >= 2000
    assert sum(one.told for one in found.columns) * 2 >= sum(one.compared for one in found.columns)


def test_vectors_are_what_a_loop_over_all_events_says(stream):
    counted = [[(event, p, rows_of(event, column)) for event, p in stream.events] for column in stream.columns]
    found = []
    for labels in stream.labels:
        known = [is_known(event, p, labels[0]) for event, p in stream.events]
        values = [
            find(column, compress(rows, known), labels) for column, rows in zip(stream.columns, counted, strict=True)
        ]
        found += [list(vector) for vector in zip(*values, strict=True)]
    assert found == stream.served


def find(column, rows, labels):
    """Returns one column's value for each item of a page, from the events that the page knew."""
    at_us = labels[0]["at_us"]
    tail_us = tail_of(at_us, column.window_us)
    by_key = defaultdict(list)
    for event, partition, of_items in rows:
        if tail_us <= event.event_us < at_us:
            for row in of_items:
                key = tuple(row[part] for part in column.by)
                by_key[key].append((event.event_us, partition, event.src_offset, row))
    keys = [tuple(label[part] for part in column.by) for label in labels]
    return [summed(column, [] if None in key else by_key.get(key, [])) for key in keys]


def summed(column, found):
    if column.kind == "count":
        return len(found)
    if column.kind == "total":
        return sum(millionths(read_path(row["properties"], column.value)) for *_, row in found) / 1e6
    texts = [(*place, row[column.value]) for *place, row in found if row[column.value] is not None]
    return max(texts)[-1] if texts else None


# What the stream had in it: vectors that would be others, had it been taken otherwise.


def test_late_events_are_in_the_vectors(stream):
    in_time = [(event, p) for event, p in stream.events if event.received_us - event.event_us < 30 * MINUTE]
    assert len(touched(stream, in_time)) >= 200


def test_events_that_came_after_the_page_are_not_in_the_vectors(stream):
    assert len(touched(stream, stream.events, known=[1 << 40] * 3)) >= 200


def test_batches_that_came_again_are_in_the_vectors_once(stream):
    assert len(touched(stream, stream.events + repeats(stream))) >= 50


def test_genres_that_changed_leave_earlier_events_as_they_were(stream):
    newest = touched(stream, with_genres_at(stream, stream.history.end))
    oldest = touched(stream, with_genres_at(stream, len(stream.history)))
    assert len(newest & oldest) >= 50


def test_logins_leave_earlier_events_to_the_visitor(stream):
    user_of = {event.visitor: event.user_id for event, _ in stream.events if event.user_id}
    stitched = [(replace(event, person=user_of.get(event.visitor, event.person)), p) for event, p in stream.events]
    labels = [label for of_page in stream.labels for label in of_page]
    users = {number for number, label in enumerate(labels) if label["person"] in user_of.values()}
    assert len(touched(stream, stitched) & users) >= 50


def test_robots_wrong_clocks_and_failures_are_in_the_stream(stream):
    events = [event for event, _ in stream.events]
    assert sum(event.bot for event in events) > 10
    assert sum("skewed" in event.flags for event in events) > 10
    assert read_topic(stream.chain.project, FAILED)


def touched(stream, events, **otherwise):
    """Returns the numbers of the vectors that would be others with these events, or if this were said of the pages."""
    labels = pa.Table.from_pylist([label | otherwise for of_page in stream.labels for label in of_page])
    found = join.join(RowsLake(table_of(events)), stream.columns, labels).to_pylist()
    return {number for number, row in enumerate(found) if list(row.values()) != stream.served[number]}


def repeats(stream):
    """Returns the events that would stand twice, were ids not known; each is known once the next event is."""
    by_id = {event.message_id: event for event, _ in stream.events}
    seen, found = set(), []
    for message in read_topic(stream.chain.project, CLICKS):
        message_id = json.loads(message.value)["messageId"] if message.value else None
        if message_id in seen:
            seq = sum(p == message.partition and event.src_offset < message.offset for event, p in stream.events)
            found.append((replace(by_id[message_id], src_offset=message.offset, seq=seq), message.partition))
        elif message_id in by_id:
            seen.add(message_id)
    return found


def with_genres_at(stream, end):
    """Returns all events as they would be with the genres of one offset of the dimension."""
    found = []
    for event, partition in stream.events:
        named = [] if event.attributes is UNSET else json.loads(bytes(event.attributes))
        known = Raw(json.dumps({name: stream.history.at(name, end) for name in named}).encode())
        found.append((replace(event, attributes=known) if named else event, partition))
    return found


# Faults that are planted.


@pytest.mark.parametrize("hops", [1, -1])
def test_window_that_is_a_hop_off_is_found(stream, monkeypatch, hops):
    monkeypatch.setattr(join, "tail_of", lambda at_us, window_us: tail_of(at_us, window_us) + hops * hop_of(window_us))
    assert stream.compare(stream.chain.decisions).mismatches > 0


def test_reader_that_counts_what_happens_at_its_own_instant_is_found(stream):
    assert stream.compare(stream.chain.faulty).mismatches > 0


def test_late_event_that_was_skipped_is_found(stream):
    rows = stream.lake.events
    late = pc.and_(
        pc.greater(pc.subtract(rows["received_us"], rows["event_us"]), HOUR),
        pc.and_(pc.equal(rows["event"], "Product Clicked"), pc.invert(rows["bot"])),
    )
    place = pc.index(late, True).as_py()
    without = pa.concat_tables([rows.slice(0, place), rows.slice(place + 1)])
    found = diff(
        RowsLake(without, others=stream.lake.others),
        rows_of_decisions(stream.chain.decisions),
        {BUNDLE: stream.columns},
    )
    assert found.mismatches > 0

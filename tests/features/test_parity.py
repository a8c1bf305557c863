"""Parity: decisions whose vectors a loop over all events made are confirmed, and one value that is off is shown."""

from __future__ import annotations

import json
import random

import pyarrow as pa
import pytest
from msgspec import Raw

from features.lakes import RowsLake, table_of
from features.oracle import oracle
from features.test_kernel import BEGAN_US, COLUMNS, MINUTE, busy
from headrace.base.errors import StopError
from headrace.events.decision import encode
from headrace.events.dimension import History, text_of
from headrace.features.parity import diff
from headrace.stream import CODECS
from headrace.topics import Message
from streamline import decided

BUNDLE = "b1"
GENRES = [("a", "drama"), ("b", "crime"), ("a", "crime"), ("c", None), ("b", "drama")]


def members_of(genres):
    """Returns the rows of a dimension's table, and its history."""
    history, rows = History(), []
    for offset, (key, genre) in enumerate(genres):
        known = {} if genre is None else {"genre": genre}
        history.add(offset, key, known)
        rows.append({"key": key, "attributes": json.dumps(known), "log_offset": offset})
    schema = pa.schema([("key", pa.string()), ("attributes", pa.string()), ("log_offset", pa.int64())])
    return pa.Table.from_pylist(rows, schema=schema), history


def make_decisions(events, history, *, number=30, seed=11):
    """Returns decisions with vectors by the oracle, made at instants that know all or some of the events."""
    rng = random.Random(seed)
    ends = [sum(partition == p for _, partition in events) for p in range(2)]
    decisions = []
    for _ in range(number):
        at_us = BEGAN_US + rng.randrange(8 * 12) * 5 * MINUTE
        known = [rng.randrange(end // 2, end + 1) for end in ends]
        end, who, shown = rng.randrange(len(GENRES) + 1), rng.choice("abc"), rng.sample("abcx", 3)
        labels = [
            {"at_us": at_us, "person": who, "item": one, "known": known}
            | {"@genre": text_of((history.at(one, end) or {}).get("genre"))}
            for one in shown
        ]
        vectors = oracle(events, COLUMNS, labels)
        served = {"vectors": Raw(json.dumps(vectors).encode()), "dimensions": Raw(json.dumps({"items": end}).encode())}
        decisions.append(decided(who, shown, at_us=at_us, bundle=BUNDLE, known=tuple(known), **served))
    return decisions


def rows_of(decisions):
    """Returns the rows of the lake for decisions."""
    codec = CODECS["decisions"]
    messages = [Message(None, encode(one), partition=0, offset=number) for number, one in enumerate(decisions)]
    return pa.Table.from_batches([codec.read(messages)] if messages else [], schema=codec.schema)


@pytest.fixture(scope="module")
def world():
    events, _ = busy(num_events=200)
    members, history = members_of(GENRES)
    return RowsLake(table_of(events), others={"items": members}), make_decisions(events, history)


def compare(world, decisions=None, columns=COLUMNS):
    lake, made = world
    return diff(lake, rows_of(made if decisions is None else decisions), {BUNDLE: columns})


def test_vectors_of_a_loop_over_all_events_are_confirmed(world):
    found = compare(world)
    assert (found.decisions, found.behind, found.mismatches) == (30, 0, 0)
    assert [one.column for one in sorted(found.columns, key=lambda one: COLUMNS.index(one.column))] == list(COLUMNS)
    assert {one.compared for one in found.columns} == {90}
    assert sum(one.told for one in found.columns) > 200


def test_value_that_is_off_by_one_is_found_and_shown(world):
    _, decisions = world
    vectors = json.loads(bytes(decisions[4].vectors))
    vectors[1][0] += 1
    changed = [*decisions]
    changed[4] = _with(decisions[4], vectors)
    found = compare(world, changed)
    (wrong,) = [one for one in found.columns if one.mismatches]
    assert (found.mismatches, wrong.column) == (1, COLUMNS[0])
    (example,) = wrong.examples
    assert (example.recommendation_id, example.item) == (decisions[4].recommendation_id, decisions[4].items[1])
    assert example.served == example.recomputed + 1


def _with(decision, vectors):
    fields = {name: getattr(decision, name) for name in decision.__struct_fields__}
    return type(decision)(**fields | {"vectors": Raw(json.dumps(vectors).encode())})


def test_attribute_read_at_another_offset_is_found(world):
    lake, decisions = world
    members, _ = members_of([*GENRES[2:], *GENRES[:2]])
    found = diff(RowsLake(lake.events, others={"items": members}), rows_of(decisions), {BUNDLE: COLUMNS})
    assert {one.column.name for one in found.columns if one.mismatches} == {"taste_1h", "taste_1d", "taste_28d"}


def test_event_that_a_lake_has_lost_is_found(world):
    lake, decisions = world
    lost = pa.concat_tables([lake.events.slice(0, 60), lake.events.slice(100)])
    assert diff(RowsLake(lost, others=lake.others), rows_of(decisions), {BUNDLE: COLUMNS}).mismatches > 0


def test_decision_that_knows_more_than_the_lake_waits(world):
    lake, decisions = world
    early = RowsLake(lake.events.slice(0, 150), others=lake.others)
    found = diff(early, rows_of(decisions), {BUNDLE: COLUMNS})
    assert found.behind > 0
    assert found.decisions + found.behind == 30
    assert found.mismatches == 0


def test_decisions_without_vectors_or_of_other_bundles_are_passed_over(world):
    _, decisions = world
    plain = decided("a", ["a"], at_us=BEGAN_US, bundle=BUNDLE)
    found = compare(world, [plain, *decisions[:2]])
    assert found.decisions == 2
    other = diff(world[0], rows_of(decisions), {"another": COLUMNS})
    assert (other.decisions, other.columns) == (0, ())
    old = rows_of(decisions).drop_columns(["vectors", "known", "dimensions"])
    assert diff(world[0], old, {BUNDLE: COLUMNS}).decisions == 0


def test_vectors_that_do_not_fit_their_bundle_stop_the_comparison(world):
    with pytest.raises(StopError, match="has vectors for other items or features than its bundle"):
        compare(world, columns=COLUMNS[:3])

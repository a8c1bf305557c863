"""The kernel under joins: what a loop over all events says, whatever the events, and more than nothing with a fault."""

from __future__ import annotations

import json
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from features.lakes import RowsLake, table_of
from features.oracle import oracle
from headrace import Event
from headrace.base.errors import StopError
from headrace.events.dimension import Attribute, Dimension
from headrace.events.settled import SettledEvent
from headrace.features import count, item, join, kernel, keys, last, list_columns, person, total

MINUTE = 60_000_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR
BEGAN_US = 1_767_571_200_000_000  # 2026-01-05, a hop's edge of every window

title, genre = Attribute("title"), Attribute("genre")
items = Dimension("items", key="product_id", attributes=(title, genre))
clicks = Event("Product Clicked", item="product_id", of=items)
views = Event("Product List Viewed", item="products[].product_id", of=items)
searches = Event("Searched", fields={"length": int})
FEATURES = (
    count("taste", clicks, by=(person, genre), windows=("1h", "1d", "28d")),
    count("appeal", clicks, by=item, windows=("1h", "1d")),
    count("shown", views, by=(person, item), windows=("1d",)),
    count("asked", searches, by=person, windows=("1d",)),
    total("spent", clicks, "price", by=person, windows=("1h", "28d")),
    total("paid", clicks, "cart.price", by=person, windows=("1d",)),
    last("latest", clicks, item, by=person, windows=("1h", "1d")),
    last("mood", clicks, genre, by=person, windows=("1h", "28d")),
    last("seen", views, item, by=person, windows=("1d",)),
)
COLUMNS = list_columns(FEATURES)
LABELS = pa.schema(
    {"at_us": pa.int64(), "person": pa.string(), "item": pa.string(), "@genre": pa.string()}
    | {"known": pa.list_(pa.int64())}
)
PRICES = (1, 2.5, -3.1, 0.1, 5e-7, 1e13, -9e8, "7", None, True, [1], 12345678901234567890123)

# Few instants, at the edges of hops and a little beside, so that most meet.
instants = st.builds(
    lambda slot, hop, beside: BEGAN_US + slot * hop + beside,
    st.integers(0, 12),
    st.sampled_from([5 * MINUTE, HOUR, DAY]),
    st.sampled_from([-1, 0, 0, 1]),
)
names = st.sampled_from(["a", "b", "c"])
attributes = st.one_of(st.none(), st.fixed_dictionaries({"genre": st.sampled_from(["drama", "crime", 7, True, None])}))


@st.composite
def drawn_events(draw):
    """Events of two partitions, some late, some at one instant, with items and without."""
    events, seqs = [], [0, 0]
    for number in range(draw(st.integers(0, 14))):
        partition, at_us = draw(st.integers(0, 1)), draw(instants)
        name = draw(st.sampled_from(["Product Clicked"] * 3 + ["Product List Viewed", "Searched"]))
        found = draw(st.lists(names, max_size=3))
        properties = {"price": draw(st.sampled_from(PRICES)), "cart": {"price": draw(st.sampled_from(PRICES))}}
        if name == "Product List Viewed":
            properties["products"] = [{"product_id": one} for one in found]
        elif name == "Product Clicked" and found:
            properties["product_id"] = found[0]
        known = {one: draw(attributes) for one in found}
        late_us = draw(st.sampled_from([0, 0, 1, HOUR, 3 * DAY]))
        events.append(
            (
                make_event(
                    number,
                    name,
                    at_us,
                    properties,
                    seq=seqs[partition],
                    late_us=late_us,
                    person=draw(names),
                    known={k: v for k, v in known.items() if v},
                    bot=draw(st.integers(0, 9)) == 0,
                ),
                partition,
            )
        )
        seqs[partition] += 1
    return events


@st.composite
def drawn_labels(draw):
    """Labels, of which some were served, by positions that need not rise with time."""
    known = st.one_of(st.none(), st.just([]), st.lists(st.integers(0, 8), min_size=1, max_size=2))
    return draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "at_us": instants,
                    "person": st.one_of(st.none(), names),
                    "item": st.one_of(st.none(), names),
                    "@genre": st.sampled_from([None, "drama", "crime", "7", "true"]),
                    "known": known,
                }
            ),
            max_size=12,
        )
    )


def make_event(number, name, at_us, properties, *, seq, late_us=0, person="a", known=None, bot=False):
    """Returns a settled event."""
    return SettledEvent(
        1, f"m-{number}", "dev", "track", name, at_us, at_us + late_us, 0, person, "0-0", number, seq, "00",
        bot=bot, properties=Raw(json.dumps(properties).encode()), attributes=Raw(json.dumps(known or {}).encode()),
    )  # fmt: skip


def joined(events, labels, columns=COLUMNS, **lake):
    """Returns the values of each label, from rows of a lake."""
    table = pa.Table.from_pylist(labels, schema=LABELS)
    found = join.join(RowsLake(table_of(events), **lake), columns, table)
    assert found.schema.names == [column.name for column in columns]
    return [list(row.values()) for row in found.to_pylist()]


def busy(seed=7, *, num_events=200, num_labels=60):
    """Returns events and labels that meet often."""
    rng = random.Random(seed)
    events, seqs = [], [0, 0]
    for number in range(num_events):
        partition, found = rng.randrange(2), rng.choice("abc")
        at_us = BEGAN_US + rng.randrange(60) * 5 * MINUTE + rng.choice((-1, 0, 1))
        event = make_event(
            number, "Product Clicked", at_us, {"product_id": found, "price": rng.choice(PRICES)}, seq=seqs[partition],
            late_us=rng.choice((0, 0, 0, 1, HOUR)), person=rng.choice("abc"),
            known={found: {"genre": rng.choice(("drama", "crime"))}},
        )  # fmt: skip
        events.append((event, partition))
        seqs[partition] += 1
    labels = [
        {
            "at_us": BEGAN_US + rng.randrange(72) * 5 * MINUTE + rng.choice((-1, 0, 1)),
            "person": rng.choice("abc"),
            "item": rng.choice("abc"),
            "@genre": rng.choice(("drama", "crime")),
            "known": rng.choice((None, [rng.randrange(num_events // 2 + 1) for _ in range(2)])),
        }
        for _ in range(num_labels)
    ]
    return events, labels


def differences(events, labels):
    """Returns how many values differ from the oracle's, and how many say something."""
    found, expected = joined(events, labels), oracle(events, COLUMNS, labels)
    pairs = [pair for row in zip(found, expected, strict=True) for pair in zip(*row, strict=True)]
    return sum(one != other for one, other in pairs), sum(bool(other) for _, other in pairs)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True)
@given(drawn_events(), drawn_labels(), st.randoms(use_true_random=False))
def test_join_gives_what_a_loop_over_all_events_gives(events, labels, rng):
    shuffled = rng.sample(events, len(events))
    assert joined(shuffled, labels) == oracle(events, COLUMNS, labels)


def test_join_of_a_busy_lake_says_something_and_nothing_wrong():
    different, told = differences(*busy())
    assert different == 0
    assert told > 200


@pytest.mark.parametrize("hops", [1, -1])
def test_window_that_is_a_hop_off_is_found(monkeypatch, hops):
    right = join.tail_of
    monkeypatch.setattr(join, "tail_of", lambda at_us, window_us: right(at_us, window_us) + hops * 5 * MINUTE)
    assert differences(*busy())[0] > 0


def test_event_at_the_very_instant_is_found(monkeypatch):
    right = join.bounds_of
    monkeypatch.setattr(join, "bounds_of", lambda at_us, windows: (right(at_us, windows)[0], at_us + 1))
    assert differences(*busy())[0] > 0


def test_late_event_that_is_passed_over_is_found(monkeypatch):
    right = join._read_rows

    def without_late(*given):
        rows = right(*given)
        return rows.filter(pa.compute.less(rows["received_us"], pa.compute.add(rows["event_us"], HOUR)))

    monkeypatch.setattr(join, "_read_rows", without_late)
    assert differences(*busy())[0] > 0


def test_event_that_was_not_known_yet_is_found(monkeypatch):
    right = join._read_known
    monkeypatch.setattr(join, "_read_known", lambda column: np.where(right(column) > 0, 1 << 40, 0))
    assert differences(*busy())[0] > 0


def test_labels_that_fall_behind_are_evaluated_apart(monkeypatch):
    events, labels = busy(num_labels=200)
    looks = []
    right = kernel._evaluate_apart
    monkeypatch.setattr(kernel, "_MUCH", 0)
    monkeypatch.setattr(kernel, "_evaluate_apart", lambda *given, **more: looks.append(1) or right(*given, **more))
    assert differences(events, labels)[0] == 0
    assert len(looks) > kernel._LEVELS


def test_order_of_rows_and_number_of_threads_change_nothing(monkeypatch):
    events, labels = busy()
    right = joined(events, labels)
    for module in (kernel, keys):
        monkeypatch.setattr(module, "_LITTLE", 1)
    for threads in (1, 3):
        for module in (join, keys):
            monkeypatch.setattr(module, "count_threads", lambda threads=threads: threads)
        assert joined(random.Random(threads).sample(events, len(events)), labels) == right


def test_many_rows_of_one_key_are_sorted_however_they_come():
    rng = np.random.default_rng(7)
    for size in (1, 15, 16, 17, 33, 100, 4096, 5000):
        group, time_us, place = rng.integers(-1, 2, size), rng.integers(0, size // 3 + 1, size), rng.permutation(size)
        starts, order, sorted_us = kernel.sort_rows(group, time_us, place, 2, threads=2)
        assert order.tolist() == np.lexsort((place, time_us, group))[(group < 0).sum() :].tolist()
        assert sorted_us.tolist() == time_us[order].tolist()
        assert starts.tolist() == [0, int((group == 0).sum()), int((group >= 0).sum())]


# Sums.


def sums_of(prices):
    events = [
        (make_event(n, "Product Clicked", BEGAN_US, {"product_id": "a", "price": one}, seq=n), 0)
        for n, one in enumerate(prices)
    ]
    columns = list_columns((total("spent", clicks, "price", by=person, windows=("1d",)),))
    ((found,),) = joined(events, [{"at_us": BEGAN_US + 1, "person": "a"}], columns)
    return found


def test_total_keeps_millionths_and_passes_over_what_is_no_number():
    assert sums_of([0.1, 0.2, 1e-6, "7", None, True, [3], {}, 1e13, 10**30]) == 0.300001
    assert sums_of([]) == 0.0


def test_total_may_leave_64_bits_on_the_way_and_not_at_the_end():
    assert sums_of([9e12, 9e12, -9e12, -9e12, 2.5]) == 2.5
    with pytest.raises(StopError, match=r"spent_1d: the sum of 'price' for label 0 does not fit into 64 bits"):
        sums_of([9e12, 9e12])


def test_infinity_in_raw_json_counts_nothing():
    event = make_event(0, "Product Clicked", BEGAN_US, {}, seq=0)
    event.properties = Raw(b'{"product_id": "a", "price": 1e400}')
    columns = list_columns((total("spent", clicks, "price", by=person, windows=("1d",)),))
    assert joined([(event, 0)], [{"at_us": BEGAN_US + 1, "person": "a"}], columns) == [[0.0]]


# Knowledge.


def test_one_label_that_knew_little_changes_no_other():
    events = [(make_event(n, "Product Clicked", BEGAN_US + n, {"product_id": "a"}, seq=n), 0) for n in range(50)]
    labels = [{"at_us": BEGAN_US + n, "item": "a", "known": [n]} for n in range(50)]
    labels += [{"at_us": BEGAN_US + 60, "item": "a", "known": [1]}]
    columns = list_columns((count("appeal", clicks, by=item, windows=("1d",)),))
    assert joined(events, labels, columns) == [[n] for n in range(50)] + [[1]]


def test_event_that_arrived_after_the_lake_was_read_counts_for_nobody():
    events = [(make_event(0, "Product Clicked", BEGAN_US, {"product_id": "a"}, seq=0, late_us=HOUR), 0)]
    labels = [{"at_us": BEGAN_US + 2 * HOUR, "item": "a"}]
    columns = list_columns((count("appeal", clicks, by=item, windows=("1d",)),))
    assert joined(events, labels, columns, at_us=BEGAN_US + HOUR) == [[1]]
    assert joined(events, labels, columns, at_us=BEGAN_US + HOUR - 1) == [[0]]

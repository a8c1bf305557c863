"""Features read at the served instant: they are what a loop over all events says, and what is missing is told."""

import contextlib

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from features.lakes import RowsLake, table_of
from features.oracle import value_of
from features.traffic import CLICKS, COLUMNS, DAY, GENRE, GENRES, HOUR, SECOND, START_US, Shop
from headrace.base.errors import StopError, UnavailableError
from headrace.base.urls import Url
from headrace.events.settled import encode
from headrace.features import count, item, list_columns, person, total
from headrace.features.join import join
from headrace.features.online import State, open_online
from headrace.features.serve import Items, Reader
from headrace.features.tiles import definitions_of, read_row
from headrace.features.updater import Growth


class Store:
    """An online store with all that was counted in it."""

    def __init__(self, folder, columns=COLUMNS, *, partitions=3, generation=1):
        self.online = open_online(Url.parse("sqlite:///online.db", root=folder))
        self.partitions = partitions
        self.counted = []
        self.begin(columns, generation)

    def begin(self, columns, generation):
        nothing = (0,) * self.partitions
        state = State(
            generation=generation,
            definitions=definitions_of(columns),
            incarnation="i",
            offsets=nothing,
            known=nothing,
            newest_us=nothing,
        )
        self.online.begin(state, columns)
        self.growth = Growth(self.online, state, columns)
        self.count(self.counted)
        assert self.online.promote(self.growth.state)

    def count(self, events):
        rows = [(partition, read_row(encode(event))) for event, partition in events]
        self.counted = [*self.counted, *events] if events is not self.counted else self.counted
        self.growth.count(rows)

    def close(self):
        self.online.close()


@pytest.fixture
def open_store(tmp_path):
    with contextlib.ExitStack() as stack:

        def open_it(*arguments, **options):
            store = Store(tmp_path, *arguments, **options)
            stack.callback(store.close)
            return store

        yield open_it


def items_of(shop):
    return Items(shop.items, {"genre": list(shop.genre_of.values())})


def expected(store, columns, person, items, genres, read):
    """Returns what the definition says: for each column a value for each item."""
    labels = [
        {"at_us": read.at_us, "person": person, "item": name, "@genre": genre, "known": read.known}
        for name, genre in zip(items.ids, genres, strict=True)
    ]
    return [[value_of(store.counted, column, label) for label in labels] for column in columns]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [8, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(20, 32))])
def test_values_are_what_a_loop_over_all_events_says(open_store, seed):
    shop, store = Shop(seed), open_store()
    reader = Reader(store.online, COLUMNS)
    items, genres = items_of(shop), list(shop.genre_of.values())
    others = Items(["item-3", "nobody's"], {"genre": ["space", None]})
    told = 0
    for turn in range(16):
        store.count(shop.events(25))
        if turn % 6 == 0:
            items, genres = items_of(shop), list(shop.genre_of.values())
        # Now, and later: on the edge of an hour, of a day, and past some windows.
        edges = [0, shop.now_us // HOUR * HOUR + HOUR, shop.now_us // DAY * DAY + DAY + turn % 3 - 1]
        now_us = [*edges, shop.now_us + 30 * HOUR, shop.now_us + SECOND][turn % 5]
        someone = ["v1", "u1", "v4", "u2"][turn % 4]
        for asked, known in ((items, genres), (others, ["space", None])):
            read = reader.read(someone, asked, now_us)
            assert read.at_us == max(now_us, max(event.event_us for event, _ in store.counted) + 1)
            assert sum(read.known) == len(store.counted)
            found = [values.tolist() for values in read.values]
            assert found == expected(store, COLUMNS, someone, asked, known, read)
            told += sum(bool(value) for values in found for value in values)
    assert told > 500


@pytest.mark.slow
def test_rows_of_the_lake_have_the_values_that_were_served(open_store):
    shop, store = Shop(15), open_store()
    reader, labels, served = Reader(store.online, COLUMNS), [], []
    for turn in range(40):
        store.count(shop.events(12))
        items, someone = items_of(shop), ["v1", "u1", "v4", "u2"][turn % 4]
        read = reader.read(someone, items, shop.now_us + turn % 3 * HOUR)
        for place, (name, genre) in enumerate(shop.genre_of.items()):
            about = {"person": someone, "item": name, "@genre": genre, "@title": None}
            labels.append({"at_us": read.at_us, "known": list(read.known), **about})
            served.append([values[place] for values in read.values])
    rows = join(RowsLake(table_of(store.counted)), COLUMNS, pa.Table.from_pylist(labels)).to_pylist()
    assert [list(row.values()) for row in rows] == served
    assert sum(any(values) for values in served) > 300


def test_instant_is_never_before_an_event_that_was_counted(open_store):
    store, shop = open_store(), Shop()
    reader, items = Reader(store.online, COLUMNS), Items(["item-1"], {"genre": ["drama"]})
    assert reader.read("v0", items, 7).at_us == 7
    store.count([shop.make(1, START_US + 5, event="Other", kind="page")])
    assert reader.read("v0", items, START_US).at_us == START_US + 6
    assert reader.read("v0", items, START_US + DAY).at_us == START_US + DAY


def test_clock_that_goes_backwards_finds_what_was_left_behind(open_store):
    columns = list_columns((count("appeal", CLICKS, by=item, windows=("1d",)),))
    store, shop = open_store(columns), Shop()
    store.count([shop.make(0, START_US, items=["item-1"])])
    reader, items = Reader(store.online, columns), Items(["item-1"])
    found = [reader.read("v0", items, START_US + at).values[0].tolist() for at in (HOUR, 40 * HOUR, 2 * HOUR)]
    assert found == [[1.0], [0.0], [1.0]]


def test_another_generation_is_read_whole(open_store):
    store, shop = open_store(), Shop(4)
    reader, items = Reader(store.online, COLUMNS), items_of(shop)
    store.count(shop.events(120))
    before = reader.read("v1", items, shop.now_us)
    store.begin([*COLUMNS, *list_columns((count("more", CLICKS, by=GENRE, windows=("1d",)),))], 2)
    after = reader.read("v1", items, shop.now_us)
    assert after.state.generation == 2
    assert [values.tolist() for values in after.values] == [values.tolist() for values in before.values]


def test_array_that_somebody_holds_never_changes(open_store):
    columns = list_columns((count("appeal", CLICKS, by=item, windows=("1d",)),))
    store, shop = open_store(columns), Shop()
    reader, items = Reader(store.online, columns), Items(["item-1"])
    before = reader.read("v0", items, START_US + HOUR).values[0]
    store.count([shop.make(0, START_US, items=["item-1"])])
    assert reader.read("v0", items, START_US + HOUR).values[0].tolist() == [1.0]
    assert before.tolist() == [0.0]
    with pytest.raises(ValueError, match="read-only"):
        before[0] = 1


def test_column_that_the_store_has_no_tiles_for_is_told(open_store):
    store = open_store()
    wider = list_columns((count("taste", CLICKS, by=(person, GENRE), windows=("7d",)),))
    with pytest.raises(UnavailableError, match="no tiles for taste_7d yet"):
        Reader(store.online, wider).read("v0", Items(["item-1"], {"genre": ["drama"]}), START_US)


def test_attribute_that_nobody_knows_is_told(open_store):
    with pytest.raises(UnavailableError, match="nobody has said which 'genre' the items have"):
        Reader(open_store().online, COLUMNS).read("v0", Items(["item-1"]), START_US)


def test_store_that_serves_nothing_yet_is_told(tmp_path):
    online = open_online(Url.parse("sqlite:///online.db", root=tmp_path))
    with pytest.raises(UnavailableError, match="Does the updater run"):
        Reader(online, COLUMNS).read("v0", Items([]), START_US)


@pytest.mark.parametrize("by", [item, person])
def test_sum_over_tiles_that_leaves_64_bits_is_told(open_store, by):
    columns = list_columns((total("worth", CLICKS, "price", by=by, windows=("1d",)),))
    store, shop = open_store(columns), Shop()
    store.count([shop.make(0, START_US + at * HOUR, items=["item-1"], price=9e12) for at in range(2)])
    with pytest.raises(StopError, match="worth_1d: a sum does not fit into 64 bits"):
        Reader(store.online, columns).read("v0", Items(["item-1"]), START_US + 2 * HOUR)


def test_items_of_a_bundle_may_be_none_or_named_twice(open_store):
    store, shop = open_store(), Shop()
    store.count([shop.make(0, START_US, items=["item-1"])])
    reader = Reader(store.online, COLUMNS)
    assert [len(values) for values in reader.read("v0", Items([], {"genre": []}), START_US).values] == [0] * len(
        COLUMNS
    )
    twice = Items(["item-1", "item-2", "item-1"], {"genre": [GENRES[1]] * 3})
    reader.prepare(twice)
    appeal = next(number for number, column in enumerate(COLUMNS) if column.name == "appeal_1d")
    assert np.array_equal(reader.read("v0", twice, START_US).values[appeal], [1, 0, 1])


def test_values_can_be_written_down(open_store):
    store, shop = open_store(), Shop()
    store.count([shop.make(0, START_US, items=["item-1"], price=2.5)])
    values = Reader(store.online, COLUMNS).read("v0", items_of(shop), START_US).values
    assert b'"item-1"' in msgspec.json.encode([column[[1, 0]].tolist() for column in values])

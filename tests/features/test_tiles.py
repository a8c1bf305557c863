"""Tiles: a pure fold, whose bytes depend on the events and on nothing else."""

import itertools
import json
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.traffic import CLICKS, COLUMNS, DAY, GENRE, HOUR, START_US, VIEWS, Shop
from headrace.base.errors import FormatError, StopError
from headrace.events.settled import encode
from headrace.features import count, item, last, list_columns, person, total
from headrace.features.tiles import Fold, definitions_of, make_blob, pack, read_number, read_row, unpack

GOLDEN = Path(__file__).parents[2] / "docs/contracts/tiles.golden.json"


def fold(events, columns=COLUMNS, *, cuts=()):
    """Returns the blobs of events by entity and partition, packed and read again at each cut."""
    folder, blobs = Fold(columns), {}
    bounds = [0, *sorted(cuts), len(events)]
    for start, end in itertools.pairwise(bounds):
        touched = {}
        for event, partition in events[start:end]:
            for entity, addition in folder.additions(read_row(encode(event))):
                touched.setdefault((entity, partition), []).append(addition)
        for place, additions in touched.items():
            blob = unpack(blobs[place], place) if place in blobs else make_blob()
            folder.extend(blob, additions)
            folder.prune(blob)
            blobs[place] = pack(blob, place)
    return blobs


EVENTS = Shop(3).events(400)
WHOLE = fold(EVENTS)


@settings(max_examples=25, deadline=None)
@given(st.sets(st.integers(1, 399), max_size=12), st.randoms(use_true_random=False))
def test_bytes_are_the_same_in_any_cut_and_order(cuts, random):
    assert fold(EVENTS, cuts=cuts) == WHOLE
    shuffled = list(EVENTS)
    random.shuffle(shuffled)
    assert fold(shuffled, cuts=cuts) == WHOLE


def test_columns_of_any_order_and_name_make_the_same_tiles():
    renamed = [msgspec.structs.replace(column, name=f"x{column.name}") for column in reversed(COLUMNS)]
    assert fold(EVENTS, renamed) == WHOLE
    assert definitions_of(renamed) == definitions_of(COLUMNS)
    assert definitions_of(COLUMNS[1:]) != definitions_of(COLUMNS)


def tiles_of(blobs, place, family, rest=()):
    return unpack(blobs[place], place).families[family][rest]


APPEAL = list_columns((count("appeal", CLICKS, by=item, windows=("1d",)),))


def test_late_event_goes_into_its_tile_while_that_stands():
    shop, at = Shop(), START_US + 100 * HOUR
    newest = shop.make(0, at, items=["item-1"])
    late = shop.make(0, at - 20 * HOUR, items=["item-1"])
    too_late = shop.make(0, at - 26 * HOUR, items=["item-1"])
    blobs = fold([newest, late, too_late], APPEAL, cuts=[1, 2])
    place = (b"item\0item-1", 0)
    assert tiles_of(blobs, place, APPEAL[0].family) == {HOUR: {(at - 20 * HOUR) // HOUR: 1, at // HOUR: 1}}
    assert blobs == fold([too_late, late, newest], APPEAL)


def test_robots_and_calls_that_are_no_track_count_for_nothing():
    shop = Shop()
    events = [
        shop.make(0, START_US, items=["item-1"], bot=True),
        shop.make(0, START_US, items=["item-1"], kind="page"),
        shop.make(0, START_US, event="Product Added", items=["item-1"]),
        shop.make(0, START_US),
    ]
    assert fold(events, APPEAL) == {}


def test_event_counts_once_for_each_item_that_it_names():
    columns = list_columns((count("seen", VIEWS, by=(person, item), windows=("1d",)),))
    blobs = fold([Shop().make(2, START_US, event=VIEWS.name, items=["item-1", "item-2", "item-1"])], columns)
    blob = unpack(blobs[b"person\0v0", 2], (b"", 2))
    counts = {rest: sum(hops[HOUR].values()) for rest, hops in blob.families[columns[0].family].items()}
    assert counts == {("item-1",): 2, ("item-2",): 1}


def test_key_with_an_attribute_that_is_not_known_counts_nothing():
    columns = list_columns((count("taste", CLICKS, by=(person, GENRE), windows=("1d",)),))
    shop = Shop()
    assert fold([shop.make(0, START_US, items=[name]) for name in (shop.items[-1], "nobody's")], columns) == {}


def test_last_is_the_later_offset_and_of_one_event_the_greatest_text():
    columns = list_columns((last("latest", VIEWS, item, by=person, windows=("1h",)),))
    shop = Shop()
    first = shop.make(0, START_US, event=VIEWS.name, items=["item-9"])
    second = shop.make(0, START_US, event=VIEWS.name, items=["item-3", "item-4", "item-2"])
    for events in ([first, second], [second, first]):
        blobs = fold(events, columns)
        hops = tiles_of(blobs, (b"person\0v0", 0), columns[0].family)
        assert list(hops[300_000_000].values()) == [(START_US, second[0].src_offset, "item-4")]


def test_sum_that_leaves_64_bits_is_told_with_its_place():
    columns = list_columns((total("worth", CLICKS, "price", by=item, windows=("1d",)),))
    shop = Shop()
    events = [shop.make(1, START_US, items=["item-1"], price=9e12) for _ in range(2)]
    assert (
        tiles_of(fold(events[:1], columns), (b"item\0item-1", 1), columns[0].family)[HOUR][START_US // HOUR]
        == 9 * 10**18
    )
    with pytest.raises(StopError, match=r"leaves 64 bits.*item 'item-1', partition 1"):
        fold(events, columns)


@pytest.mark.parametrize(
    ("properties", "found"),
    [
        ({"price": 3}, 3.0),
        ({"price": -0.1}, -0.1),
        ({"price": "3"}, None),
        ({"price": True}, None),
        ({"price": None}, None),
        ({"price": [3]}, None),
        ({}, None),
        ({"price": 1 << 70}, float(1 << 70)),
    ],
)
def test_number_is_a_number_and_no_text(properties, found):
    assert read_number(json.dumps(properties).encode(), "price") == found


def test_number_may_stand_deeper_and_be_none_at_all():
    assert read_number(b'{"cart": {"price": 2}}', "cart.price") == 2
    assert read_number(b'{"cart": [{"price": 2}]}', "cart.price") is None
    assert read_number(b'{"price": 1e999, "other": 1e999}', "price") in (None, float("inf"))


def test_blob_of_another_version_or_damaged_is_told_with_its_place():
    with pytest.raises(FormatError, match=r"person 'ann', partition 3 cannot be read.*headrace feature backfill"):
        unpack(b"\xff\xff", (b"person\0ann", 3))
    other = make_blob()
    other.version = 9
    with pytest.raises(FormatError, match=r"version 9, this Headrace reads version 1"):
        unpack(msgspec.msgpack.encode(other), (b"person\0ann", 3))


def test_tiles_are_as_the_contract_says():
    golden = json.loads(GOLDEN.read_text())
    columns = [msgspec.convert(column, type(COLUMNS[0])) for column in golden["columns"]]
    events = [(json.dumps(one["event"]).encode(), one["partition"]) for one in golden["events"]]
    folder, blobs = Fold(columns), {}
    for value, partition in events:
        for entity, addition in folder.additions(read_row(value)):
            blob = blobs.setdefault((entity, partition), make_blob())
            folder.extend(blob, [addition])
            folder.prune(blob)
    found = [
        {"entity": place[0].decode(), "partition": place[1], "blob": pack(blob, place).hex()}
        for place, blob in sorted(blobs.items())
    ]
    assert found == golden["blobs"]


def test_many_events_are_pruned_to_what_windows_reach():
    shop, random = Shop(), Random(5)
    events = [shop.make(0, START_US + random.randrange(90 * DAY), items=["item-1"]) for _ in range(500)]
    (blob,) = fold(events, APPEAL).values()
    assert len(tiles_of({(b"x", 0): blob}, (b"x", 0), APPEAL[0].family)[HOUR]) <= 26

"""A join from the outside: every label once and in order, whatever is missing, and errors that say what."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from features.lakes import RowsLake, table_of
from features.test_kernel import BEGAN_US, COLUMNS, LABELS, busy, clicks, joined, make_event, person, views
from headrace import Event
from headrace.base.errors import CallError
from headrace.events.dimension import History
from headrace.features import count, item, join, last, list_columns
from headrace.features.keys import attributes_of, number_keys, number_part

DAY = 86_400_000_000


def test_every_label_comes_back_once_and_in_order():
    events, labels = busy(num_labels=40)
    right = joined(events, labels)
    order = random.Random(3).choices(range(40), k=100)
    assert joined(events, [labels[number] for number in order]) == [right[number] for number in order]


def test_lake_without_events_gives_zeros_and_nothing():
    _, labels = busy(num_events=1, num_labels=2)
    defaults = [None if column.is_text else 0 for column in COLUMNS]
    assert joined([], labels) == [defaults, defaults]


def test_no_labels_give_no_rows_with_the_columns_and_their_types():
    events, _ = busy(num_events=20)
    found = join.join(RowsLake(table_of(events)), COLUMNS, LABELS.empty_table())
    kinds = {"count": pa.int64(), "total": pa.float64(), "last": pa.string()}
    assert found.schema == pa.schema([(column.name, kinds[column.kind]) for column in COLUMNS])
    assert found.num_rows == 0


def test_no_columns_give_no_columns():
    assert joined(*busy(num_events=3, num_labels=2), columns=()) == []


def test_labels_in_other_layouts_of_text_are_read_alike():
    events, labels = busy(num_events=50, num_labels=10)
    table = pa.Table.from_pylist(labels, schema=LABELS)
    plain = join.join(RowsLake(table_of(events)), COLUMNS, table)
    for name, kind in (("person", pa.large_string()), ("item", pa.dictionary(pa.int32(), pa.string()))):
        table = table.set_column(table.schema.get_field_index(name), name, table.column(name).cast(kind))
    table = pa.concat_tables([table.slice(0, 3), table.slice(3)])
    assert join.join(RowsLake(table_of(events)), COLUMNS, table).equals(plain)


def test_labels_without_known_are_as_those_with_none():
    events, labels = busy(num_events=50, num_labels=10)
    labels = [label | {"known": None} for label in labels]
    table = pa.Table.from_pylist(labels, schema=LABELS).drop_columns(["known"])
    found = [list(row.values()) for row in join.join(RowsLake(table_of(events)), COLUMNS, table).to_pylist()]
    assert found == joined(events, labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"at_us": [1], "person": ["a"]}, "the labels have no column '@genre'"),
        ({"person": ["a"], "item": ["a"], "@genre": ["b"]}, "the labels have no column 'at_us'"),
        (
            {"at_us": pa.array([None], pa.int64()), "person": ["a"], "item": ["a"], "@genre": ["b"]},
            "some labels have no at_us",
        ),
    ],
)
def test_labels_that_lack_something_are_refused(labels, message):
    with pytest.raises(CallError, match=message):
        join.join(RowsLake(table_of([])), COLUMNS, pa.table(labels))


def test_item_of_a_property_that_a_project_declares_is_found():
    seats = Event("Product Clicked", item="seat", fields={"seat": str})
    columns = list_columns((count("taken", seats, by=item, windows=("1d",)),))
    events = [(make_event(0, "Product Clicked", BEGAN_US, {"seat": "4b"}, seq=0), 0)]
    assert joined(events, [{"at_us": BEGAN_US + 1, "item": "4b"}], columns) == [[1]]


def test_newest_of_an_event_with_several_items_is_the_greatest():
    columns = list_columns((last("seen", views, item, by=person, windows=("1d",)),))
    products = [{"product_id": name} for name in ("b", "c", "a")]
    events = [
        (make_event(n, "Product List Viewed", BEGAN_US, {"products": found}, seq=n), 0)
        for n, found in enumerate([[{"product_id": "z"}], products])
    ]
    assert joined(events, [{"at_us": BEGAN_US + 1, "person": "a"}], columns) == [["c"]]


def test_names_that_would_end_a_text_or_a_path_are_quoted():
    odd = Event("Product Clicked", item="product_id")
    columns = list_columns((count("n", odd, by=(person, item), windows=("1d",)),))
    events = [(make_event(0, "Product Clicked", BEGAN_US, {"product_id": "it's"}, seq=0, person='"; --'), 0)]
    assert joined(events, [{"at_us": BEGAN_US + 1, "item": "it's", "person": '"; --'}], columns) == [[1]]


def test_pairs_beyond_every_table_are_numbered_by_search(monkeypatch):
    rng = random.Random(5)
    rows = [{"person": rng.choice("abcd"), "item": rng.choice("abcd")} for _ in range(60)]
    labels, events = pa.Table.from_pylist(rows[:20]), pa.Table.from_pylist(rows[20:])
    right = number_keys(("person", "item"), labels, events)
    monkeypatch.setattr("headrace.features.keys._TABLE_SIZE", 0)
    found = number_keys(("person", "item"), labels, events)
    assert [one.tolist() for one in found[:2]] == [one.tolist() for one in right[:2]]
    assert (right[0] >= 0).all()
    assert (right[1] < 0).any()


def test_texts_are_found_whatever_their_length_and_wherever_they_stand(monkeypatch):
    rng = random.Random(11)
    texts = [None, "", "a", "é" * 9, *(f"{'0' * rng.randrange(20)}{number}" for number in range(40))]
    labels, events = (pa.array(rng.choices(texts, k=size)) for size in (30, 500))
    whole = pa.chunked_array([events[:7], events[7:7], events[100:], pa.array([None, "b"])])
    right = number_part(pa.chunked_array([labels]), whole)
    monkeypatch.setattr("headrace.features.keys._LITTLE", 1)
    found = number_part(pa.chunked_array([labels]), whole)
    assert [one.tolist() for one in found[:2]] == [one.tolist() for one in right[:2]]
    assert (right[1] < 0).any()
    assert {whole[place].as_py() for place in np.flatnonzero(right[1] >= 0)} <= set(labels.to_pylist()) - {None}


def test_labels_that_share_what_stands_once_for_a_page_give_the_same():
    events = [(make_event(n, "Product Clicked", BEGAN_US + n, {"product_id": "x"}, seq=n), 0) for n in range(9)]
    columns = list_columns(
        (count("n", clicks, by=(person, item), windows=("1d",)), last("l", clicks, item, by=person, windows=("1d",)))
    )
    pages, shown = [0, 0, 1, 1, 1, 2], ["x", "y", "x", "x", "z", "x"]
    table = pa.table(
        {
            "at_us": [BEGAN_US + 10 + page for page in pages],
            "person": [("a", "a", "b")[page] for page in pages],
            "item": shown,
            "known": pa.array([([4], [9], None)[page] for page in pages], pa.list_(pa.int64())),
        }
    )
    shared = table.select(["at_us"])
    once = {"person": pa.array(["a", "a", "b"]), "known": pa.array([[4], [9], None], pa.list_(pa.int64()))}
    for name, values in once.items():
        shared = shared.append_column(name, pa.DictionaryArray.from_arrays(pa.array(pages, pa.int32()), values))
    shared = shared.append_column("item", table.column("item").combine_chunks().dictionary_encode())
    found = join.join(RowsLake(table_of(events)), columns, shared)
    assert found.equals(join.join(RowsLake(table_of(events)), columns, table))
    assert found.column("n_1d").to_pylist() == [4, 0, 9, 9, 0, 0]
    assert found.column("l_1d").to_pylist() == ["x"] * 5 + [None]


def test_attributes_at_every_offset_are_those_of_the_history():
    rng = random.Random(9)
    history, rows = History(), []
    for offset in range(40):
        key, known = rng.choice("abc"), rng.choice(({"genre": "drama"}, {"genre": "crime"}, {}))
        history.add(offset, key, known)
        rows.append({"key": key, "log_offset": offset, "genre": known.get("genre")})
    asked = [(key, end) for key in "abcd" for end in range(45)]
    rng.shuffle(rows)
    found = attributes_of(
        pa.Table.from_pylist(rows), ["genre"], pa.array([key for key, _ in asked]), np.array([end for _, end in asked])
    )["genre"]
    assert found.to_pylist() == [(history.at(key, end) or {}).get("genre") for key, end in asked]


def test_windows_of_one_feature_are_those_of_the_feature_alone():
    events, labels = busy(num_events=100, num_labels=20)
    columns = list_columns((count("a", clicks, by=person, windows=("1h", "6h", "1d", "13d")),))
    together = joined(events, labels, columns)
    alone = [joined(events, labels, [column]) for column in columns]
    assert together == [[one[row][0] for one in alone] for row in range(20)]

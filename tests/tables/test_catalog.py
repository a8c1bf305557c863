"""The catalog: typed views, sessions and funnels, each compared with plain Python over the same events."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from datetime import UTC, datetime

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.base.errors import CallError
from headrace.engines import Source, open_engine
from headrace.events.event import Event, read_properties
from headrace.events.settled import FailedEvent
from headrace.events.taxonomy import TAXONOMY
from headrace.tables.catalog import column_sentences, event_sql, funnel_sql, item_sql, make_views, snake_case

SEAT = Event(
    "Seat Chosen",
    fields={"row": int, "price": float, "aisle": bool, "seat": str, "sizes": list[float], "tags": list[str]},
)  # fmt: skip
VIEWED = Event("Product List Viewed", item="products[].product_id")
COLUMNS = pa.schema(
    [
        ("type", pa.string()), ("event", pa.string()), ("event_us", pa.int64()), ("person", pa.string()),
        ("visitor", pa.string()), ("session_id", pa.string()), ("bot", pa.bool_()), ("device", pa.string()),
        ("name", pa.string()), ("properties", pa.string()), ("log_partition", pa.int32()), ("log_offset", pa.int64()),
    ]
)  # fmt: skip


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return open_engine("duckdb://", root=tmp_path_factory.mktemp("engine"))


@pytest.fixture
def ask(engine, tmp_path):
    """Answers SQL over events, with the views of declared ones."""

    def answer(sql, rows, *declared):
        path = tmp_path / "events.parquet"
        pq.write_table(pa.Table.from_pylist(rows, COLUMNS), path)
        views = make_views(declared, COLUMNS.names, taken=["events"])
        with engine.query(sql, sources=[Source("events", COLUMNS, [str(path)])], views=views) as result:
            return result.table()

    return answer


def row(**values):
    found = {"type": "track", "event": "Seat Chosen", "event_us": 0, "person": "ann", "bot": False, "log_partition": 0}
    return found | values


# What was known of an item.

ODD_IDS = ["item-1", 'a"b', "a/b", "a~b", "~0", "~1", "$", "$.x", "0", "#", "*", "é", "a.b", "a'b", "\\", "a\nb", "[0]"]


def shown(items, attributes):
    properties = json.dumps({"products": [{"product_id": item} for item in items]})
    return row(event="Product List Viewed", properties=properties, attributes=attributes)


def test_item_has_what_was_known_of_it_whatever_its_id_holds(engine, tmp_path):
    known = {item: {"genre": f"g-{number}", "year": number} for number, item in enumerate(ODD_IDS)}
    rows = [shown([*ODD_IDS, "nobody", 7], json.dumps(known | {"7": {}})), shown(["item-1"], None)]
    schema = COLUMNS.append(pa.field("attributes", pa.string()))
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "events.parquet")
    sql = f"SELECT item, known, known ->> '$.genre' AS genre FROM ({item_sql(VIEWED)})"
    with engine.query(sql, sources=[Source("events", schema, [str(tmp_path / "events.parquet")])]) as result:
        found = result.table().to_pylist()
    assert [one["item"] for one in found] == [*ODD_IDS, "nobody", "7", "item-1"]
    assert [one["known"] and json.loads(one["known"]) for one in found] == [*known.values(), None, {}, None]
    assert [one["genre"] for one in found[:3]] == ["g-0", "g-1", "g-2"]


def test_nothing_is_known_of_items_in_a_table_without_attributes(ask):
    found = ask(f"SELECT item, known FROM ({item_sql(VIEWED)})", [shown(["item-1"], None)])
    assert found.to_pylist() == [{"item": "item-1", "known": None}]


# A typed view.

VALUES = [
    "3", "3.0", '"3"', '"3.0"', "3.5", '"3.5"', "true", "false", '"true"', '"FALSE"', "1", "0", '"1"', '"x"', "{}",
    "1e3", '"1e3"', "null", '""', '"null"', "-1", '"-1"', '"nan"', '"inf"', "1e301", "[1]", "9007199254740993",
    '"9007199254740993"', '"-0"', "-0", "9223372036854775807", '"ä \\" \\u0000"',
]  # fmt: skip


LONG = ["9223372036854775808", "-9223372036854775809", "123456789012345678901234567890", '"99999999999999999999"']


@pytest.mark.parametrize("field", ["row", "price", "aisle", "seat"])
def test_a_property_is_read_as_the_door_of_python_reads_it(ask, field):
    # A column of whole numbers has 64 bits.
    texts = [f'{{"{field}": {value}}}' for value in (VALUES if field == "row" else VALUES + LONG)]
    rows = [row(properties=text, log_offset=i) for i, text in enumerate(texts)]
    found = ask("SELECT * FROM seat_chosen ORDER BY log_offset", rows, SEAT).column(field).to_pylist()
    assert [(value, type(value)) for value in found] == [(value, type(value)) for value in map(_read(field), texts)]


def test_a_whole_number_beyond_64_bits_is_null(ask):
    rows = [row(properties=f'{{"row": {value}}}') for value in LONG]
    assert ask("SELECT * FROM seat_chosen", rows, SEAT).column("row").to_pylist() == [None] * len(LONG)


def _read(field):
    def read(text):
        try:
            return getattr(read_properties(SEAT, text.encode()), field)
        except msgspec.ValidationError:
            return None

    return read


def test_lists_keep_their_length_and_lose_what_is_odd(ask):
    properties = '{"sizes": ["1", 2.5, "x", null], "tags": ["a", 7, {}, []]}'
    (found,) = ask("SELECT sizes, tags FROM seat_chosen", [row(properties=properties)], SEAT).to_pylist()
    assert found == {"sizes": [1.0, 2.5, None, None], "tags": ["a", "7", None, None]}


def test_products_are_a_list_of_structs(ask):
    viewed = Event("Product List Viewed", fields={"shelf": str})
    products = [{"product_id": 7, "price": "1.5", "unknown": 2}, 3, {"position": "2", "quantity": "nan"}]
    rows = [
        row(event=viewed.name, properties=json.dumps({"products": products, "shelf": "a"})),
        row(event=viewed.name, properties='{"products": "none"}'),
        row(event=viewed.name),
    ]
    table = ask("SELECT * FROM product_list_viewed", rows, viewed)
    assert table.schema.field("products").type.value_type.field("price").type == pa.float64()
    first, *others = table.column("products").to_pylist()
    kept = [one and {name: value for name, value in one.items() if value is not None} for one in first]
    assert (kept, others) == ([{"product_id": "7", "price": 1.5}, None, {"position": 2}], [None, None])
    assert table.column("shelf").to_pylist() == ["a", None, None]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TAXONOMY))
def test_every_canonical_event_has_a_view(ask, name):
    table = ask(f'SELECT * FROM "{snake_case(name)}"', [row(event=name, properties="{}")], Event(name))
    assert table.num_rows == 1
    assert len({column.lower() for column in table.schema.names}) == table.num_columns
    assert set(TAXONOMY[name].__struct_fields__) <= {column.removesuffix("_property") for column in table.schema.names}


def test_a_view_holds_its_tracked_event_and_nothing_else(ask):
    rows = [row(), row(event="Other"), row(type="page", event="page", name="Seat Chosen"), row(type="page")]
    assert ask("SELECT count(*) AS n FROM seat_chosen", rows, SEAT).to_pylist() == [{"n": 1}]


def test_names_that_are_taken_get_a_suffix(ask):
    declared = [
        Event("Sessions"),
        Event("sessions!"),
        Event("Events"),
        Event('it\'s "odd"'),
        Event("Größe 2"),
        Event("!"),
    ]
    views = make_views(declared, COLUMNS.names, taken=["events"])
    assert [view.name for view in views] == [
        "sessions", "sessions_2", "sessions_3", "events_2", "it_s_odd", "größe_2", "event",
    ]  # fmt: skip
    assert ask("SELECT event FROM it_s_odd", [row(event='it\'s "odd"')], *declared).num_rows == 1


def test_a_property_called_like_a_column_is_kept_beside_it(ask):
    event = Event("Named", fields={"Name": str, "name_property": str})
    assert '"Name_property"' in event_sql(event, COLUMNS.names)
    rows = [row(event="Named", name="outer", properties='{"Name": "inner", "name_property": "third"}')]
    (found,) = ask("SELECT * FROM named", rows, event).to_pylist()
    assert (found["name"], found["Name_property"], found["name_property_property"]) == ("outer", "inner", "third")


# Sessions.


def _walk(seed):
    random_ = random.Random(seed)
    rows = []
    for offset in range(3_000):
        session = random_.randrange(150)
        kind = random_.choice(["page", "screen", "track"])
        rows.append(
            row(
                type=kind,
                event=random_.choice(["A", "B", "C"]) if kind == "track" else kind,
                event_us=session * 10_000_000_000 + random_.randrange(400) * 500_000,
                visitor=f"v{session}",
                person=f"v{session}" if offset < 1500 else f"u{session}",
                session_id=f"0-{session}",
                bot=session % 7 == 0,
                device=random_.choice(["Mac", None, "Phone"]),
                name=random_.choice(["Home", None]),
                properties=random_.choice(['{"path": "/a"}', '{"path": "/b"}', "{}", None]),
                log_offset=offset,
            )
        )
    return rows


def _page(one):
    if one["type"] not in ("page", "screen"):
        return None
    return json.loads(one["properties"] or "{}").get("path") or one["name"]


def _sessions(rows):
    groups = defaultdict(list)
    for one in sorted(rows, key=lambda one: (one["event_us"], one["log_offset"])):
        groups[one["session_id"]].append(one)
    for session_id, group in sorted(groups.items()):
        first, last = group[0]["event_us"], group[-1]["event_us"]
        pages = [page for page in map(_page, group) if page is not None]
        yield {
            "session_id": session_id,
            "visitor": group[0]["visitor"],
            "person": group[-1]["person"],
            "started": datetime.fromtimestamp(first / 1e6, UTC),
            "ended": datetime.fromtimestamp(last / 1e6, UTC),
            "duration_seconds": (last - first) / 1e6,
            "events": len(group),
            "pages": sum(one["type"] != "track" for one in group),
            "entry": pages[0] if pages else None,
            "exit": pages[-1] if pages else None,
            "bot": group[0]["bot"],
            "device": next((one["device"] for one in group if one["device"]), None),
        }


def test_sessions_equal_those_of_plain_python(ask):
    rows = _walk(7)
    assert ask("SELECT * FROM sessions ORDER BY session_id", rows).to_pylist() == list(_sessions(rows))


# A funnel.


def _reached(rows, steps, within_us):
    """Returns how many people came to each step, tried from every start."""
    people = defaultdict(list)
    for one in sorted(rows, key=lambda one: (one["event_us"], one["log_partition"], one["log_offset"])):
        if not one["bot"]:
            people[one["person"]].append(one)
    counts = [0] * len(steps)
    for events in people.values():
        best = 0
        for i, start in enumerate(events):
            if start["event"] == steps[0]:
                level = 1
                for one in events[i + 1 :]:
                    if level < len(steps) and one["event"] == steps[level]:
                        if one["event_us"] - start["event_us"] > within_us:
                            break
                        level += 1
                best = max(best, level)
        for level in range(best):
            counts[level] += 1
    return counts


@pytest.mark.parametrize("steps", [["A"], ["A", "B"], ["A", "B", "C"], ["A", "A"], ["C", "A", "C", "page"]])
@pytest.mark.parametrize("within_seconds", [5, 10_000])
def test_a_funnel_equals_that_of_plain_python(ask, steps, within_seconds):
    rows = _walk(11)
    found = ask(funnel_sql(steps, within_seconds=within_seconds), rows).to_pylist()
    persons = _reached(rows, steps, within_seconds * 1e6)
    assert [(one["step"], one["event"], one["persons"]) for one in found] == [
        (i, step, count) for i, (step, count) in enumerate(zip(steps, persons, strict=True), start=1)
    ]
    assert [one["of_first"] for one in found] == [count / persons[0] for count in persons]
    assert found[0]["of_previous"] is None


def test_a_funnel_without_steps_or_time_is_refused():
    with pytest.raises(CallError, match="a funnel needs steps and a time, found steps \\[\\], 5 seconds"):
        funnel_sql([], within_seconds=5)
    with pytest.raises(CallError, match="0 seconds"):
        funnel_sql(["A"], within_seconds=0)


def test_a_step_may_be_called_anything(ask):
    odd = "it's {odd}; DROP TABLE events --"
    assert ask(funnel_sql([odd], within_seconds=1), [row(event=odd)]).to_pylist()[0]["persons"] == 1


# Words.


def test_every_column_of_the_contracts_has_its_sentence():
    assert column_sentences()["log_offset"].startswith("Its offset")
    for kind in (FailedEvent,):
        assert set(kind.__struct_fields__) <= set(column_sentences(kind))

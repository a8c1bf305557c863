"""Training rows: which items of which pages, what was known of them, and whether they were clicked in time."""

import json
from pathlib import Path
from random import Random

import msgspec
import numpy as np
import pytest
from msgspec import Raw

from headrace.base.errors import StopError
from headrace.learn import open_lake
from headrace.models.rows import TrainingRow, encode_row, encode_texts, list_rows, read_labels, read_rows
from headrace.project import open_project
from models.market import ITEMS, load_items, make_market, write_market
from streamline import BEGAN_US, HOUR, MINUTE, clicked, decided, viewed, write

CONTRACTS = Path(__file__).parents[2] / "docs" / "contracts"
GOLDEN = CONTRACTS / "training-row.golden.json"
AT = BEGAN_US + 10 * HOUR
SHOWN = ("item-0", "item-1", "item-2")


def page(number, visitor="ann", *, at_us=BEGAN_US + HOUR, **more):
    known = {"known": (7, 5), "dimensions": Raw(b'{"items":12}'), "propensities": (0.8, 0.1, 0.8)}
    return decided(visitor, SHOWN, at_us=at_us, recommendation_id=f"{visitor}/{number}", **(known | more))


def seen(one, items=SHOWN, *, after_us=MINUTE, **more):
    at_us = one.received_us + after_us
    return viewed(more.pop("visitor", one.visitor), items, at_us=at_us, recommendation_id=one.recommendation_id, **more)


def click(one, item, *, after_us=2 * MINUTE, **more):
    at_us = one.received_us + after_us
    visitor = more.pop("visitor", one.visitor)
    return clicked(visitor, item, at_us=at_us, recommendation_id=one.recommendation_id, **more)


def make_lake():
    """Returns decisions and events that show which rows there are, and which there are not."""
    first, second = page(0), page(1, "bob", at_us=BEGAN_US + 2 * HOUR, user_id="u-1", person="u-1")
    early = page(2, at_us=BEGAN_US + HOUR // 2, dimensions=Raw(b'{"items":1}'))
    idle = [
        page(3, at_us=AT - 10 * MINUTE),
        page(4, known=()),
        page(5, "robot", bot=True),
        page(6, degraded=("unlogged",)),
        page(7),
    ]
    events = [
        seen(first), click(first, "item-1"), click(first, "item-1", after_us=3 * MINUTE),
        # Half an hour after the view is the last instant that counts.
        seen(second, SHOWN[:2]), click(second, "item-0", after_us=31 * MINUTE),
        click(second, "item-1", after_us=31 * MINUTE + 1), click(second, "item-2"),
        seen(early), seen(early, ("elsewhere",)), click(early, "item-0", visitor="eve"),
        click(early, "item-1", bot=True),
        *(seen(one) for one in idle[:4]), seen(idle[4], visitor="eve"),
    ]  # fmt: skip
    late = click(early, "item-2")
    events.append(msgspec.structs.replace(late, received_us=AT + 1))
    return [first, second, early, *idle], events


def _lake(project):
    lake = open_lake(project)
    object.__setattr__(lake, "at_us", AT)
    return lake, project.declared.models[1].metric


def _labels(project):
    return read_labels(*_lake(project))


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    with open_project(make_market(tmp_path_factory.mktemp("rows"))) as project:
        load_items(project)
        decisions, events = make_lake()
        write(project, decisions=decisions, events=events)
        yield _lake(project)


@pytest.fixture(scope="module")
def labels(lake):
    return list_rows(read_labels(*lake))


def test_rows_of_one_recommendation_are_those_among_all(labels, lake):
    ours = list_rows(read_labels(*lake, only="ann/0"))
    assert ours == [row for row in labels if row.recommendation_id == "ann/0"] != []


def test_rows_are_the_viewed_items_of_pages_whose_time_is_over(labels):
    assert [(row.recommendation_id, row.position, row.clicked) for row in labels] == [
        ("ann/2", 1, False), ("ann/2", 2, False), ("ann/2", 3, False),
        ("ann/0", 1, False), ("ann/0", 2, True), ("ann/0", 3, False),
        ("bob/1", 1, True), ("bob/1", 2, False),
    ]  # fmt: skip
    assert [row.propensity for row in labels[3:6]] == [0.8, 0.1, 0.8]
    assert {row.person for row in labels[6:]} == {"u-1"}


def test_row_has_the_attributes_of_the_offset_that_its_page_read(labels):
    assert [row.attributes["genre"] for row in labels[3:6]] == ["comedy", "crime", "drama"]
    assert [row.attributes["genre"] for row in labels[:3]] == ["comedy", None, None], "one member was known then"


def test_rows_equal_the_golden_file_byte_for_byte(labels):
    made = [encode_row(row).decode() for row in labels]
    assert json.dumps(made, ensure_ascii=False, indent=1) + "\n" == GOLDEN.read_text(encoding="utf-8")
    assert [encode_row(msgspec.json.decode(row, type=TrainingRow)).decode() for row in made] == made


def test_page_explains_every_field_in_its_order_and_shows_a_golden_row():
    text = (CONTRACTS / "training-row.md").read_text(encoding="utf-8")
    places = [text.find(f"| `{name}` |") for name in TrainingRow.__struct_fields__]
    assert -1 not in places
    assert places == sorted(places)
    assert text.partition("```json\n")[2].partition("\n```")[0] in json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert text.startswith("# Training row, version 1\n")


def test_order_and_repeats_of_events_change_no_row(tmp_path, labels):
    decisions, events = make_lake()
    draw = Random(5)
    again = [msgspec.structs.replace(one, message_id=f"{one.message_id}-again") for one in events]
    mixed = [*events, *again]
    draw.shuffle(mixed)
    draw.shuffle(decisions)
    with open_project(make_market(tmp_path)) as project:
        load_items(project)
        write(project, decisions=decisions, events=mixed)
        assert list_rows(_labels(project)) == labels


def test_decisions_without_a_view_say_what_to_send(tmp_path):
    with open_project(make_market(tmp_path)) as project:
        load_items(project)
        write(project, decisions=[page(0), page(1)], events=[click(page(0), "item-0")])
        with pytest.raises(
            StopError, match="of 2 decisions none has an item that was seen, by a 'Product List Viewed'"
        ):
            _labels(project)


def test_inputs_are_the_features_as_they_were_known(tmp_path):
    with open_project(make_market(tmp_path)) as project:
        decisions, events = write_market(project, pages=40)
        lake = open_lake(project)
        object.__setattr__(lake, "at_us", BEGAN_US + 48 * HOUR)
        model = project.declared.models[1]
        rows = read_rows(lake, model.metric, model.columns)
    clicks = [event for event in events if event.event == "Product Clicked"]
    shown = [(one, item) for one in decisions for item in one.items]
    assert len(rows) == len(shown)
    for number, (one, item) in enumerate(shown):
        mine = [event for event in clicks if event.seq < one.known[0] and event.person == one.person]
        items = [json.loads(bytes(event.properties))["product_id"] for event in mine]
        alike = sum(ITEMS[other] == ITEMS[item] for other in items)
        # The pages lie within two days, so all of a person's clicks are within 28.
        assert rows.inputs[1][number] == np.log1p(alike)
        assert rows.names[rows.items[number]] == item


def test_texts_are_compared_with_the_candidates_own():
    values = np.array(["a", "b", None, None], object)
    assert encode_texts(values, np.array(["a", "a", "a", None], object)).tolist() == [1.0, 0.0, 0.0, 0.0]

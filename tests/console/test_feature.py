"""headrace feature as a user types it, over a real lake."""

from __future__ import annotations

import csv
import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from msgspec import Raw, to_builtins

from headrace.models import Bundle
from headrace.models.model import pack_texts
from headrace.project import open_project
from running import call, lines, project_toml
from streamline import BEGAN_US, DAY, HOUR, clicked, decided, write

PROJECT = """from headrace import Attribute, Carousel, Dimension, Event, Metric, Page, Project
from headrace.features import count, item, last, person
from headrace.models import click_model, popularity

genre = Attribute("genre")
items = Dimension("items", key="product_id", attributes=(genre,))
views = Event("Product List Viewed", item="products[].product_id", of=items)
clicks = Event("Product Clicked", item="product_id", of=items)
taste = count("taste", clicks, by=(person, genre), windows=("1d", "28d"))
latest = last("latest", clicks, item, by=person, windows=("1h",))
ctr = Metric.ratio("ctr", clicks, views, within="30m")
popular = popularity("popular", clicks, half_life="3d")
ranker = click_model("ranker", ctr, features=(taste, latest))
home = Page("home", per_row=2, fallback=popular, carousels=(Carousel("For you", candidates=(popular,), rank=ranker),))
project = Project("streamline", pages=(home,))
"""
AT_US = BEGAN_US + DAY


def make_shop(folder):
    """Writes the project, with two clicks of ann in its lake."""
    (folder / "project.py").write_text(PROJECT)
    (folder / "headrace.toml").write_text(project_toml(clock="stepped://", extra="[topic.clicks]\npartitions = 1\n"))
    (folder / ".headrace").mkdir()
    (folder / ".headrace" / "clock.stepped").write_bytes(struct.pack("<q", AT_US))
    return folder


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = make_shop(tmp_path_factory.mktemp("shop"))
    with open_project(folder) as project:
        known = Raw(b'{"item-1": {"genre": "drama"}, "item-2": {"genre": "drama"}}')
        events = [
            clicked("ann", f"item-{number + 1}", at_us=AT_US - (2 - number) * HOUR // 2, attributes=known, seq=number)
            for number in range(2)
        ]
        write(project, events=events)
        columns = project.declared.columns
        arrays = {name: np.zeros(len(columns)) for name in ("weights", "contexts", "means", "scales")}
        arrays |= {"base": np.zeros(2), "items": pack_texts(["item-1"]), "categories": pack_texts([""])}
        bundle = Bundle("ranker", "click", {"columns": [to_builtins(one) for one in columns]}, {}, arrays)
        project.registry.add(bundle)
        # Nothing is known of the items, so that only the latest is not its default.
        vectors = {"right": [[0, 0, "item-2"]] * 2, "wrong": [[0, 0, "item-2"], [0, 0, "item-1"]]}
        decisions = [
            decided("ann", ["item-1", "item-2"], at_us=AT_US - days * DAY, page="home", bundle=bundle.hash, known=(2,),
                    recommendation_id=name, vectors=Raw(json.dumps(vectors[name]).encode()))
            for name, days in (("right", 0), ("wrong", 0))
        ]  # fmt: skip
        decisions.append(decided("ann", ["item-1"], at_us=AT_US - 3 * DAY, bundle=bundle.hash, known=(0,),
                                 recommendation_id="early", vectors=Raw(b'[[0, 0, null]]')))  # fmt: skip
        write(project, decisions=decisions)
    return folder


def ask(folder, *words):
    """Returns exit code, objects that were printed, and errors."""
    code, out, error = call(*words, "--json", "--project", str(folder))
    return code, lines(out), error


def test_list_shows_a_line_for_each_window(shop):
    code, rows, _ = ask(shop, "feature", "list")
    assert code == 0
    assert [(row["name"], row["kind"], row["by"], row["hop_us"] // 1_000_000) for row in rows] == [
        ("taste_1d", "count", ["person", "@genre"], 3600),
        ("taste_28d", "count", ["person", "@genre"], 86_400),
        ("latest_1h", "last", ["person"], 300),
    ]
    assert len({row["identity"] for row in rows}) == 3
    assert len({row["family"] for row in rows}) == 2
    code, out, _ = call("feature", "list", "--project", str(shop))
    assert (code, len(out.splitlines())) == (0, 4)


@pytest.mark.parametrize(("name", "count"), [("taste", 2), ("taste_28d", 1)])
def test_describe_says_what_is_counted_of_whom(shop, name, count):
    code, (found,), _ = ask(shop, "feature", "describe", name)
    assert (code, len(found["columns"]), found["models"]) == (0, count, ["ranker"])
    assert found["sentence"] == "how many 'Product Clicked' there were for the person and genre"
    code, out, _ = call("feature", "describe", name, "--project", str(shop))
    assert code == 0
    assert "product_id, of items" in out


def test_describe_of_what_does_not_exist_names_what_does(shop):
    code, _, error = ask(shop, "feature", "describe", "tast")
    assert code == 2
    assert "Did you mean taste?" in error


def test_join_adds_features_to_a_file_of_labels(shop, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "at,person,@genre,won\n2026-01-06T00:00:00Z,ann,drama,1\n2026-01-05T23:15,ann,drama,0\n2026-01-06,,drama,1\n"
    )
    code, rows, _ = ask(shop, "feature", "join", str(labels), "--features", "taste,latest")
    assert code == 0
    assert [(row["won"], row["taste_1d"], row["taste_28d"], row["latest_1h"]) for row in rows] == [
        ("1", 2, 2, "item-2"),
        ("0", 1, 1, "item-1"),
        ("1", 0, 0, None),
    ]
    assert rows[0]["at_us"] == AT_US
    for out in (tmp_path / "out.parquet", tmp_path / "out.csv"):
        code, (told,), _ = ask(shop, "feature", "join", str(labels), "--features", "taste_1d", "--out", str(out))
        assert (code, told["rows"], told["features"]) == (0, 3, ["taste_1d"])
    assert pq.read_table(tmp_path / "out.parquet").column("taste_1d").to_pylist() == [2, 1, 0]
    rows = csv.DictReader((tmp_path / "out.csv").read_text().splitlines())
    assert [row["taste_1d"] for row in rows] == ["2", "1", "0"]


def test_join_takes_parquet_with_numbers_for_instants(shop, tmp_path):
    path = tmp_path / "labels.parquet"
    pq.write_table(pa.table({"at_us": [AT_US], "person": ["ann"]}), path)
    code, (row,), _ = ask(shop, "feature", "join", str(path), "--features", "latest")
    assert (code, row["latest_1h"]) == (0, "item-2")
    code, out, _ = call("feature", "join", str(path), "--features", "latest", "--project", str(shop))
    assert (code, out.splitlines()[-1].split()) == (0, [str(AT_US), "ann", "item-2"])


@pytest.mark.parametrize(
    ("text", "features", "message"),
    [
        ("at_us,person\n1,ann\nsoon,ann\n", "latest", "row 2, column 'at_us': 'soon' is not whole microseconds"),
        ("at,person\n,ann\n", "latest", "row 1, column 'at': None is not an instant such as"),
        ("person\nann\n", "latest", "no column 'at_us' (microseconds since 1970) or 'at'"),
        ("at_us,persn,@genre\n1,ann,drama\n", "taste", "no column 'person', which the features are keyed by. "),
        ("at_us,person\n1,ann\n", "lates", "no feature 'lates'. Did you mean latest?"),
        ("at_us,person\n1\n", "latest", "Expected 2 columns, got 1"),
        ("at_us,person,known\n1,ann,3\n", "latest", "the column 'known' must be a list of whole numbers"),
    ],
)
def test_join_of_a_file_that_is_wrong_names_the_place(shop, tmp_path, text, features, message):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    code, _, error = ask(shop, "feature", "join", str(path), "--features", features)
    assert code == 2
    assert message in json.loads(error)["message"]


def test_join_of_a_missing_file_or_another_kind_says_so(shop, tmp_path):
    for name, message in (("none.csv", "No such file"), ("labels.xlsx", "are read from .csv or .parquet")):
        code, _, error = ask(shop, "feature", "join", str(tmp_path / name), "--features", "latest")
        assert (code, message in error) == (2, True)


def test_join_without_a_lake_says_what_fills_it(tmp_path):
    folder = make_shop(tmp_path)
    (tmp_path / "labels.csv").write_text("at_us,person\n1,ann\n")
    code, _, error = ask(folder, "feature", "join", str(tmp_path / "labels.csv"), "--features", "latest")
    assert code == 2
    assert "there is no table 'events' yet" in error
    code, (found,), _ = ask(folder, "feature", "diff")
    assert (code, found["decisions"]) == (0, 0)
    assert "no decision with features to compare yet" in call("feature", "diff", "--project", str(folder))[1]


def test_diff_shows_what_was_served_otherwise(shop):
    code, (told, *rows), _ = ask(shop, "feature", "diff", "--page", "home")
    assert (code, told) == (1, {"decisions": 3, "behind": 0, "mismatches": 1})
    (wrong,) = [row for row in rows if row["mismatches"]]
    assert (wrong["feature"], wrong["compared"], wrong["told"]) == ("latest_1h", 5, 4)
    assert wrong["examples"] == [
        {"recommendation_id": "wrong", "item": "item-2", "served": "item-1", "recomputed": "item-2"}
    ]
    code, out, _ = call("feature", "diff", "--project", str(shop))
    assert code == 1
    assert "latest_1h, wrong, item-2: served 'item-1', the lake gives 'item-2'" in out
    assert out.splitlines()[-1] == "15 values of 3 decisions compared, 1 mismatches"


def test_diff_of_a_time_and_a_page_compares_only_theirs(shop):
    assert ask(shop, "feature", "diff", "--since", "1d")[1][0]["decisions"] == 2
    code, _, error = ask(shop, "feature", "diff", "--page", "hme")
    assert (code, "Did you mean home?" in error) == (2, True)

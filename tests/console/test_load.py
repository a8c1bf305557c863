"""headrace table load: a file is checked whole, then loaded, and clicks from there on know it."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.base.telemetry import Metrics
from headrace.collect.load import make_dimension
from headrace.project import open_project
from headrace.stream import METRICS, codec_of, list_dimensions, make_table
from headrace.tables.sink import Flush, Sink
from running import wait_until

pytestmark = pytest.mark.slow

PROJECT = """from headrace import Attribute, Dimension, Event, Project
items = Dimension("items", key="product_id", attributes=(Attribute("title"), Attribute("genre")))
clicked = Event("Product Clicked", item="product_id", of=items)
project = Project("shop", events=(clicked,))
"""
CSV = 'product_id,title,genre,stock\nitem-1,"Ferry, by Night",drama,4\n7,,crime,\n'


@pytest.fixture
def shop(shop):
    (shop.folder / "project.py").write_text(PROJECT)
    return shop


def write(shop, content, name="items.csv"):
    path = shop.folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def load(shop, content, name="items.csv", *more):
    return shop.call("table", "load", write(shop, content, name), "--table", "items", *more)


def loaded(shop, content, name="items.csv", *more):
    code, out, error = load(shop, content, name, "--json", *more)
    assert (code, error) == (0, "")
    return json.loads(out)


def members(shop):
    """Returns what is known now, by the topic."""
    with open_project(shop.folder) as project:
        found = [json.loads(message.value) for message in project.topic("items").read()]
        return {one["key"]: one["attributes"] for one in found}


def topics(shop):
    with open_project(shop.folder) as project:
        return project.topics.names()


def test_csv_stays_text_and_an_empty_cell_is_null(shop):
    code, out, _ = load(shop, "\ufeff" + CSV)
    assert code == 0
    assert out == (
        "items: 2 new, 0 changed, 0 unchanged\nclicks that come from now on know them, up to offset 2\n"
        "not declared and passed over: stock\n"
    )
    assert members(shop) == {"item-1": {"title": "Ferry, by Night", "genre": "drama"}, "7": {"genre": "crime"}}


@pytest.mark.parametrize("name", ["items.jsonl", "items.ndjson", "items.json"])
def test_json_lines_keep_their_types(shop, name):
    lines = '{"product_id":7,"title":7.5,"x":[1]}\n\n{"product_id":"b","genre":true,"title":null}'
    told = loaded(shop, lines, name)
    assert told == {"table": "items", "new": 2, "changed": 0, "unchanged": 0, "offset": 2, "passed_over": ["x"]}
    assert members(shop) == {"7": {"title": 7.5}, "b": {"genre": True}}


def test_parquet_keeps_its_types_and_nan_is_null(shop, tmp_path):
    rows = [{"product_id": "a", "title": 1.5, "genre": 3}, {"product_id": "b", "title": float("nan"), "genre": None}]
    path = tmp_path / "items.pq"
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert loaded(shop, path.read_bytes(), "items.pq", "--format", "parquet")["new"] == 2
    assert members(shop) == {"a": {"title": 1.5, "genre": 3}, "b": {}}


def test_second_load_writes_only_what_has_changed(shop):
    loaded(shop, CSV)
    assert loaded(shop, CSV)["unchanged"] == 2
    told = loaded(shop, CSV.replace("crime", "comedy") + "item-3,,,\n")
    assert told == {"table": "items", "new": 1, "changed": 1, "unchanged": 1, "offset": 4, "passed_over": ["stock"]}
    assert members(shop)["7"] == {"genre": "comedy"}


@pytest.mark.parametrize(
    ("content", "name", "match"),
    [
        ("product_id,title,genre\na,b\n", "items.csv", "row 2: it has 2 cells and the header 3; put a cell"),
        ("product_id,title,title\na,b,c\n", "items.csv", "row 1, column 'title': the column 'title' stands twice"),
        ("product,title,genre\na,b,c\n", "items.csv", "no column 'product_id', only ['product', 'title', 'genre']"),
        ("product_id,title,gender\na,b,c\n", "items.csv", "no column 'genre'"),
        ("product_id,title,genre\na,b,c\nb,,\na,d,e\n", "items.csv", "row 4, column 'product_id': 'a' stands in row 2"),
        ("product_id,title,genre\n,b,c\n", "items.csv", "row 2, column 'product_id': null is no key"),
        (b"product_id,title,genre\na,\xff,c\n", "items.csv", "it is no CSV in UTF-8"),
        ('product_id,title,genre\na,"b,c\n', "items.csv", "it is no CSV"),
        ("product_id,title,genre\n", "items.csv", "it has no rows"),
        ("", "items.csv", "it has no rows"),
        ('{"product_id":"a"}\n[1]\n', "a.jsonl", "row 2: it is no JSON object on a line of its own"),
        ('{"product_id":"a","genre":["x"]}\n', "a.jsonl", "row 1, column 'genre': ['x'] is of the type list"),
        (f'{{"product_id":"a","genre":{2**63}}}', "a.jsonl", "row 1, column 'genre': 9223372036854775808 is beyond"),
        ('{"title":"a"}\n', "a.jsonl", "row 1: there is no column 'product_id'"),
        ('{"product_id":true}\n', "a.jsonl", "row 1, column 'product_id': True is no key"),
        ('{"product_id":"a","title":"b"}\n', "a.jsonl", "no column 'genre'"),
        ('{"product_id":"a","title":"%s"}\n' % ("x" * 33_000), "a.jsonl", "a member has at most 32,768"),
        ("no parquet", "a.parquet", "it cannot be read"),
        ("", "a.tsv", "say --format csv, jsonl or parquet"),
    ],
)
def test_file_that_is_wrong_loads_nothing_and_names_the_place(shop, content, name, match):
    code, out, error = load(shop, content, name)
    assert (code, out) == (2, "")
    assert match in error
    assert str(shop.folder / name) in error
    assert "items" not in topics(shop)


def test_file_and_dimension_that_are_not_there_are_told(shop):
    code, _, error = shop.call("table", "load", "nowhere.csv", "--table", "items")
    assert (code, "nowhere.csv: it cannot be read" in error) == (2, True)
    code, _, error = shop.call("table", "load", write(shop, CSV), "--table", "item")
    assert (code, "Did you mean items" in error) == (2, True)
    (shop.folder / "project.py").write_text("from headrace import Project\nproject = Project('shop')\n")
    code, _, error = shop.call("table", "load", write(shop, CSV), "--table", "items")
    assert (code, "no event of this project names a dimension" in error) == (2, True)


def sink(shop, name):
    with open_project(shop.folder) as project:
        make_dimension(project.topics, list_dimensions(project)[name])
        member = ("test", Flush())
        one = Sink(
            project.topics, name, make_table(project, name), codec_of(name), member=member, metrics=Metrics(METRICS)
        )
        while one.turn():
            pass
        one.flush()
        one._share.close()


def test_dimension_is_a_table_and_clicks_carry_it(shop):
    loaded(shop, CSV)
    event = {"type": "track", "event": "Product Clicked", "anonymousId": "ann", "properties": {"product_id": "item-1"}}
    shop.click(event)
    shop.run()
    sink(shop, "items")
    code, out, error = shop.call(
        "table", "sql", "SELECT key, attributes ->> '$.genre' AS genre, log_offset FROM items ORDER BY 3", "--json"
    )
    assert (code, error) == (0, "")
    rows = [json.loads(line) for line in out.splitlines()]
    assert rows == [
        {"key": "item-1", "genre": "drama", "log_offset": 0},
        {"key": "7", "genre": "crime", "log_offset": 1},
    ]
    code, out, _ = shop.call("table", "sql", "SELECT attributes, dimensions FROM events", "--json")
    assert json.loads(out) == {
        "attributes": '{"item-1":{"title":"Ferry, by Night","genre":"drama"}}',
        "dimensions": '{"items":2}',
    }
    assert "What is known of each member" in (told := shop.call("table", "describe", "items")[1])
    assert "The id of the member, such as the item's." in told


@pytest.mark.soak
def test_load_that_is_killed_is_completed_by_the_same_command(shop):
    total = 60_000
    rows = "".join(f"item-{number},Title,drama\n" for number in range(total))
    path = write(shop, f"product_id,title,genre\n{rows}")
    words = [sys.executable, "-m", "headrace", "table", "load", path, "--table", "items", "--project", shop.folder]
    process = subprocess.Popen([str(word) for word in words])
    wait_until(lambda: "items" in topics(shop) and ends(shop, "items") > [0], seconds=60)
    process.kill()
    process.wait()
    written = ends(shop, "items")[0]
    assert 0 < written < total
    assert set(ends(shop, "clicks")) == {0}
    assert loaded(shop, path.read_bytes())["unchanged"] == written
    assert ends(shop, "items") == [total]
    assert set(ends(shop, "clicks")) == {1}


def ends(shop, name):
    with open_project(shop.folder) as project:
        return [bound.end for bound in project.topics.bounds(name)]

"""headrace table: every command, its output and its errors."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from headrace.project import open_project
from running import call, clicked, lines, wait_until

pytestmark = pytest.mark.slow


def fill(shop):
    """Lets three events happen, one of them bad."""
    shop.click(clicked("m1", price="1.5"), clicked("m2", "p2", price=2), clicked("bad", price="cheap"))
    shop.run()
    return shop


@pytest.fixture(scope="module")
def full(shared):
    """A shop with a full lake, for tests that only read it."""
    return fill(shared)


@pytest.fixture
def own(shop):
    """A shop with a full lake, for a test that changes it."""
    return fill(shop)


def sql(shop, text, *options, **more):
    code, out, error = shop.call("table", "sql", text, *options, **more)
    assert code == 0, error
    return out


# An empty lake.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("describe", "events"), "UnknownNameError: no table 'events' yet: `headrace up` makes it"),
        (("history", "failed"), "UnknownNameError: no table 'failed' yet: `headrace up` makes it"),
        (("pin", "events"), "UnknownNameError: no table 'events' yet: `headrace up` makes it"),
        (("maintain", "events"), "UnknownNameError: no table 'events' yet: `headrace up` makes it"),
        (("sql", "SELECT * FROM events"), "UnknownNameError: no table 'events' yet: `headrace up` makes it"),
        (("sql", "SELECT * FROM sessions"), "UnknownNameError: no table 'sessions' yet: `headrace up` makes it"),
        (("sql", "SELECT * FROM product_clicked"), "UnknownNameError: no table 'product_clicked' yet: `headrace up`"),
        (("sql", "SELECT * FROM other"), "SqlError: no table 'other'.  known: none yet"),
        (("describe", "other"), "UnknownNameError: no table 'other'.  known: none yet"),
    ],
    ids=" ".join,
)
def test_what_asks_for_a_table_that_nothing_made_says_what_makes_it(shop, words, message):
    code, out, error = shop.call("table", *words)
    assert (code, out) == (2, "")
    assert error.startswith(message)


def test_what_only_lists_works_on_an_empty_lake(shop):
    assert shop.call("table", "list") == (0, "no tables yet: `headrace up` makes them\n", "")
    assert shop.call("table", "list", "--json") == (0, "", "")
    assert shop.call("table", "failed") == (0, "nothing stands as failed\n", "")
    assert shop.call("table", "failed", "--group", "--json") == (0, "", "")
    assert shop.call("table", "maintain") == (0, "no tables yet: `headrace up` makes them\n", "")
    assert sql(shop, "SELECT 1 AS one", "--json") == '{"one":1}\n'
    code, out, error = shop.call("explain", "m1")
    assert (code, out, error.split(":")[0]) == (1, "", "nothing is known of 'm1'")


def test_without_a_project_the_error_says_how_to_make_one(tmp_path):
    for words in (("table", "list"), ("table", "sql", "SELECT 1"), ("explain", "m1")):
        code, out, error = call(*words, "--project", tmp_path)
        assert (code, out, error.partition(":")[0]) == (2, "", "ProjectError")
        assert "Make a project with: headrace init DIR" in error


# list, describe, history.


def test_list_tells_size_version_and_lag(own):
    own.click(clicked("m3"))
    own.settle()
    rows = {row["table"]: row for row in lines(own.call("table", "list", "--json")[1])}
    events, failed = rows["events"], rows["failed"]
    assert {name: events[name] for name in ("table", "rows", "files", "version", "topic", "lag", "pins")} == {
        "table": "events", "rows": 2, "files": 1, "version": 1, "topic": "events", "lag": 1, "pins": 0,
    }  # fmt: skip
    assert events["bytes"] == sum(path.stat().st_size for path in own.folder.rglob("lake/events/**/*.parquet"))
    assert (failed["table"], failed["rows"], failed["lag"]) == ("failed", 1, 0)
    code, out, _ = own.call("table", "list")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["table", "rows"], ["decisions", "0"], ["events", "2"], ["failed", "1"],
    ]  # fmt: skip


def test_list_shows_no_age_where_the_commits_are_gone(own):
    assert own.call("table", "maintain", "events")[0] == 0
    for commit in own.folder.glob(".headrace/lake/events/_delta_log/*.json"):
        commit.unlink()
    code, out, error = own.call("table", "list")
    assert (code, error) == (0, "")
    events, failed = out.splitlines()[2:]
    assert ("ago" in events, re.search(r" - +0 +0$", events) is not None) == (False, True)
    assert "ago" in failed


def test_describe_tells_columns_in_the_contracts_words(full):
    (found,) = lines(full.call("table", "describe", "events", "--json")[1])
    columns = {column["name"]: column for column in found["columns"]}
    assert columns["bot"] == {"name": "bot", "type": "bool", "text": "Whether the user agent says that it is a robot."}
    assert all(column["text"] for column in found["columns"])
    assert (found["description"][:14], found["partitions"]) == ("What happened:", ["received_date"])
    assert found["properties"]["headrace.topic"] == "events"
    assert [p for p in found["positions"] if p["position"]] == [{"partition": 0, "position": 2, "end": 2, "records": 0}]
    assert found["provenance"]["offsets"] == {"0": [0, 2]}
    code, out, _ = full.call("table", "describe", "events")
    assert code == 0
    assert re.search(r"newest from +events 0/0-2 by test", out)


def test_describe_of_a_view_tells_its_types(full):
    (found,) = lines(full.call("table", "describe", "product_clicked", "--json")[1])
    types = {column["name"]: column["type"] for column in found["columns"]}
    assert (found["view"], found["over"], types["price"], types["position"]) == (
        "product_clicked", "events", "double", "int64",
    )  # fmt: skip
    assert full.call("table", "describe", "sessions")[1].startswith("sessions: a view over the table events\n")


@pytest.mark.parametrize("name", ["events", "failed", "decisions"])
def test_describe_has_a_sentence_for_every_column(full, name):
    (found,) = lines(full.call("table", "describe", name, "--json")[1])
    assert [column["name"] for column in found["columns"] if not column["text"]] == []


def test_an_unknown_table_names_the_nearest(full):
    for words, known in (
        (("describe", "evens"), "decisions, events, failed, product_clicked, sessions"),
        (("history", "evens"), "decisions, events, failed"),
        (("pin", "evens"), "decisions, events, failed"),
    ):
        code, _, error = full.call("table", *words)
        assert (code, error) == (2, f"UnknownNameError: no table 'evens'. Did you mean events?  known: {known}\n")


def test_history_tells_whence_each_commit_came(own):
    own.click(clicked("m3"))
    own.run()
    with open_project(own.folder) as project:
        table = project.tables.open("events")
        schema = table.schema.append(table.schema.field("name").with_name("extra"))
        table.evolve(schema)
    found = lines(own.call("table", "history", "events", "--json")[1])
    assert [(one["version"], one["rows"], one["offsets"], one["schema_changed"]) for one in found] == [
        (3, 0, None, True), (2, 1, {"0": [2, 3]}, False), (1, 2, {"0": [0, 2]}, False), (0, 0, None, True),
    ]  # fmt: skip
    assert {one["producer"] for one in found[1:3]} == {"test"}
    assert [one["version"] for one in lines(own.call("table", "history", "events", "--limit", "1", "--json")[1])] == [3]
    out = own.call("table", "history", "events")[1]
    assert "new schema" in out.splitlines()[1] + out.splitlines()[2]
    assert own.call("table", "history", "events", "--limit", "0")[0] == 2


# sql.


def test_sql_prints_json_with_numbers_as_numbers(full):
    out = sql(full, "SELECT sum(position) AS s, 1.25 AS d, max(price) AS p, 2 AS p FROM product_clicked", "--json")
    assert lines(out) == [{"s": None, "d": 1.25, "p": 2.0, "p_2": 2}]
    (found,) = lines(
        sql(full, "SELECT [1, 2] AS l, {'a': NULL} AS s, 'NaN'::DOUBLE AS n, DATE '2026-01-02' AS d", "--json")
    )
    assert found == {"l": [1, 2], "s": {"a": None}, "n": None, "d": "2026-01-02"}


def test_sql_prints_csv_that_reads_back(full):
    out = sql(full, "SELECT 'a,\"b\"\nc' AS text, NULL AS nothing, true AS yes, [1, 2] AS l, 1.5 AS x", "--csv")
    assert list(csv.reader(io.StringIO(out))) == [
        ["text", "nothing", "yes", "l", "x"], ['a,"b"\nc', "", "true", "[1,2]", "1.5"],
    ]  # fmt: skip


FAR = """SELECT '290000-01-01'::DATE AS day, '0044-03-15 (BC)'::DATE AS bc, 'infinity'::TIMESTAMP AS ever,
  '-infinity'::DATE AS never, '290000-01-01 01:02:03.04Z'::TIMESTAMPTZ AS zoned,
  TIMESTAMP_NS '2200-01-01 00:00:00.123456789' AS ns, TIME_NS '01:02:03.000000004' AS clock,
  {a: ['290000-01-01'::DATE], b: MAP {1: 'infinity'::TIMESTAMP}} AS parts UNION ALL SELECT * REPLACE (NULL AS day)
  FROM (SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL) AS t(day, bc, ever, never, zoned, ns, clock, parts)"""


def test_sql_shows_instants_that_python_has_no_value_for(full):
    first, second = lines(sql(full, FAR, "--json"))
    assert first == {
        "day": "290000-01-01", "bc": "-0043-03-15", "ever": "infinity", "never": "-infinity",
        "zoned": "290000-01-01T01:02:03.040000Z", "ns": "2200-01-01T00:00:00.123456789", "clock": "01:02:03.000000004",
        "parts": {"a": ["290000-01-01"], "b": [[1, "infinity"]]},
    }  # fmt: skip
    assert set(second.values()) == {None}
    assert "290000-01-01 01:02:03.040000+00:00,2200-01-01 00:00:00.123456789" in sql(full, FAR, "--csv")
    assert "290000-01-01 01:02:03.040000+00:00" in sql(full, FAR)


def test_sql_at_takes_no_odd_digit(full):
    code, _, error = full.call("table", "sql", "SELECT 1 FROM events", "--at", "²")
    assert (code, error) == (2, "CallError: --at '²': write a version like 12, or an instant like 2026-11-21T12:00\n")


def test_sql_writes_parquet_with_its_types(full, tmp_path):
    target = tmp_path / "out.parquet"
    assert sql(full, "SELECT * FROM product_clicked ORDER BY message_id", "--parquet", target) == ""
    table = pq.read_table(target)
    assert table.column("price").to_pylist() == [1.5, 2.0]
    assert [path.name for path in tmp_path.glob(".*part")] == []


def test_sql_streams_parquet_into_a_pipe(full):
    command = [sys.executable, "-m", "headrace", "table", "sql", "SELECT 1 AS one", "--parquet", "/dev/stdout"]
    done = subprocess.run(command, cwd=full.folder, capture_output=True, check=True)
    assert pq.read_table(io.BytesIO(done.stdout)).to_pylist() == [{"one": 1}]
    assert done.stderr == b""


@pytest.mark.slow
@pytest.mark.soak
def test_sql_ends_quietly_by_ctrl_c(full):
    endless = "SELECT count(*) FROM range(100_000) a, range(1_000_000) b WHERE a.range * b.range % 7 = 3"
    command = [sys.executable, "-m", "headrace", "table", "sql", endless]
    process = subprocess.Popen(
        command,
        cwd=full.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        used = f"/proc/{process.pid}/stat"
        # Ten times what it takes to begin: it counts by then.
        wait_until(lambda: sum(map(int, Path(used).read_text().rpartition(")")[2].split()[11:13])) > 500, seconds=60)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20) == (b"", b"")
        assert process.returncode == -signal.SIGINT
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("place", [".headrace/lake/events/x.parquet", ".headrace/x.parquet", ".headrace"])
def test_sql_writes_nothing_among_the_projects_files(full, place):
    before = _bytes_below(full.folder)
    code, _, error = full.call("table", "sql", "SELECT 1", "--parquet", full.folder / place)
    assert (code, "lies among the project's own files" in error) == (2, True)
    assert _bytes_below(full.folder) == before


def test_sql_writes_parquet_over_parquet_alone(full, tmp_path):
    before = _bytes_below(full.folder)
    for name in ("project.py", "headrace.toml"):
        code, _, error = full.call("table", "sql", "SELECT 1", "--parquet", full.folder / name)
        assert (code, "stands already and is not called .parquet" in error) == (2, True)
    assert _bytes_below(full.folder) == before
    (tmp_path / "link.parquet").symlink_to(full.folder / "project.py")
    assert full.call("table", "sql", "SELECT 1", "--parquet", tmp_path / "link.parquet")[0] == 2
    for _ in range(2):
        assert sql(full, "SELECT 1", "--parquet", tmp_path / "out.parquet") == ""


def test_sql_leaves_no_half_of_a_file(full, tmp_path):
    target = tmp_path / "out.parquet"
    code, _, error = full.call("table", "sql", "SELECT INTERVAL 1 DAY AS i", "--parquet", target)
    assert (code, "Parquet cannot hold a column of this answer" in error) == (2, True)
    code, _, error = full.call("table", "sql", "SELECT error('no')", "--parquet", target)
    assert code == 2
    assert not target.exists()
    assert [path.name for path in tmp_path.glob(".*part")] == []
    code, _, error = full.call("table", "sql", "SELECT 1", "--parquet", tmp_path / "none" / "x.parquet")
    assert (code, "No such file or directory" in error) == (2, True)


def test_sql_takes_stdin_and_stops_at_max(full):
    assert len(lines(sql(full, "-", "--json", stdin="SELECT * FROM range(100_000)"))) == 100_000
    assert len(lines(sql(full, "SELECT * FROM range(100_000)", "--json", "--max", "7"))) == 7
    assert sql(full, "SELECT * FROM range(5)", "--csv", "--max", "1") == "range\n0\n"
    assert full.call("table", "sql", "SELECT 1", "--max", "0")[0] == 2


def test_sql_shows_people_a_table_and_says_what_it_cost(full):
    code, out, error = full.call("table", "sql", "SELECT event, price FROM product_clicked ORDER BY price")
    assert (code, out) == (0, "event           price\nProduct Clicked   1.5\nProduct Clicked   2.0\n")
    assert re.fullmatch(r"2 rows, [0-9.]+ s, [0-9.]+ kB scanned\n", error)
    code, out, error = full.call("table", "sql", "SELECT repeat('x', 100) AS x, range AS n FROM range(50)")
    assert (len(out.splitlines()), len(out.splitlines()[1])) == (41, 60 + 1 + 2)
    assert error.startswith("the first 40 rows, --max ROWS shows more, ")
    code, out, _ = full.call("table", "sql", "SELECT chr(27) || '[2J' AS text")
    assert "\x1b" not in out


def test_sql_asks_the_tables_as_they_were(own):
    at = own.call("table", "history", "events", "--limit", "1", "--json")[1]
    own.click(clicked("m3"))
    own.run()
    count = "SELECT count(*) AS n FROM product_clicked"
    assert lines(sql(own, count, "--json")) == [{"n": 3}]
    assert lines(sql(own, count, "--json", "--at", "1")) == [{"n": 2}]
    assert lines(sql(own, count, "--json", "--at", "0")) == [{"n": 0}]
    instant = lines(sql(own, f"SELECT make_timestamp({lines(at)[0]['time_us']})::VARCHAR AS at", "--json"))[0]["at"]
    assert lines(sql(own, count, "--json", "--at", instant)) == [{"n": 2}]
    for place, message in (
        ("9", "table 'events' has no version 9; its newest is 2"),
        ("2020-01-01", "table 'events' has no version as old as 2020-01-01"),
        ("soon", "--at 'soon': write a version like 12, or an instant like 2026-11-21T12:00"),
    ):
        code, out, error = own.call("table", "sql", count, "--at", place)
        assert (code, out, message in error) == (2, "", True)


def test_bad_sql_gets_a_caret(full):
    code, out, error = full.call("table", "sql", "SELECT *\nFROM evnts")
    assert (code, out) == (2, "")
    assert error == (
        "SqlError: no table 'evnts'. Did you mean events?  known: decisions, events, failed, product_clicked, "
        "sessions\nLINE 2: FROM evnts\n             ^^^^^\n"
    )
    code, out, error = full.call("table", "sql", "SELECT prize FROM product_clicked", "--json")
    assert (code, out, json.loads(error)["error"]) == (2, "", "SqlError")
    assert "no column 'prize'. Did you mean price?" in json.loads(error)["message"]


def test_sql_needs_no_project_file_and_names_its_errors(own):
    (own.folder / "project.py").write_text("project = Projct('shop')\n")
    code, _, error = own.call("table", "sql", "SELECT 1")
    assert (code, "project.py:1: NameError" in error) == (2, True)
    (own.folder / "project.py").unlink()
    assert lines(sql(own, "SELECT count(*) AS n FROM sessions", "--json")) == [{"n": 1}]


def test_a_damaged_table_is_named_and_spoils_no_other(own):
    (path,) = own.folder.rglob("lake/events/**/*.parquet")
    path.write_bytes(path.read_bytes()[:-100] + bytes(100))
    code, _, error = own.call("table", "sql", "SELECT count(*) FROM failed", "--json")
    assert (code, error) == (0, "")
    code, _, error = own.call("table", "sql", "SELECT * FROM events")
    assert code == 1
    assert error.startswith("FormatError: ")
    assert path.name in error
    (own.folder / ".headrace/lake/failed/_delta_log/00000000000000000001.json").write_text("{")
    code, _, error = own.call("table", "describe", "failed")
    assert (code, "00000000000000000001.json" in error) == (1, True)


# What SQL must not do.


def _bytes_below(folder):
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ("lake" in path.parts or path.suffix in (".py", ".toml"))
    }


def attacks(file, folder):
    return [
        f"COPY (SELECT 1) TO '{file}'",
        f"COPY events TO '{file}' (FORMAT parquet)",
        f"EXPLAIN ANALYZE COPY (SELECT 1) TO '{file}'",
        f"SELECT 1; COPY (SELECT 1) TO '{file}'",
        "SELECT * FROM events; DROP VIEW events",
        f"ATTACH '{folder}/x.db'",
        f"ATTACH '{folder}/.headrace/topics/topics.db' (TYPE sqlite)",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_csv('/etc/passwd')",
        "FROM '/etc/passwd'",
        f"FROM '{file}'",
        f"SELECT * FROM read_parquet('{file}')",
        f"SELECT * FROM glob('{folder}/**')",
        f"EXPORT DATABASE '{folder}/out'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "CREATE TABLE t AS SELECT 1",
        "INSERT INTO events SELECT * FROM events",
        "DELETE FROM events",
        "PRAGMA database_list",
        "SELECT getenv('HOME')",
        "SELECT * FROM duckdb_settings()",
        "WITH a AS (FROM '/etc/passwd') SELECT * FROM a",
        "CALL pragma_version()",
        "",
    ]


def test_sql_can_do_nothing_but_read_the_lake(full):
    (file,) = full.folder.rglob("lake/events/**/*.parquet")
    before = _bytes_below(full.folder)
    listed = sorted(full.folder.iterdir())
    for text in attacks(file, full.folder):
        code, out, error = full.call("table", "sql", text, "--csv")
        assert (code, out) == (2, ""), text
        assert error.startswith(("SqlError: ", "UnknownNameError: ")), error
        assert "root:" not in error
    assert _bytes_below(full.folder) == before
    assert sorted(full.folder.iterdir()) == listed
    assert lines(sql(full, "SELECT count(*) AS n FROM events", "--json")) == [{"n": 2}]


# pin, maintain.


def test_a_pin_is_set_listed_and_taken_away(own):
    assert own.call("table", "pin", "events") == (0, "no version of events is pinned\n", "")
    (one,) = lines(
        own.call("table", "pin", "events", "--owner", "ann", "--reason", "trial 7", "--version", "0", "--json")[1]
    )
    assert (one["table"], one["version"], one["owner"], one["reason"]) == ("events", 0, "ann", "trial 7")
    assert {row["table"]: row["pins"] for row in lines(own.call("table", "list", "--json")[1])}["events"] == 1
    assert one["pin"] in own.call("table", "pin", "events")[1]
    code, _, error = own.call("table", "pin", "events", "--remove", "nope")
    assert (code, error.startswith("UnknownNameError: no pin of table 'events' 'nope'.  known: ")) == (2, True)
    assert own.call("table", "pin", "events", "--remove", one["pin"])[1] == "no version of events is pinned\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--owner", "ann"), "a pin needs an owner and a reason"),
        (("--reason", "x"), "a pin needs an owner and a reason"),
        (("--version", "1"), "a pin needs an owner and a reason"),
        (("--owner", "a", "--reason", "b", "--version", "99"), "table 'events' has no version 99; its newest is 1"),
        (("--owner", "a", "--reason", "b", "--remove", "c"), "give either --remove ID, or --owner and --reason"),
    ],
)
def test_a_pin_that_says_too_little_or_too_much_is_refused(full, options, message):
    code, _, error = full.call("table", "pin", "events", *options)
    assert (code, message in error) == (2, True)


def test_maintain_merges_and_deletes_unless_a_pin_needs_it(own):
    for n in range(3):
        own.click(clicked(f"more-{n}"))
        own.run()
    pinned = lines(own.call("table", "pin", "events", "--owner", "ann", "--reason", "trial 7", "--json")[1])[0]
    (done,) = lines(own.call("table", "maintain", "events", "--json")[1])
    assert (done["files_before"], done["files_after"], done["checkpoint"]) == (4, 1, 5)
    assert list(own.folder.rglob("lake/events/_delta_log/*5.checkpoint.parquet"))
    before = _bytes_below(own.folder)
    code, out, error = own.call("table", "maintain", "events", "--vacuum", "--keep-days", "0")
    assert (code, out) == (2, "")
    assert f"version 4 for ann (trial 7), pin {pinned['pin']}" in error
    assert _bytes_below(own.folder) == before
    own.call("table", "pin", "events", "--remove", pinned["pin"])
    (dry,) = lines(own.call("table", "maintain", "events", "--vacuum", "--keep-days", "0", "--dry-run", "--json")[1])
    assert len(dry["deleted"]) == 4
    assert {path for path in before if path.suffix == ".parquet"} <= _bytes_below(own.folder).keys()
    code, out, _ = own.call("table", "maintain", "events", "--vacuum", "--keep-days", "0")
    assert (code, "deleted 4 files" in out) == (0, True)
    assert lines(sql(own, "SELECT count(*) AS n FROM events", "--json")) == [{"n": 5}]
    assert own.call("table", "maintain", "--keep-days", "-1")[0] == 2
    assert "--dry-run goes with --vacuum" in own.call("table", "maintain", "--dry-run")[1]

"""SQL in, Arrow out."""

import subprocess
import sys
import threading
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engines.lake import DAY, SCHEMA, write_events
from headrace.base.errors import (
    CallError,
    DeadlineError,
    FormatError,
    FullError,
    OverloadedError,
    UnknownOptionError,
    UnknownSchemeError,
)
from headrace.engines import Source, SqlError, View, open_engine

# 80 MB that no compression shrinks much, so that 50 MB of memory do not hold them.
SORT = "SELECT i, md5(i::VARCHAR) || md5((-i)::VARCHAR) AS s FROM range(1000000) t(i) ORDER BY hash(i), s"
ENDLESS = "WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r) "


def test_an_answer_has_the_tables_columns_and_types(engine, events):
    with engine.query("FROM events ORDER BY ALL LIMIT 1", sources=[events]) as result:
        assert result.schema == SCHEMA
        assert result.table().to_pylist()[0]["received_date"] == DAY


def test_a_file_without_a_column_gives_nulls(ask):
    assert ask("SELECT received_date, count(*) AS n, sum(price) AS s FROM events GROUP BY ALL ORDER BY ALL") == [
        {"received_date": DAY, "n": 100, "s": None},
        {"received_date": DAY.replace(day=22), "n": 100, "s": Decimal("4950.00")},
    ]


def test_a_column_that_no_file_has_gives_nulls(ask, events):
    grown = replace(events, schema=SCHEMA.append(pa.field("later", pa.list_(pa.string()))))
    assert ask("SELECT count(*) AS n, count(later) AS later FROM events", sources=[grown]) == [{"n": 200, "later": 0}]


def test_a_table_without_files_has_its_columns(engine):
    with engine.query("FROM events", sources=[Source("events", SCHEMA, ())]) as result:
        assert result.table() == SCHEMA.empty_table()


def test_a_filter_on_a_partition_passes_over_files(engine, events):
    sql = f"SELECT count(message_id) AS n FROM events WHERE received_date = '{DAY}'"
    with engine.query(f"EXPLAIN ANALYZE {sql}", sources=[events]) as result:
        assert "Scanning Files: 1/2" in " ".join(result.table()["explain_value"][0].as_py().split())
    with engine.query(sql, sources=[events]) as result:
        assert result.table().to_pylist() == [{"n": 100}]
        assert result.scanned.rows == 100
        assert 0 < result.scanned.bytes <= Path(events.files[0]).stat().st_size * 2


def test_a_partition_without_a_value_is_null(ask, tmp_path):
    path = tmp_path / "day=__HIVE_DEFAULT_PARTITION__" / "kind=a%20b" / "x.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"x": [1]}), path)
    schema = pa.schema([("day", pa.date32()), ("kind", pa.string()), ("x", pa.int64())])
    assert ask("FROM t", sources=[Source("t", schema, [str(path)], ("day", "kind"))]) == [
        {"day": None, "kind": "a b", "x": 1}
    ]


def test_the_last_folder_of_a_partitions_name_counts(ask, tmp_path):
    path = tmp_path / "day=1" / "lake" / "day=2" / "x.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"x": [1]}), path)
    source = Source("t", pa.schema([("x", pa.int64()), ("day", pa.int32())]), [str(path)], ("day",))
    assert ask("FROM t", sources=[source]) == [{"x": 1, "day": 2}]
    lost = replace(source, files=[str(path)], partitions=("hour",))
    with pytest.raises(CallError, match="says no hour="):
        ask("FROM t", sources=[lost])


def test_odd_names_and_paths_are_quoted(ask, tmp_path):
    path = tmp_path / "it's [a] *?" / 'y".parquet'
    path.parent.mkdir()
    columns = pa.table({"it's": [1], 'a "b"': [2], "filename": [3], "select": [{"x y": 4}]})
    pq.write_table(columns, path)
    source = Source('odd "name"', columns.schema, [str(path)])
    assert ask('FROM "odd ""name"""', sources=[source]) == columns.to_pylist()


def test_columns_are_read_by_name_and_widened(ask, tmp_path):
    struct, wide = pa.struct([("a", pa.int32())]), pa.struct([("a", pa.int64()), ("b", pa.string())])
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"s": pa.array([{"a": 1}], struct), "f": pa.array([1.5], pa.float32())}), path)
    source = Source("t", pa.schema([("f", pa.float64()), ("s", wide)]), [str(path)])
    assert ask("FROM t", sources=[source]) == [{"f": 1.5, "s": {"a": 1, "b": None}}]


def test_views_stand_on_views(ask):
    views = [View("late", "FROM events WHERE event_us >= 90"), View("priced", "FROM late WHERE price IS NOT NULL;")]
    assert ask("SELECT count(*) AS n FROM Priced", views=views) == [{"n": 10}]


def test_a_view_sees_no_later_view(ask):
    with pytest.raises(SqlError, match="the view 'first': no table 'second'"):
        ask("FROM first", views=[View("first", "FROM second"), View("second", "SELECT 1")])


def test_two_tables_of_one_name_are_refused(ask):
    with pytest.raises(CallError, match="two tables or views are called 'Events'"):
        ask("SELECT 1", views=[View("Events", "SELECT 1")])


def test_parameters_are_values(ask):
    text = "'; DROP VIEW events; --"
    assert ask("SELECT $1 AS a, $2 + 1 AS b", parameters=[text, 1]) == [{"a": text, "b": 2}]
    assert ask("SELECT count(*) AS n FROM events WHERE event_us < $top", parameters={"top": 5}) == [{"n": 10}]
    with pytest.raises(SqlError, match="not provided"):
        ask("SELECT $1")


@pytest.mark.parametrize(
    ("expression", "kind"),
    [
        ("1::HUGEINT", pa.decimal128(38, 0)),
        ("1.5::DECIMAL(20, 4)", pa.decimal128(20, 4)),
        ("TIMESTAMP '2026-11-21'", pa.timestamp("us")),
        ("TIMESTAMPTZ '2026-11-21'", pa.timestamp("us", "UTC")),
        ("TIMESTAMP_NS '2026-11-21'", pa.timestamp("ns")),
        ("DATE '2026-11-21'", pa.date32()),
        ("TIME '10:00'", pa.time64("us")),
        ("INTERVAL 1 DAY", pa.month_day_nano_interval()),
        ("uuid()", pa.string()),
        ("'x'::BLOB", pa.binary()),
        ("'{}'::JSON", pa.string()),
        ("NULL", pa.null()),
        ("[1]", pa.list_(pa.int32())),
        ("{'a': [1]}", pa.struct([("a", pa.list_(pa.int32()))])),
        ("MAP {'a': 1}", pa.map_(pa.string(), pa.int32())),
        ("'a'::ENUM('a')", pa.dictionary(pa.uint8(), pa.string())),
    ],
)
def test_every_type_arrives_as_arrow(engine, expression, kind):
    with engine.query(f"SELECT {expression} AS x", sources=[]) as result:
        assert result.schema.field("x").type == kind
        assert result.table().num_rows == 1


def test_a_result_streams(engine):
    with engine.query("FROM range(300000)", sources=[]) as result:
        assert result.scanned is None
        sizes = [batch.num_rows for batch in result.batches()]
        assert sum(sizes) == 300_000
        assert max(sizes) <= 65_536
        assert result.scanned is not None


def test_a_closed_result_says_so(engine, events):
    result = engine.query("FROM events", sources=[events])
    result.close()
    result.close()
    with pytest.raises(CallError, match="closed"):
        result.table()


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT *\nFROM evnts", "no table 'evnts'. Did you mean events?  known: events"),
        ("SELECT *\nFROM evnts", "LINE 2: FROM evnts\n             ^^^^^"),
        (
            "SELECT pric FROM events",
            "no column 'pric'. Did you mean price?  known: message_id, event_us, pri",
        ),
        ("SELECT 'é', pric FROM events", "LINE 1: SELECT 'é', pric FROM events\n                    ^^^^"),
        (
            "SELECT 1 FRM events",
            'syntax error at or near "events"\nLINE 1: SELECT 1 FRM events\n                     ^^^^^^',
        ),
        ("EXPLAIN SELECT 1 +", "LINE 1: EXPLAIN SELECT 1 +"),
        ("explain select x from events", "LINE 1: explain select x from events\n                       ^"),
        ("SELECT price::DATE FROM events", "LINE 1: SELECT price::DATE FROM events\n                    ^^^^^"),
        ("SELECT nofn(1)", "LINE 1: SELECT nofn(1)\n               ^^^^^^^"),
        ("SELECT " + "1, " * 500 + "x, 2 FROM events", "LINE 1: ..."),
    ],
)
def test_bad_sql_shows_the_place(ask, sql, message):
    with pytest.raises(SqlError) as error:
        ask(sql)
    assert message in str(error.value)
    assert "known" not in str(error.value) or max(map(len, str(error.value).splitlines())) < 150


def test_bad_sql_in_a_view_shows_its_own_line(ask):
    with pytest.raises(SqlError) as error:
        ask("FROM v", views=[View("v", "SELECT 1,\n pric FROM events")])
    assert str(error.value).startswith("the view 'v': no column 'pric'. Did you mean price?")
    assert str(error.value).endswith("LINE 2:  pric FROM events\n         ^^^^")


@pytest.mark.parametrize("damage", ["cut", "footer", "data", "gone"])
def test_a_damaged_file_is_named(ask, events, damage):
    path = Path(events.files[1])
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
        at = {"cut": len(whole) // 2, "data": 4, "footer": footer}[damage]
        path.write_bytes(whole[:at] if damage == "cut" else whole[:at] + b"\xaa" * 80 + whole[at + 80 :])
    with pytest.raises(FormatError, match=r"22/part-0.parquet.*table 'events'"):
        ask("SELECT * FROM events")


def test_an_endless_query_ends_at_its_deadline(ask, engine):
    for sql in ("SELECT count(*) FROM r", "SELECT i FROM r"):
        with pytest.raises(DeadlineError, match=r"within 0.2 seconds"):
            for _ in engine.query(ENDLESS + sql, sources=[], deadline_seconds=0.2).batches():
                pass
    assert ask("SELECT 1 AS x", deadline_seconds=5) == [{"x": 1}]


def test_the_deadline_of_the_url_holds(tmp_path):
    engine = open_engine("duckdb://?threads=1&deadline_seconds=0.2", root=tmp_path)
    with pytest.raises(DeadlineError), engine.query(ENDLESS + "SELECT count(*) FROM r", sources=[]) as result:
        result.table()


def test_a_query_can_be_cancelled_from_another_thread(engine):
    result = engine.query(ENDLESS + "SELECT i FROM r", sources=[])
    batches = result.batches()
    next(batches)
    canceller = threading.Thread(target=result.cancel)
    canceller.start()
    with pytest.raises(DeadlineError, match="cancelled"):
        for _ in batches:
            pass
    canceller.join()
    result.close()
    assert "headrace-deadline" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.slow
def test_a_sort_larger_than_memory_spills(tmp_path):
    spill = tmp_path / "a" / "spill"
    engine = open_engine("duckdb://?threads=1&memory=50MB&spill=a/spill", root=tmp_path)
    with engine.query(SORT, sources=[]) as result:
        rows = next(result.batches()).num_rows
        assert any(spill.iterdir())
        assert rows + sum(batch.num_rows for batch in result.batches()) == 1_000_000
    assert not spill.exists()


@pytest.mark.slow
def test_the_spill_folder_is_bounded(tmp_path):
    engine = open_engine("duckdb://?threads=1&memory=50MB&spill_limit=5MB", root=tmp_path)
    with pytest.raises(FullError, match="spill_limit"), engine.query(SORT, sources=[]) as result:
        result.table()


@pytest.mark.slow
def test_a_spill_folder_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    engine = open_engine("duckdb://?threads=1&memory=50MB&spill=file/spill", root=tmp_path)
    with pytest.raises(FullError, match="spill folder"), engine.query(SORT, sources=[]) as result:
        result.table()


def test_what_cannot_be_spilled_is_a_clear_error(tmp_path):
    engine = open_engine("duckdb://?threads=1&memory=50MB", root=tmp_path)
    big = "SELECT list(md5(i::VARCHAR)) AS x FROM range(2000000) t(i)"
    with pytest.raises(OverloadedError, match="memory"), engine.query(big, sources=[]) as result:
        result.table()


def test_queries_run_side_by_side(engine, events):
    with engine.query("FROM events", sources=[events]) as one, engine.query("FROM events", sources=[events]) as two:
        assert next(one.batches()).num_rows == next(two.batches()).num_rows
        assert one.table().num_rows == two.table().num_rows


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("duckdb://?memry=2GB", UnknownOptionError),
        ("duckdb://?threads=many", UnknownOptionError),
        ("duckdb://?memory=lots", CallError),
        ("duckdb://?memory=1GB'; SELECT 1; --", CallError),
        ("duckdb://?threads=-1", CallError),
        ("duckdb://?threads=100000000000000000000", CallError),
        ("duckdb://?deadline_seconds=nan", CallError),
        ("duckdb:///a.db", CallError),
        ("duckdbb://", UnknownSchemeError),
    ],
)
def test_a_wrong_url_is_refused(url, error):
    with pytest.raises(error):
        open_engine(url)


def test_an_engine_with_hardly_any_memory_says_so(tmp_path):
    with pytest.raises(OverloadedError, match=r"needs more memory than it may have \(memory\)"):
        open_engine("duckdb://?memory=0MB", root=tmp_path).query("SELECT 1", sources=[])


@pytest.mark.parametrize("option", ["memory=99999999999999999999TB", "spill_limit=99999999999999999999TB"])
def test_an_option_that_duckdb_does_not_take_is_quoted(tmp_path, option):
    with pytest.raises(CallError, match=f"does not start with its options .*{option}.*: ."):
        open_engine(f"duckdb://?{option}", root=tmp_path).query("SELECT 1", sources=[])


def test_nothing_heavy_is_imported(tmp_path):
    program = """
import sys
import headrace.engines
assert not {"duckdb", "pyarrow", "pandas"} & set(sys.modules)
with headrace.engines.open_engine("duckdb://", root=sys.argv[1]).query("SELECT 1", sources=[]) as result:
    result.table()
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)


def test_nothing_is_printed(engine, capfd):
    write_nothing = "SELECT count(*) FROM range(20000000) t(i) WHERE i % 7 = 3"
    with engine.query(write_nothing, sources=[]) as result:
        result.table()
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_thousand_files_stay_quick(engine, tmp_path):
    events = write_events(tmp_path / "many", days=1, rows=10)
    copies = [tmp_path / "many" / f"received_date={DAY}" / f"{i}.parquet" for i in range(1000)]
    for copy in copies:
        copy.hardlink_to(events.files[0])
    with engine.query("SELECT count(*) AS n FROM events", sources=[replace(events, files=list(map(str, copies)))]) as r:
        assert r.table().to_pylist() == [{"n": 10_000}]

"""SQL reads the tables that it was given, and can do nothing else: each of these really tries."""

import pytest

from engines.lake import SCHEMA, fingerprint, write_events
from headrace.base.errors import HeadraceError
from headrace.engines import Source, SqlError, View, open_engine

pytestmark = pytest.mark.slow

WRITES = [
    "COPY (SELECT 1) TO '{file}'",
    "COPY events TO '{file}' (FORMAT parquet)",
    "/* */ -- SELECT\nCOPY (SELECT 1) TO '{file}'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{file}'",
    "EXPLAIN COPY (SELECT 1) TO '{file}'",
    "explain/**/analyze copy (select 1) to '{file}'",
    "COPY events FROM '{file}'",
    "EXPORT DATABASE '{folder}'",
    "IMPORT DATABASE '{folder}'",
    "ATTACH '{folder}/new.db'",
    "ATTACH '{file}' AS other",
    "INSTALL httpfs",
    "LOAD httpfs",
    "FORCE INSTALL '{file}'",
    "SET enable_external_access = true",
    "SET GLOBAL memory_limit = '1TB'",
    "RESET lock_configuration",
    "PRAGMA database_list",
    "PRAGMA enable_profiling='json'",
    "CALL pragma_version()",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "DEALLOCATE p",
    "CREATE TABLE t AS SELECT 1",
    "CREATE MACRO f(x) AS x",
    "CREATE SECRET (TYPE s3)",
    "CREATE TEMP VIEW v AS FROM '{file}'",
    "INSERT INTO events VALUES (1)",
    "UPDATE events SET event_us = 1",
    "DELETE FROM events",
    "MERGE INTO events USING events e ON true WHEN MATCHED THEN DELETE",
    "DROP VIEW events",
    "ALTER VIEW events RENAME TO gone",
    "TRUNCATE events",
    "BEGIN",
    "CHECKPOINT",
    "VACUUM",
    "USE memory",
    "COMMENT ON VIEW events IS 'x'",
    "SELECT 1; COPY (SELECT 1) TO '{file}'",
    "SELECT 1; SELECT 2",
    "SELECT 1 /* ; */ ; /* */ DROP VIEW events",
    "WITH x AS (INSERT INTO events VALUES (1) RETURNING *) FROM x",
    "WITH x AS (DELETE FROM events RETURNING *) FROM x",
    "FROM (COPY (SELECT 1) TO '{file}')",
    "\ufeffCOPY (SELECT 1) TO '{file}'",
    "\u00a0COPY (SELECT 1) TO '{file}'",
    "\uff23\uff2f\uff30\uff39 (SELECT 1) TO '{file}'",
    "SELECT 1\0; COPY (SELECT 1) TO '{file}'",
    "SELECT '\ud800'",
    "",
    "-- nothing",
]

READS = [
    "FROM '/etc/passwd'",
    'FROM "/etc/passwd"',
    "SELECT * FROM '{file}'",
    "FROM '{folder}/*/*.parquet'",
    "FROM read_parquet('{file}')",
    "FROM parquet_scan(['{file}'])",
    "FROM parquet_metadata('{file}')",
    "FROM parquet_schema('{file}')",
    "FROM read_csv('/etc/passwd')",
    "FROM READ_CSV_AUTO('/etc/passwd')",
    "FROM read_text('/etc/passwd')",
    "FROM \"read_text\"('/etc/passwd')",
    "FROM main.read_text('/etc/passwd')",
    "FROM system.main.read_text('/etc/passwd')",
    "FROM read_blob('/etc/passwd')",
    "FROM read_json('/etc/passwd')",
    "FROM read_duckdb('/etc/passwd')",
    "FROM sniff_csv('/etc/passwd')",
    "FROM glob('/*')",
    "SELECT (SELECT content FROM read_text('/etc/passwd'))",
    "SELECT * FROM events WHERE message_id IN (SELECT content FROM read_text('/etc/passwd'))",
    "WITH x AS (FROM read_text('/etc/passwd')) FROM x",
    "DESCRIBE FROM '/etc/passwd'",
    "DESCRIBE '/etc/passwd'",
    "SUMMARIZE '{file}'",
    "FROM (SUMMARIZE '{file}')",
    "EXPLAIN FROM '{file}'",
    "EXPLAIN ANALYZE FROM read_text('/etc/passwd')",
    "SELECT getenv('HOME')",
    "SELECT current_setting('temp_directory')",
    "SELECT getvariable('x')",
    "FROM duckdb_secrets()",
    "FROM duckdb_settings()",
    "FROM duckdb_settings",
    "FROM duckdb_views",
    "FROM information_schema.tables",
    "FROM pg_catalog.pg_class",
    "FROM sqlite_master",
    "FROM pragma_version()",
    "FROM which_secret('x', 's3')",
    "SHOW TABLES",
    "SHOW DATABASES",
    "SHOW ALL TABLES",
    "FROM query('FROM read_text(''/etc/passwd'')')",
    "FROM query_table('/etc/passwd')",
    "FROM query_table(['{file}'])",
    "FROM json_execute_serialized_sql('{{}}')",
    "SELECT json_serialize_plan('FROM read_text(''{file}'')')",
    "FROM histogram('{file}', 'price')",
    "FROM python_arrow_scan(1, 2, 3)",
    "SELECT sleep_ms(100000)",
    "SELECT pg_sleep(100)",
    "SELECT pg_catalog.pg_sleep(100)",
    "SELECT write_log('x')",
    "SELECT nextval('x')",
    'WITH "{file}" AS (SELECT 1) SELECT 2 UNION ALL SELECT count(*) FROM (FROM \'{file}\' LIMIT 1) AS "x", b.c',
    "WITH a AS (FROM '{file}'), \"{file}\" AS (SELECT 1) FROM a",
    "SELECT * FROM (WITH \"{file}\" AS (SELECT 1) SELECT 1), '{file}'",
    "FROM main.'{file}'",
    "FROM events AT (VERSION => 1)",
    "PIVOT events ON message_id",
    "FROM events, LATERAL (FROM read_text(message_id))",
    "FROM event\u017f",
    "FROM '\u212avents'",
    "TABLE '/etc/passwd'",
    "FROM 'file:///etc/passwd'",
    "FROM 'http://127.0.0.1:1/x.parquet'",
    "SELECT list_transform([1], lambda x: (SELECT content FROM read_text('/etc/passwd')))",
]


def try_all(folder, sqls, views=()):
    """Yields each statement with what came of it, after a look at the lake."""
    events = write_events(folder / "lake" / "events")
    (folder / "empty").mkdir()
    engine = open_engine("duckdb://?threads=1&memory=200MB", root=folder)
    before = fingerprint(folder)
    for sql in sqls:
        text = sql.format(file=events.files[0], folder=folder / "lake" / "events")
        try:
            with engine.query(text, sources=[events], views=views) as result:
                outcome = result.table().to_pylist()
        except HeadraceError as error:
            outcome = error
        assert fingerprint(folder) == before, text
        yield text, outcome


def test_nothing_but_a_select_runs(tmp_path):
    outcomes = list(try_all(tmp_path, WRITES))
    assert [sql for sql, outcome in outcomes if not isinstance(outcome, SqlError)] == []


def test_nothing_but_the_tables_is_read(tmp_path):
    outcomes = list(try_all(tmp_path, READS))
    assert [sql for sql, outcome in outcomes if not isinstance(outcome, SqlError)] == []


@pytest.mark.parametrize(
    "sql", ["FROM '/etc/passwd'", "FROM read_text('/etc/passwd')", "COPY (SELECT 1) TO 'x'", "SELECT 1; SELECT 2"]
)
def test_a_view_is_judged_like_a_statement(ask, sql):
    with pytest.raises(SqlError, match="the view 'peek'"):
        ask("FROM peek", views=[View("peek", sql)])


def test_duckdb_itself_is_locked_behind_the_guard(engine, events, tmp_path):
    with engine.query("FROM events", sources=[events]) as result:
        connection = result._query.connection
        other = write_events(tmp_path / "other").files[0]
        for sql in (
            f"FROM '{other}'",
            "FROM read_text('/etc/passwd')",
            "FROM glob('/*')",
            "SET enable_external_access = true",
            "SET allowed_paths = ['/etc/passwd']",
            "INSTALL httpfs",
            "LOAD httpfs",
            f"ATTACH '{tmp_path}/new.db'",
            f"COPY (SELECT 1) TO '{tmp_path}/new.csv'",
            f"EXPORT DATABASE '{tmp_path}/new'",
        ):
            with pytest.raises(Exception, match=r"(?i)permission|locked|disabled"):
                connection.execute(sql)
    assert not list(tmp_path.glob("new*"))


def test_what_only_reads_is_allowed(tmp_path):
    allowed = [
        "SELECT count(*) AS n FROM events",
        "FROM events LIMIT 1",
        "TABLE events",
        "VALUES (1), (2)",
        "WITH a AS (FROM events), b AS (FROM a) SELECT count(*) FROM b",
        "WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < 5) FROM r",
        "SELECT ';' AS x;",
        "SELECT 'COPY (SELECT 1) TO ''/etc/passwd''' /* ; DROP */ -- ; DROP\n;",
        "DESCRIBE events",
        "DESCRIBE SELECT 1",
        "SUMMARIZE events",
        "SUMMARIZE SELECT 1",
        "EXPLAIN SELECT * FROM events",
        "-- why\n explain analyze SELECT * FROM events",
        "SELECT * FROM main.events LIMIT 1",
        'SELECT * FROM "EVENTS" LIMIT 1',
        "SELECT message_id.upper() FROM events LIMIT 1",
        "SELECT list_transform([1, 2], lambda x: x + 1), [y FOR y IN [1]], {{'a': 1}}.a",
        "SELECT sum(event_us) OVER (PARTITION BY received_date ORDER BY event_us), row_number() OVER () FROM events",
        "FROM (PIVOT events ON received_date IN ('2026-11-21') USING count(*))",
        "FROM events a ASOF JOIN events b ON a.message_id = b.message_id AND a.event_us >= b.event_us",
        "SELECT * EXCLUDE (price), COLUMNS('m.*') FROM events LIMIT 1",
        "SELECT unnest(range(3)), now(), current_date, random(), uuid()",
        "FROM generate_series(1, 3), json_each('[1]')",
        "FROM range(1000000000) LIMIT 1",
        "SELECT format('20261121000 {{}}', 20261121000), printf('%05d %s', 20261121000, '%20261121000')",
        "SELECT lpad('7', 10000000, '0')[1], list_resize([1::BIGINT], 2, 20261121000), range(20261121000, 20261121005)",
        "SELECT jaro_similarity('a', 'b'), hamming('a', 'b'), jaccard('a', 'b')",
        "SELECT count(*) FILTER (price > 1), quantile_cont(event_us, 0.5) FROM events",
        "SELECT string_agg(message_id ORDER BY event_us DESC) FROM events",
        "SELECT date_trunc('day', seen_at), seen_at AT TIME ZONE 'UTC', strftime(seen_at, '%Y') FROM events LIMIT 1",
        "SELECT '{{\"a\": 1}}'::JSON ->> '$.a', if(true, 1, 2), nullif(1, 2), CASE WHEN true THEN 1 END",
        "SELECT received_date, count(*) FROM events GROUP BY ALL HAVING count(*) > 1 ORDER BY ALL LIMIT 10%",
        "SELECT DISTINCT ON (received_date) * FROM events USING SAMPLE 10 ROWS",
        "SELECT 1 UNION ALL BY NAME SELECT 2 AS x",
        "SELECT 1 EXCEPT SELECT 3",
        "SELECT 1" + " + 1" * 100,
        "SELECT event_us FROM events WHERE event_us IN (" + ", ".join(map(str, range(5000))) + ")",
    ]
    refused = [(sql, str(outcome)) for sql, outcome in try_all(tmp_path, allowed) if not isinstance(outcome, list)]
    assert refused == []


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT " + "(" * 90_000 + "1" + ")" * 90_000,
        "SELECT * FROM (" * 10_000 + "SELECT 1" + ")" * 10_000,
        "DESCRIBE " * 20_000 + "SELECT 1",
        "SELECT 1" + " + 1" * 40_000,
        "SELECT " + "NOT " * 40_000 + "true",
        "SELECT " + "CASE WHEN true THEN " * 350 + "1" + " END" * 350,
        "SELECT '" + "x" * 300_000 + "'",
        "SELECT 1" + " UNION SELECT 1" * 2000,
        "FROM events" + ", events" * 2000,
        "SELECT seen_at" + ".x" * 2000 + " FROM events",
    ],
    ids=["brackets", "subqueries", "describe", "sum", "not", "case", "long", "union", "join", "dots"],
)
def test_sql_that_is_too_deep_or_too_long_is_refused(ask, sql):
    with pytest.raises(SqlError, match=r"nested too deeply|longer than|more than 1,000"):
        ask(sql)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT levenshtein(message_id, 'x') FROM events", "'levenshtein' is refused"),
        ("SELECT message_id.Damerau_Levenshtein('x') FROM events", "'damerau_levenshtein' is refused"),
        ("SELECT editdist3('a', 'b')", "'editdist3' is refused"),
        ("SELECT repeat('a', 3000000000)", r"repeat\(\) of more than 10,000,000 is refused"),
        ("SELECT length(lpad('a', 10000001, 'b'))", r"lpad\(\) of more than"),
        ("SELECT list_resize([1], 1000000000)", r"list_resize\(\) of more than"),
        ("SELECT bitstring('1', 2000000000)", r"bitstring\(\) of more than"),
        ("SELECT format('{:>2000000000}', 'a')", r"format\(\) of more than"),
        ("SELECT printf('%-2000000000s', 'a')", r"printf\(\) of more than"),
        ("SELECT message_id.repeat(10000001) FROM events", r"repeat\(\) of more than"),
    ],
)
def test_what_no_deadline_or_bound_would_hold_is_refused(ask, sql, message):
    with pytest.raises(SqlError, match=message):
        ask(sql)


def test_a_table_that_is_not_mentioned_is_not_opened(engine, events):
    asked = []

    def fetch(name, files=()):
        return lambda: asked.append(name) or files

    sources = [
        Source("events", SCHEMA, fetch("events", events.files), ("received_date",)),
        Source("others", SCHEMA, fetch("others")),
    ]
    views = [View("late", "FROM events WHERE event_us > 50"), View("later", "FROM late"), View("no", "FROM others")]
    engine.query("SELECT 1 AS others", sources=sources, views=views).close()
    assert asked == []
    with engine.query("SELECT count(*) AS n FROM later", sources=sources, views=views) as result:
        assert result.table().to_pylist() == [{"n": 98}]
    assert asked == ["events"]

"""Other people's engines on our tables: Spark with delta-spark and Polars read them, and Spark appends."""

from __future__ import annotations

import json
import shutil
import threading
from contextlib import closing
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from headrace.base.errors import FormatError
from headrace.events.settled import EVENTS
from headrace.verify.count import wait_at_rest
from running import headrace, lines
from services.cluster import cluster_of
from survive.account import read_topic
from survive.stream import Parts, make_project
from survive.yard import Yard

pytestmark = [pytest.mark.slow, pytest.mark.service("spark")]

COUNTS = "select count(*) as n, sum(seq) as s, count(distinct message_id) as ids, max(event_us) as m from {}"


@pytest.fixture
def yard(tmp_path):
    """A project on a laptop whose settlers and sinks are driven by hand."""
    make_project(tmp_path / "shop")
    with closing(Yard(tmp_path / "shop")) as made:
        yield made


def fill(yard, first, count):
    """Lets clicks become rows, in a commit of their own."""
    yard.click(first, count)
    yard.settle("ann")
    yard.fill("ann")


def uri_of(yard) -> str:
    return yard.project.tables.open(EVENTS).uri


def counts_of(yard):
    """Returns what our own engine counts."""
    return yard.project.query(COUNTS.format(EVENTS)).table().to_pylist()[0]


def by_spark(spark, uri):
    """Returns what Spark counts, and the columns that it sees."""
    printed = spark.run(f"""
import json
spark.read.format("delta").load({uri!r}).createOrReplaceTempView("rows")
table = spark.table("rows")
counts = spark.sql({COUNTS.format("rows")!r}).collect()[0].asDict()
print(json.dumps([counts, {{field.name: field.dataType.simpleString() for field in table.schema}}]))
""")
    return json.loads(printed)


def append_by_spark(spark, uri, count):
    """Appends rows that no topic holds, as a colleague's backfill would."""
    spark.run(f"""
from pyspark.sql import functions as f
rows = spark.range({count}).select(
    f.concat(f.lit("backfill-"), "id").alias("message_id"), f.lit(0).cast("long").alias("seq"),
    f.lit(1767571200000000).alias("event_us"), f.lit("2026-01-05").cast("date").alias("received_date"))
rows.coalesce(1).write.format("delta").mode("append").save({uri!r})
""")


def check_all_agree(spark, yard, rows):
    """Asserts that Spark, Polars and our engine count the same rows, and see the columns that the table has."""
    uri = uri_of(yard)
    ours = counts_of(yard)
    assert ours["n"] == rows
    counts, columns = by_spark(spark, uri)
    assert counts == ours
    assert list(columns) == yard.project.tables.open(EVENTS).schema.names
    assert (columns["event_us"], columns["flags"], columns["received_date"]) == ("bigint", "array<string>", "date")
    frame = pl.scan_delta(uri)
    found = frame.select(
        pl.len().alias("n"), pl.col("seq").sum().alias("s"), pl.col("message_id").n_unique().alias("ids"),
        pl.col("event_us").max().alias("m"),
    ).collect()  # fmt: skip
    assert found.to_dicts() == [ours]
    same = ["message_id", "log_partition", "log_offset", "visitor", "properties", "flags", "received_date"]
    theirs = frame.select(same).collect().sort("message_id").to_dicts()
    text = f"select {', '.join(same)} from {EVENTS} order by message_id"
    assert theirs == yard.project.query(text).table().to_pylist()


def test_spark_and_polars_read_what_our_engine_reads(spark, yard):
    for first in (0, 50, 100):
        fill(yard, first, 50)
    append_by_spark(spark, uri_of(yard), 7)
    fill(yard, 150, 50)
    check_all_agree(spark, yard, 207)
    table = yard.project.tables.open(EVENTS)
    assert table.history(2)[1].producer.startswith("Apache-Spark/4.2.0")
    table.optimize()
    table.checkpoint()
    table.evolve(table.schema.append(pa.field("note", pa.string())))
    table.vacuum(keep_seconds=0)
    table.clean_log(keep_seconds=0)
    fill(yard, 200, 50)
    check_all_agree(spark, yard, 257)


def test_a_sink_goes_on_exactly_between_the_appends_of_spark(spark, yard):
    fill(yard, 0, 10)
    stop = threading.Event()
    sink = yard.sink(EVENTS, "ann", seconds=0.05)
    moving = threading.Thread(target=sink.run, args=(stop,))
    moving.start()
    try:
        for number in range(1, 3):
            yard.click(number * 10, 10)
            yard.settle("ann")
            append_by_spark(spark, uri_of(yard), 2)
    finally:
        stop.set()
        moving.join()
    yard.fill("ann")
    text = "select log_partition p, count(*) n, max(seq) s, count(distinct log_offset) o from events group by all"
    found = {row["p"]: row for row in yard.project.query(text).table().to_pylist()}
    assert found.pop(None)["n"] == 4
    assert sum(row["n"] for row in found.values()) == 30
    assert all(row["n"] == row["o"] == row["s"] + 1 for row in found.values())
    code, out, _ = headrace("table", "history", EVENTS, "--json", cwd=yard.folder)
    assert code == 0
    assert sum(line["producer"].startswith("Apache-Spark/4.2.0") for line in lines(out)) == 2


@pytest.mark.parametrize(
    ("properties", "told"),
    [
        ("'delta.enableDeletionVectors' = 'true'", "deletionVectors"),
        ("'delta.columnMapping.mode' = 'name', 'delta.minReaderVersion' = '2', 'delta.minWriterVersion' = '5'",
         "columnMapping"),
    ],
)  # fmt: skip
def test_what_spark_switches_on_and_we_do_not_read_is_named(spark, yard, properties, told):
    fill(yard, 0, 10)
    uri = Path(uri_of(yard))
    shutil.copytree(uri, uri.parent / "foreign")
    spark.run(f'spark.sql("alter table delta.`{uri.parent}/foreign` set tblproperties ({properties})")')
    with pytest.raises(FormatError, match=f"foreign/_delta_log: the table uses {told}"):
        yard.project.query("select count(*) from foreign")


@pytest.mark.service("kafka")
@pytest.mark.service("hdfs")
def test_spark_reads_and_appends_on_the_cluster(spark, kafka, hdfs, tmp_path):
    with cluster_of(kafka, hdfs) as cluster:
        make_project(tmp_path, topics=cluster.topics, tables=cluster.tables)
        with closing(Yard(tmp_path)) as yard, Parts(tmp_path, "settler", "sink") as parts:
            for part in parts.values():
                part.start()
            for first in (0, 50):
                yard.click(first, 50)
                assert wait_at_rest(yard.project, 30)
                if first == 0:
                    append_by_spark(spark, uri_of(yard), 2)
            ours = counts_of(yard)
            assert (ours["n"], by_spark(spark, uri_of(yard))[0]) == (102, ours)
            assert count_in_kafka(spark, kafka) == len(read_topic(yard.project, EVENTS))
            producers = {commit.producer.partition("/")[0] for commit in yard.project.tables.open(EVENTS).history()}
            assert "Apache-Spark" in producers


def count_in_kafka(spark, kafka):
    """Returns how many records Spark finds in the topic `events` that are committed."""
    return int(
        spark.run(f"""
options = {{"kafka.bootstrap.servers": {kafka.address!r}, "subscribe": "events", "startingOffsets": "earliest",
           "kafka.isolation.level": "read_committed"}}
print(spark.read.format("kafka").options(**options).load().count())
""")
    )

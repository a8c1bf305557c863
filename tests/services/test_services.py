"""The services that the tables' tests stand on: they start, break, come back, and read what deltalake wrote."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from deltalake import DeltaTable, QueryBuilder, write_deltalake

pytestmark = pytest.mark.slow


def write(table, *numbers):
    write_deltalake(table, pa.table({"n": pa.array(numbers, pa.int64())}), mode="append")


def read(url):
    found = QueryBuilder().register("t", DeltaTable(url)).execute("select n from t order by n").read_all()
    return found["n"].to_pylist()


@pytest.mark.service("hdfs")
def test_hdfs_keeps_what_deltalake_commits(hdfs):
    url = f"{hdfs.url}/kept"
    for n in range(3):
        write(url, n)
    assert read(url) == [0, 1, 2]
    names = hdfs.listing("/kept")
    assert len([name for name in names if name.endswith(".parquet")]) == 3
    assert [name for name in names if name.endswith(".json")] == [f"/kept/_delta_log/{n:020}.json" for n in range(3)]
    with pytest.raises(FileNotFoundError):
        hdfs.listing("/never-written")


@pytest.mark.service("hdfs")
def test_hdfs_takes_writes_again_once_its_nodes_are_back(hdfs):
    url = f"{hdfs.url}/broken"
    write(url, 0)
    hdfs.kill_datanode(0)
    hdfs.start_datanode(0)
    write(url, 1)
    hdfs.kill_namenode()
    hdfs.start_namenode()
    write(url, 2)
    hdfs.freeze_datanode(1)
    hdfs.thaw_datanode(1)
    write(url, 3)
    assert read(url) == [0, 1, 2, 3]


def append_with_spark(spark, url):
    """Returns what Spark read in the table, before it wrote 10 and 11 to it."""
    printed = spark.run(f"""
import json
table = spark.read.format("delta").load({url!r})
print(json.dumps([row.n for row in table.orderBy("n").collect()]))
spark.createDataFrame([(10,), (11,)], "n long").coalesce(1).write.format("delta").mode("append").save({url!r})
""")
    return json.loads(printed)


@pytest.mark.service("spark")
def test_spark_shares_a_table_with_deltalake(spark, tmp_path):
    write(str(tmp_path), 1, 2)
    assert append_with_spark(spark, tmp_path.as_uri()) == [1, 2]
    assert read(str(tmp_path)) == [1, 2, 10, 11]


@pytest.mark.service("spark")
@pytest.mark.service("hdfs")
def test_spark_shares_a_table_on_hdfs_with_deltalake(spark, hdfs):
    url = f"{hdfs.url}/shared"
    write(url, 1, 2)
    assert append_with_spark(spark, url) == [1, 2]
    assert read(url) == [1, 2, 10, 11]


@pytest.mark.service("spark")
def test_spark_tells_how_a_script_failed_and_takes_the_next(spark):
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        spark.run("1 / 0")
    assert spark.run("print(spark.range(3).count())") == "3\n"

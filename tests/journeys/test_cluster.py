"""From click to row, the same on a laptop and on Kafka with HDFS."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from contextlib import closing
from pathlib import Path

import pytest
from deltalake import DeltaTable
from segment.analytics import request as sdk
from segment.analytics.client import Client

from headrace.events.world import BORN_US, HOUR, World, encode
from headrace.project import open_project
from headrace.verify.count import prove, wait_at_rest
from running import Running, running, wait_until
from services.cluster import cluster_of
from survive.account import check_account, copy_clicks, table_rows
from survive.stream import Parts, make_project, wait_caught_up
from survive.yard import Yard

pytestmark = pytest.mark.slow

PROFILES = [
    "laptop",
    pytest.param("cluster", marks=[pytest.mark.service("kafka"), pytest.mark.service("hdfs")]),
]
SHOP = """from headrace import Event, Project

clicks = Event("Product Clicked", item="product_id")
seats = Event("Seat Chosen", fields={"seat": int})
project = Project("shop", events=(clicks, seats))
"""


@pytest.fixture
def cluster(kafka, hdfs):
    """Places on Kafka and HDFS for one project."""
    with cluster_of(kafka, hdfs) as one:
        yield one


@pytest.fixture
def shop(request, tmp_path):
    """A project of the profile under test; project.py is the same in both."""
    places = {}
    if request.param == "cluster":
        cluster = request.getfixturevalue("cluster")
        places = {"topics": cluster.topics, "tables": cluster.tables}
    make_project(tmp_path / "shop", source=SHOP, profile=request.param, **places)
    return tmp_path / "shop", request.param


def send(up: Running) -> set[str]:
    """Sends a world's traffic, and a few odd events; returns the ids that were acknowledged."""
    world = World(11, visitors=300)
    deliveries = list(world.deliver(world.traffic(BORN_US, BORN_US + 4 * HOUR)))
    for delivery in deliveries:
        assert up.post("/v1/batch", encode(delivery)).status == 200
    acknowledged = {event.message_id for delivery in deliveries for event in delivery.events}
    for number in range(30):
        event = {"anonymousId": f"v{number % 20 % 7}", "messageId": f"seat-{number % 20}", "event": "Seat Chosen"}
        seat = "none" if number % 20 >= 15 else number % 20
        assert up.post("/v1/track", {**event, "properties": {"seat": seat}}).status == 200
        acknowledged.add(event["messageId"])
    return acknowledged


def send_by_sdk(up: Running) -> set[str]:
    """Sends events by Segment's own client, and returns their ids."""
    lost = []
    client = Client("dev", host=up.url, upload_interval=0.1, on_error=lambda error, _: lost.append(error))
    sent = [
        client.track("ann@shop", "Seat Chosen", {"seat": seat}, anonymous_id="ann")[1]["messageId"]
        for seat in range(40)
    ]
    client.shutdown()
    # The SDK keeps one session for the life of the process.
    sdk._session.close()
    assert lost == []
    return set(sent)


@pytest.mark.parametrize("shop", PROFILES, indirect=True)
def test_what_was_acknowledged_is_in_the_lake_once(shop, request):
    folder, profile = shop
    with running(folder, profile=profile) as up:
        acknowledged = send(up) | send_by_sdk(up)
        with open_project(folder, profile=profile) as project:
            assert wait_at_rest(project, 30)
            proof = prove(project, acknowledged)
            seats = project.query("select count(*) n, sum(seat) s from seat_chosen").table().to_pylist()
        assert proof.holds, proof
        assert proof.acknowledged == len(acknowledged) == proof.settled + proof.failed
        assert (proof.failed, proof.repeats >= 10) == (5, True)
        assert seats == [{"n": 55, "s": sum(range(15)) + sum(range(40))}]
        assert up.sql("select count(*) as n from failed") == [{"n": 5}]
        print(profile, "click to queryable:", [f"{s:.2f}" for s in sorted(visible_seconds(up, folder, profile))])
    assert list(folder.glob(".headrace/run/*.failure")) == []
    account = check_account(folder, acknowledged, profile=profile)
    assert account.settled == proof.settled + ROUNDS
    if profile == "cluster":
        check_listing(request.getfixturevalue("cluster"))


ROUNDS = 5


def visible_seconds(up: Running, folder: Path, profile: str) -> list[float]:
    """Returns how long each of a few clicks took to become a row of an answer."""
    found = []
    with open_project(folder, profile=profile) as project:
        for number in range(ROUNDS):
            begun_at = time.monotonic()
            event = {"anonymousId": "eve", "messageId": f"late-{number}", "event": "Looked"}
            assert up.post("/v1/track", event).status == 200
            sql = f"select count(*) n from events where message_id = 'late-{number}'"
            wait_until(lambda sql=sql: project.query(sql).table().to_pylist()[0]["n"], seconds=20)
            found.append(time.monotonic() - begun_at)
    assert statistics.median(found) < 10
    return found


def check_listing(cluster) -> None:
    """Asserts that the name node lists the files that the tables' logs say, and nothing else."""
    listed = cluster.files()
    for name in ("events", "failed"):
        table = DeltaTable(f"{cluster.hdfs.url}{cluster.path}/{name}")
        commits = [json.loads(text) for text in _log_lines(cluster, name, listed)]
        added = {f"{name}/{one['add']['path']}" for one in commits if "add" in one}
        removed = {f"{name}/{one['remove']['path']}" for one in commits if "remove" in one}
        data = {path for path in listed if path.startswith(f"{name}/") and path.endswith(".parquet")}
        data -= {path for path in data if "/_delta_log/" in path}
        standing = {uri.partition(f"{cluster.path}/")[2] for uri in table.file_uris()}
        assert standing == added - removed
        assert standing <= data <= added
        versions = [path for path in listed if path.startswith(f"{name}/_delta_log/") and path.endswith(".json")]
        assert versions == [f"{name}/_delta_log/{n:020}.json" for n in range(table.version() + 1)]
    assert all(path.split("/")[0] in ("events", "failed", "decisions") for path in listed)


def _log_lines(cluster, name, listed):
    from deltalake.fs import DeltaStorageHandler
    from pyarrow.fs import PyFileSystem

    files = PyFileSystem(DeltaStorageHandler(f"{cluster.hdfs.url}{cluster.path}"))
    for path in listed:
        if path.startswith(f"{name}/_delta_log/") and path.endswith(".json"):
            with files.open_input_file(path) as file:
                yield from file.read().splitlines()


@pytest.mark.soak
@pytest.mark.service("kafka")
@pytest.mark.service("hdfs")
def test_the_clicks_of_a_laptop_give_the_same_rows_on_the_cluster(tmp_path, cluster):
    laptop, far = tmp_path / "laptop", tmp_path / "far"
    make_project(laptop, source=SHOP)
    make_project(far, source=SHOP, topics=cluster.topics, tables=cluster.tables)
    with running(laptop) as up:
        acknowledged = send(up)
        wait_caught_up(laptop)
    with open_project(laptop) as project, open_project(far) as other:
        other.make_topics()
        copy_clicks(project, other)
        with Parts(far, "settler", "sink") as parts:
            for part in parts.values():
                part.start()
            wait_until(lambda: wait_at_rest(other, 1), seconds=30)
        assert list(far.glob(".headrace/run/*.failure")) == []
        for name in ("events", "failed"):
            assert row_hash(project, name) == row_hash(other, name)
    assert check_account(far, acknowledged) == check_account(laptop, acknowledged)


@pytest.mark.service("kafka")
@pytest.mark.service("hdfs")
def test_clicks_that_come_mixed_from_the_partitions_are_settled(tmp_path, cluster):
    make_project(tmp_path, topics=cluster.topics, tables=cluster.tables)
    with closing(Yard(tmp_path)) as yard, closing(yard.settler("ann")) as settler:
        yard.click(0, 9)
        settled = 0
        while settled < 9:
            settled += settler.turn()
        for number in range(9, 18):
            yard.click(number, 1)
            # The settler's consumer fetches this by itself, before the next one is there.
            time.sleep(0.1)
        while settled < 18:
            settled += settler.turn()
        assert settled == 18


def row_hash(project, name: str) -> str:
    """Returns the hash of a table's rows, without the offsets that progress and transactions shift."""
    rows = table_rows(project, name, "select * from rows order by log_partition, seq")
    text = json.dumps(rows.drop_columns(["log_offset"]).to_pylist(), default=str)
    return hashlib.blake2b(text.encode()).hexdigest()

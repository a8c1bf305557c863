"""Several processes' worth of work on one table at once, and figures that must stay flat."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time

import pytest

from headrace.base.errors import DeadlineError, FencedError, OutsideError, StopError
from headrace.tables import open_tables
from tables.rows import SCHEMA, many, numbers, rows


class Crowd:
    """Runs actions again and again, each in a thread with a table of its own, until the time is up."""

    def __init__(self, lake, seconds):
        self._lake = lake
        self._end = time.monotonic() + seconds
        self._threads = []
        self._failures = []
        self.done = {}

    def add(self, action):
        def run():
            table = self._lake().open("events")
            while time.monotonic() < self._end and not self._failures:
                try:
                    action(table)
                    self.done[action.__name__] = self.done.get(action.__name__, 0) + 1
                except FencedError:
                    table.reload()
                except Exception as error:  # noqa: BLE001 - `run` raises it where the test can see it
                    self._failures.append(error)

        self._threads.append(threading.Thread(target=run, name=action.__name__))

    def run(self):
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join()
        if self._failures:
            raise self._failures[0]


def append(table):
    position = table.position("i/0") or 0
    table.append(many(10, start=position), positions={"i/0": position + 10})


def keep(table):
    table.reload()
    table.optimize()
    table.checkpoint()
    table.vacuum(keep_seconds=3600)
    table.clean_log(keep_seconds=3600)


def read(table):
    table.reload()
    found = numbers(table)
    assert found == list(range(table.position("i/0") or 0))


def read_files(table):
    table.reload()
    count = table.scan().duckdb().aggregate("count(*)").fetchall()[0][0]
    assert count == (table.position("i/0") or 0)


@pytest.mark.slow
def test_appends_compaction_vacuum_and_reads_at_once_lose_nothing(lake):
    check_crowd(lake, seconds=3)


@pytest.mark.soak
def test_twenty_seconds_of_everything_at_once_lose_nothing(lake):
    check_crowd(lake, seconds=20)


def check_crowd(lake, seconds):
    lake().create("events", SCHEMA)
    crowd = Crowd(lake, seconds)
    for action in (append, append, keep, read, read_files):
        crowd.add(action)
    crowd.run()
    assert set(crowd.done) == {"append", "keep", "read", "read_files"}
    table = lake().open("events")
    assert numbers(table) == list(range(crowd.done["append"] * 10))
    assert table.position("i/0") == crowd.done["append"] * 10


@pytest.mark.slow
def test_commits_stay_quick_with_a_keeper_beside(local):
    table = local().create("events", SCHEMA)
    data = many(500)
    times = []
    for number in range(300):
        begun = time.perf_counter()
        table.append(data, positions={f"i/{p}": number + 1 for p in range(8)})
        times.append(time.perf_counter() - begun)
        if number % 50 == 49:
            local().open("events").checkpoint()
            table.reload()
    first, last = statistics.median(times[:50]), statistics.median(times[-50:])
    assert last < 3 * first, (first, last)


@pytest.mark.service("hdfs")
@pytest.mark.slow
def test_a_frozen_data_node_holds_nobody_for_ever(hdfs):
    def open_lake(deadline_seconds):
        return open_tables(f"{hdfs.url}/frozen?deadline_seconds={deadline_seconds}")

    table = open_lake(20).create("events", SCHEMA)
    table.append(rows(0), positions={"i/0": 1})
    hasty = open_lake(2).open("events")
    assert hasty.position("i/0") == 1
    begun = time.monotonic()
    hdfs.freeze_datanode(0)
    try:
        position = 1
        while time.monotonic() < begun + 30:
            try:
                hasty.append(rows(position), positions={"i/0": position + 1})
                position += 1
            except DeadlineError:
                break
        else:
            pytest.fail("no append met the frozen data node")
        with pytest.raises((StopError, OutsideError), match="may have landed"):
            hasty.append(rows(99), positions={"i/0": 100})
    finally:
        hdfs.thaw_datanode(0)
    deadline = time.monotonic() + 60
    while (position := _go_on(hasty)) < 5:
        assert time.monotonic() < deadline, position
    assert numbers(open_lake(20).open("events")) == list(range(position))


def _go_on(table):
    """Does what a sink does: loads again, looks at the position, appends what is missing; returns the position."""
    try:
        table.reload()
        position = table.position("i/0")
        table.append(rows(position), positions={"i/0": position + 1})
    except (FencedError, OutsideError):
        time.sleep(0.1)
        return 0
    return position + 1


_READS_AND_ENDS = """
import sys
from headrace.tables import open_tables
table = open_tables(sys.argv[1], root=sys.argv[2]).open("events")
assert table.scan().table().num_rows == 2000
assert len(table.scan().duckdb().fetchall()) == 2000
assert "pandas" not in sys.modules
"""


def test_a_process_that_read_a_table_ends_well(lake, tmp_path):
    table = lake().create("events", SCHEMA)
    for part in range(4):
        table.append(many(500, start=part * 500))
    url = table.uri.removesuffix("/events")
    url = url if "://" in url else f"file:///{url}"
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", _READS_AND_ENDS, url, str(tmp_path)], env=dict(os.environ), check=False
        )
        assert done.returncode == 0

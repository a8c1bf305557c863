"""The keeper on real tables, and what it leaves of a log."""

import os
import time
from datetime import date
from pathlib import Path

import pytest

from headrace.base.errors import CallError
from headrace.base.telemetry import Metrics
from headrace.tables import open_tables
from headrace.tables.keeper import METRICS, Care, Keeper
from headrace.topics import open_topics
from tables.rows import SCHEMA, numbers, rows

HOURS = 3600


@pytest.fixture
def lake(tmp_path):
    return lambda: open_tables("file:///lake", root=tmp_path)


@pytest.fixture
def topics():
    opened = open_topics("memory://")
    opened.create("events", partitions=1, retention_seconds=None)
    return opened


def _age(table, hours):
    old = time.time() - hours * HOURS
    for path in Path(table.uri).joinpath("_delta_log").iterdir():
        os.utime(path, (old, old))


def _keeper(lake, topics, *, member="k", oldest_day=lambda _: None, **care):
    metrics = Metrics(METRICS)
    keeper = Keeper(lake(), topics, lease=("events", member), care=Care(**care), oldest_day=oldest_day, metrics=metrics)
    return keeper, metrics


def test_of_old_versions_those_with_a_checkpoint_stay(lake):
    table = lake().create("events", SCHEMA)
    for number in range(1, 13):
        table.append(rows(number), positions={"i/0": number})
        if number % 4 == 0:
            table.checkpoint()
    pin = table.pin(owner="ann", reason="audit", version=2)
    assert table.clean_log(keep_seconds=24 * HOURS, keep_commits=3) == [], "a slow writer may need what is young"
    _age(table, hours=2)
    table.unpin(pin.id)
    table.pin(owner="ann", reason="audit", version=6)
    gone = table.clean_log(keep_seconds=24 * HOURS, keep_commits=3)
    assert gone == [f"{version:020d}.json" for version in (0, 1, 2, 3, 7)]
    assert [commit.version for commit in table.history()] == [12, 11, 10, 9, 8, 6, 5, 4]
    for version in (4, 6, 8, 9, 12):
        assert numbers(table.at(version)) == list(range(1, version + 1))
    with pytest.raises(CallError, match="version 7"):
        table.at(7)
    again = lake().open("events")
    assert again.append(rows(13), positions={"i/0": 13}) == 13
    assert again.position("i/0") == 13


def test_keeper_compacts_and_checkpoints_after_so_many_commits(lake, topics):
    keeper, metrics = _keeper(lake, topics, compact_commits=5, checkpoint_commits=5)
    keeper.turn()
    table = lake().create("events", SCHEMA)
    keeper.turn()
    for number in range(6):
        table.append(rows(number))
    keeper.turn()
    assert metrics.values()["headrace_keeper_compactions_total"] == 1
    kept = lake().open("events")
    assert len(kept.files()) == 1
    assert numbers(kept) == list(range(6))
    assert list(Path(table.uri).glob("_delta_log/*.checkpoint.parquet"))
    keeper.turn()
    assert lake().open("events").version == kept.version, "nothing more is due"


def test_keeper_does_what_an_earlier_one_left_undone(lake, topics):
    table = lake().create("events", SCHEMA)
    for number in range(4):
        table.append(rows(number))
    keeper, metrics = _keeper(lake, topics, compact_commits=3)
    keeper.turn()
    assert metrics.values()["headrace_keeper_compactions_total"] == 1
    assert len(lake().open("events").files()) == 1


def test_keeper_forgets_days_that_are_too_old(lake, topics):
    table = lake().create("events", SCHEMA)
    table.append(rows(1, day=date(2026, 1, 1)))
    table.append(rows(2, day=date(2026, 3, 1)))
    keeper, _ = _keeper(lake, topics, oldest_day=lambda _: date(2026, 2, 1))
    keeper.turn()
    assert numbers(lake().open("events")) == [2]


def test_one_of_two_keepers_works(lake, topics):
    table = lake().create("events", SCHEMA)
    keepers = [_keeper(lake, topics, member=name, compact_commits=2) for name in "ab"]
    for keeper, _ in keepers:
        keeper.turn()
    for number in range(4):
        table.append(rows(number))
    for keeper, _ in keepers:
        keeper.turn()
    assert sum(metrics.values()["headrace_keeper_compactions_total"] for _, metrics in keepers) == 1


def test_table_that_cannot_be_kept_does_not_stop_the_others(lake, topics):
    broken, table = lake().create("broken", SCHEMA), lake().create("events", SCHEMA)
    (Path(broken.uri) / "_delta_log" / f"{0:020d}.json").write_text("no commit")
    keeper, metrics = _keeper(lake, topics, compact_commits=2)
    keeper.turn()
    for number in range(3):
        table.append(rows(number))
    keeper.turn()
    assert metrics.values()["headrace_keeper_failures_total"] == 2
    assert len(lake().open("events").files()) == 1

"""The updater on a real topic, lake and store: each event counted once, whatever comes between its steps."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from features.counting import Bench, drain
from features.test_tiles import fold
from features.traffic import CLICKS, COLUMNS, GENRE, START_US, Shop, append
from headrace.base.clock import machine_us
from headrace.base.errors import FencedError, FormatError, PositionError
from headrace.events.settled import EVENTS
from headrace.features import count, list_columns, person
from headrace.features.serve import Items, Reader
from headrace.features.tiles import definitions_of
from headrace.features.updater import Rebuild, Updater
from headrace.tables.sink import INCARNATION
from headrace.topics import Record

pytestmark = pytest.mark.slow

MORE = (*COLUMNS, *list_columns((count("mine", CLICKS, by=(person, GENRE), windows=("7d",)),)))


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.close()


def test_blobs_are_those_of_the_pure_fold_however_the_topic_is_cut(bench):
    shop, events = Shop(2), []
    for size in (1, 200, 7, 92):
        events += (portion := shop.events(size))
        bench.append(portion)
        bench.update()
    assert bench.blobs() == fold(events)
    state = bench.online.read_state()
    assert state.known == tuple(sum(partition == p for _, partition in events) for p in range(3))
    assert state.offsets == tuple(bound.end for bound in bench.topics.bounds(EVENTS))
    assert max(state.newest_us) == max(event.event_us for event, _ in events)
    assert bench.metrics.count("headrace_update_events_total").value() == sum(state.known)


def test_event_that_stands_twice_in_the_log_is_counted_once(bench):
    events = Shop(2).events(50)
    bench.append(events)
    bench.append(events[20:])
    bench.update()
    assert bench.blobs() == fold(events)


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("update.folded", marks=pytest.mark.soak),
        "online.written",
        pytest.param("update.committed", marks=pytest.mark.soak),
    ],
)
def test_updater_that_is_killed_leaves_what_the_next_one_goes_on_from(bench, tmp_path, point):
    shop = Shop(6)
    events = shop.events(150)
    bench.append(events)
    bench.update()
    events += (more := shop.events(150))
    bench.append(more)
    mark = tmp_path / "mark"
    killed = run_updates(bench.folder, f"{point}=kill@1:{mark}")
    assert (killed.wait(timeout=60), mark.exists()) == (-signal.SIGKILL, True)
    bench.update()
    assert bench.blobs() == fold(events)
    assert sum(bench.online.read_state().known) == 300


def run_updates(folder, fault=""):
    environment = os.environ | {"HEADRACE_FAULT": fault, "PYTHONPATH": str(Path(__file__).parents[1])}
    program = Path(__file__).with_name("updates.py")
    return subprocess.Popen([sys.executable, str(program), str(folder)], env=environment)


def test_updater_that_was_frozen_changes_nothing_when_it_wakes(bench):
    shop = Shop(6)
    events = shop.events(100)
    bench.append(events)
    frozen = bench.open()
    drain(frozen)
    events += (more := shop.events(100))
    bench.append(more)
    other = bench.open_online()
    drain(bench.open(online=other))
    before = bench.online.read_state()
    with pytest.raises(FencedError, match="one updater at a time"):
        frozen.turn()
    assert (bench.online.read_state(), bench.blobs()) == (before, fold(events))
    other.close()


@pytest.mark.soak
@pytest.mark.parametrize("point", ["update.folded", "update.committed"])
def test_process_that_was_stopped_in_mid_batch_is_refused_when_it_wakes(bench, tmp_path, point):
    shop, mark = Shop(16), tmp_path / "mark"
    events = shop.events(200)
    bench.append(events)
    bench.update()
    events += (more := shop.events(200))
    bench.append(more)
    stopped = run_updates(bench.folder, f"{point}=stop@1:{mark}")
    wait_for(mark.exists)
    events += (more := shop.events(50))
    bench.append(more)
    bench.update()
    before = bench.online.read_state(), bench.blobs()
    stopped.send_signal(signal.SIGCONT)
    assert stopped.wait(timeout=60) == 1
    assert (bench.online.read_state(), bench.blobs()) == before
    assert before[1] == fold(events)


@pytest.mark.parametrize("lake", ["whole", "half", "none"])
def test_store_that_is_gone_is_made_anew_from_lake_and_topic(bench, lake):
    shop = Shop(9)
    events = shop.events(350)
    bench.append(events)
    if lake != "none":
        bench.sink()
    if lake != "whole":
        events += (more := shop.events(250))
        bench.append(more)
    bench.update()
    before, state = bench.blobs(), bench.online.read_state()
    bench.online.close()
    for left in bench.folder.glob("online.db*"):
        left.unlink()
    bench.update()
    found = bench.online.read_state()
    assert bench.blobs() == before == fold(events)
    assert found == msgspec.structs.replace(state, generation=found.generation, revision=found.revision)


def test_rows_of_a_topic_that_was_created_anew_count_beside_those_of_the_one_before(bench):
    shop = Shop(1)
    events = shop.events(80)
    bench.append(events)
    bench.sink()
    bench.topics.drop(EVENTS)
    bench.topics.create(EVENTS, partitions=3, retention_seconds=None)
    # As `headrace topic replay events --continue events` does.
    bench.tables.open(EVENTS).state({INCARNATION: bench.topics.describe(EVENTS).incarnation})
    shop._seqs = [0] * 3
    bench.append(more := shop.events(20))
    bench.update()
    state = bench.online.read_state()
    assert bench.blobs() == fold([*events, *more])
    assert state.known == tuple(sum(partition == p for _, partition in more) for p in range(3))


def test_rebuild_says_how_many_events_the_lake_has_no_more(bench, caplog):
    events = [(msgspec.structs.replace(event, seq=event.seq + 10), p) for event, p in Shop(4).events(60)]
    bench.append(events)
    bench.sink()
    with caplog.at_level("WARNING"):
        state = bench.rebuild()
    assert "30 events are in the lake no more; features begin after them" in caplog.text
    assert (sum(state.known), bench.blobs()) == (90, fold(events))


def test_columns_that_changed_are_made_beside_those_that_serve(bench):
    shop = Shop(5)
    events = shop.events(300)
    bench.append(events)
    bench.sink()
    bench.update()
    first = bench.online.read_state()
    updater = bench.open(columns=MORE)
    events += (more := shop.events(40))
    bench.append(more)
    updater.turn()
    # What served goes on.
    serving = bench.online.read_state()
    if serving.generation == first.generation:
        assert (sum(serving.known), bench.blobs()) == (340, fold(events))
    drain(updater)
    state = bench.online.read_state()
    assert state.definitions == definitions_of(MORE) != first.definitions
    assert (bench.online.read_columns(state.generation), bench.blobs()) == (MORE, fold(events, MORE))
    assert bench.online.read_states() == [state]


def test_column_that_nobody_asks_for_any_more_stays_until_the_next_backfill(bench):
    bench.append(Shop(5).events(30))
    bench.update(columns=MORE)
    before = bench.online.read_state()
    bench.update(columns=COLUMNS)
    assert bench.online.read_state() == before
    assert bench.rebuild().definitions == definitions_of(COLUMNS)


def test_column_that_somebody_asks_for_later_is_made_while_the_updater_runs(bench, monkeypatch):
    monkeypatch.setattr("headrace.features.updater._COMPARE_SECONDS", 0.0)
    events = Shop(5).events(60)
    bench.append(events)
    asked = [COLUMNS]
    updater = Updater(bench.online, lambda: asked[0], bench.sources, clock=machine_us, metrics=bench.metrics)
    updater.open()
    drain(updater)
    asked[0] = MORE
    drain(updater)
    assert bench.blobs() == fold(events, MORE)


def test_rebuild_under_traffic_has_no_gap_and_counts_nothing_twice(bench):
    shop = Shop(7)
    events = shop.events(600)
    bench.append(events)
    bench.sink()
    bench.update()
    updater = bench.open()
    stop, seen = threading.Event(), []
    thread = threading.Thread(target=updater.run, args=(stop,))
    thread.start()
    items = Items(shop.items, {"genre": list(shop.genre_of.values())})
    reader = Reader(bench.open_online(), COLUMNS)
    first = bench.online.read_state().generation

    def traffic(_):
        if len(events) > 1000:
            return
        events.extend(more := shop.events(20))
        bench.append(more)
        seen.append(reader.read("v1", items, shop.now_us).state)

    traffic(None)
    made = bench.rebuild(told=traffic)
    events.extend(more := shop.events(20))
    bench.append(more)
    wait_for(lambda: sum(bench.online.read_state().known) == len(events))
    seen.append(reader.read("v1", items, shop.now_us).state)
    stop.set()
    thread.join()
    assert {state.generation for state in seen} == {first, made.generation}
    # Nobody was ever served less than before.
    assert all(x.known <= y.known and x.offsets <= y.offsets for x, y in itertools.pairwise(seen))
    assert bench.blobs() == fold(events)
    reader._online.close()


def wait_for(holds, *, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_generation_that_was_half_made_is_dropped(bench):
    events = Shop(1).events(120)
    bench.append(events)
    bench.update()
    serving = bench.online.read_state()
    half = Rebuild(bench.online, MORE, bench.sources, now_us=machine_us())
    drain(bench.open())
    assert bench.online.read_states() == [serving]
    with pytest.raises(FencedError, match="moved on or replaced"):
        half.step()
    assert bench.blobs() == fold(events)


def test_topic_that_was_made_anew_stops_the_updater_until_a_backfill(bench):
    shop = Shop(1)
    bench.append(shop.events(30))
    bench.update()
    bench.topics.drop(EVENTS)
    bench.topics.create(EVENTS, partitions=3, retention_seconds=None)
    events = Shop(2).events(20)
    bench.append(events)
    with pytest.raises(PositionError, match=r"created anew.*headrace feature backfill"):
        bench.open()
    state = bench.rebuild()
    assert (sum(state.known), bench.blobs()) == (20, fold(events))
    bench.update()


def test_offset_that_the_topic_no_longer_has_stops_the_updater(bench):
    bench.append(Shop(1).events(30))
    bench.update()
    state = bench.online.read_state()
    beyond = tuple(offset + 5 for offset in state.offsets)
    bench.online.commit({}, msgspec.structs.replace(state, offsets=beyond), state)
    with pytest.raises(PositionError, match=r"cannot go on: .* outside.*headrace feature backfill"):
        bench.update()


def test_event_that_cannot_be_read_stops_the_updater(bench):
    bench.topics.append(EVENTS, [Record(b"k", b"nobody's")], deadline_seconds=5)
    bench.update()
    bench.topics.append(EVENTS, [Record(b"k", b'{"version":9,"src_offset":3}')], deadline_seconds=5)
    with pytest.raises(FormatError, match=r"partition \d, offset \d+ holds an event that this Headrace cannot read"):
        bench.update()


def test_click_is_a_value_within_a_second(bench):
    bench.append(Shop(1).events(200))
    updater, stop = bench.open(), threading.Event()
    thread = threading.Thread(target=updater.run, args=(stop,))
    thread.start()
    shop, online = Shop(1), bench.open_online()
    columns = [column for column in COLUMNS if column.name == "appeal_1d"]
    wait_for(lambda: online.read_state() is not None)
    reader, items, took = Reader(online, columns), Items(["fresh"]), []
    shop._seqs = [1000] * 3
    for number in range(1, 9):
        click = shop.make(0, START_US + 50, items=["fresh"])
        began_at = time.monotonic()
        append(bench.topics, [click])
        wait_for(lambda number=number: reader.read("v", items, START_US + 60).values[0][0] == number)
        took.append(time.monotonic() - began_at)
    stop.set()
    thread.join()
    online.close()
    assert max(took) < 1.0


@pytest.mark.soak
def test_updaters_that_are_killed_again_and_again_count_each_event_once(bench):
    shop, events = Shop(31, step_us=60_000_000), []
    points = ["update.folded", "online.written", "update.committed"]
    for number in range(30):
        events += (portion := shop.events(400))
        bench.append(portion)
        if number % 5 == 2:
            bench.sink()
        if number % 10 == 7:
            shutil.rmtree(bench.folder / "none", ignore_errors=True)
            bench.online.close()
            for left in bench.folder.glob("online.db*"):
                left.unlink()
        killed = run_updates(bench.folder, f"{points[number % 3]}=kill@{1 + number % 2}")
        killed.wait(timeout=60)
    bench.update()
    assert bench.blobs() == fold(events)

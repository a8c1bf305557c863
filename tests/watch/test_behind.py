"""Who stays behind, dies or fills the disk, by what a supervisor, topics and counters say."""

import pytest

from headrace.watch.alert import Now
from headrace.watch.lag import Freshness, Lag, judge_disk
from headrace.watch.processes import Processes

SECOND = 1_000_000


def clear(judge, second):
    return [one for one in judge.judge(Now(int(second * SECOND), 0)) if one.is_clear]


def test_a_reader_that_keeps_up_has_no_lag_however_much_comes():
    lag = Lag("settler", "clicks", "settler")
    for second in range(300):
        lag.add(
            [1000 * second, 500 * second], {0: 1000 * second - 900, 1: 500 * second - 400}, machine_us=second * SECOND
        )
        assert not list(lag.judge(Now(second * SECOND, 0)))


def test_a_reader_that_stands_still_lags_after_half_a_minute_until_it_has_caught_up():
    lag, told = Lag("settler", "clicks", "settler"), []
    for second in range(100):
        end, position = 10 * second, 100 if 10 < second < 60 else 10 * second
        lag.add([end], {0: position}, machine_us=second * SECOND)
        told += [second] if clear(lag, second) else []
    assert (told[0], told[-1]) == (42, 59)
    lag.add([10_000], {0: 0}, machine_us=200 * SECOND)
    (found,) = clear(lag, 240)
    assert found.text == "the settler is 40 s behind: 10,000 records of 'clicks' wait"


def test_a_lake_is_old_when_rows_wait_and_nothing_is_committed():
    lake, told = Freshness(1.0), []
    for second in range(120):
        # Without rows it may rest as long as it likes.
        rows_us = [second * SECOND - 9] * (5 if second >= 50 else 0)
        lake.add(rows_us, float(min(second, 10)), machine_us=second * SECOND)
        told += [second] if clear(lake, second) else []
    assert told[0] == 82
    lake.add([121 * SECOND - 9], 11.0, machine_us=121 * SECOND)
    assert not clear(lake, 122)


def test_rows_of_before_a_commit_wait_for_no_other_one():
    lake = Freshness(1.0)
    # A watcher that begins reads all of the past, and a row may be read after the commit that holds it.
    lake.add([1, 2, 3], 7.0, machine_us=100 * SECOND)
    lake.add([99 * SECOND], 7.0, machine_us=101 * SECOND)
    assert not clear(lake, 500)


def test_a_process_that_dies_once_and_heals_is_no_alert():
    found = watch_pids(lambda second: 7 if second < 20 else None if second < 24 else 8)
    assert found == []


def test_a_process_that_dies_three_times_in_half_a_minute_is_an_alert():
    found = watch_pids(lambda second: 7 + min(max(second - 20, 0) // 4, 4))
    assert found[0] == (32, "the process stream (settler, sink) died 3 times in 30 s")
    assert 50 < found[-1][0] < 70


def test_a_process_that_stays_away_is_an_alert():
    found = watch_pids(lambda second: 7 if second < 20 else None)
    assert found[0] == (29, "the process stream (settler, sink) is away since 9 s")


def test_processes_that_end_with_their_supervisor_are_no_alert():
    processes = Processes()
    for second in range(60):
        running = {"settler": {"stream": 7}} if second < 20 else {}
        processes.add(running, machine_us=second * SECOND)
        assert not list(processes.judge(Now(second * SECOND, 0)))


def watch_pids(pid_at):
    processes, told = Processes(), []
    for second in range(120):
        crew = {} if pid_at(second) is None else {"stream": pid_at(second)}
        processes.add({"sink": crew, "settler": crew, "collector": {"doors": 3}}, machine_us=second * SECOND)
        told += [(second, one.text) for one in clear(processes, second)]
    return told


def test_a_loop_that_fails_for_long_is_an_alert_with_its_reason():
    processes = Processes()
    for second in (1, 3, 7):
        processes.add_failure("settler", "UnavailableError: away", at_us=second * SECOND)
    assert not clear(processes, 8)
    for second in range(100, 130, 10):
        processes.add_failure("settler", "UnavailableError: the broker is away", at_us=second * SECOND)
    assert not clear(processes, 120)
    processes.add_failure("settler", "UnavailableError: the broker is away", at_us=125 * SECOND)
    (found,) = clear(processes, 126)
    assert (found.subject, "the broker is away" in found.text) == ("loop settler", True)
    assert not clear(processes, 150)


@pytest.mark.parametrize(("free", "states"), [(2e9, []), (1.05e9, [False]), (0.9e9, [True])])
def test_a_disk_wants_its_rest(free, states):
    assert [one.is_clear for one in judge_disk(int(free), 1e9)] == states

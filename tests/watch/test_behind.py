"""Who stays behind, dies or fills the disk, by what a supervisor, topics and counters say."""

import pytest

from headrace.base.clock import RealClock
from headrace.lookout import tell_instants
from headrace.watch.alert import Now
from headrace.watch.lag import Freshness, Lag, judge_disk
from headrace.watch.processes import Processes

SECOND = 1_000_000


def clear(judge, second):
    return [one for one in judge.judge(at(second)) if one.is_clear]


def at(second):
    return Now(second * SECOND, 0, second * SECOND)


def test_a_reader_that_keeps_up_has_no_lag_however_much_comes():
    lag = Lag("settler", "clicks")
    for second in range(300):
        lag.add([1000 * second, 500 * second], {0: 1000 * second - 900, 1: 500 * second - 400}, at(second))
        assert not list(lag.judge(at(second)))


def test_a_reader_that_stands_still_lags_after_half_a_minute_until_it_has_caught_up():
    lag, told = Lag("settler", "clicks"), []
    for second in range(100):
        end, position = 10 * second, 100 if 10 < second < 60 else 10 * second
        lag.add([end], {0: position}, at(second))
        told += [second] if clear(lag, second) else []
    assert (told[0], told[-1]) == (42, 59)
    lag.add([10_000], {0: 0}, at(200))
    (found,) = clear(lag, 240)
    assert found.text == "the settler is 40 s behind: 10,000 records of 'clicks' wait"


def test_a_lake_is_old_when_rows_wait_and_nothing_is_committed():
    lake, told = Freshness("events", 1.0), []
    for second in range(120):
        # Without rows it may rest as long as it likes.
        rows_us = [second * SECOND - 9] * (5 if second >= 50 else 0)
        lake.add(rows_us, float(min(second, 10)), at(second))
        told += [second] if clear(lake, second) else []
    assert told[0] == 82
    (found,) = clear(lake, 119)
    assert (found.subject, found.text[:46]) == ("table events", "the table 'events' has taken nothing for 69 s,")
    lake.add([121 * SECOND - 9], 11.0, at(121))
    assert not clear(lake, 122)


def test_rows_of_before_a_commit_wait_for_no_other_one():
    lake = Freshness("events", 1.0)
    # A watcher that begins reads all of the past, and a row may be read after the commit that holds it.
    lake.add([1, 2, 3], 7.0, at(100))
    lake.add([99 * SECOND], 7.0, at(101))
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
        processes.add(running, at(second))
        assert not list(processes.judge(at(second)))


def watch_pids(pid_at):
    processes, told = Processes(), []
    for second in range(120):
        crew = {} if pid_at(second) is None else {"stream": pid_at(second)}
        processes.add({"sink": crew, "settler": crew, "collector": {"doors": 3}}, at(second))
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
    assert not clear(processes, 170)


def test_a_loop_whose_peers_are_killed_in_turn_is_no_alert():
    processes = Processes()
    for second in (0, 12, 24):
        # Each is read many times.
        for _ in range(5):
            processes.add_failure("settler", "UnavailableError: the writer has died", at_us=second * SECOND)
        assert not clear(processes, second + 1)


def test_nobody_is_behind_for_having_slept_and_whoever_does_not_wake_is():
    lag, lake, processes, told = Lag("settler", "clicks"), Freshness("events", 1.0), Processes(), []
    # A laptop's lid was closed for an hour, while a click, a row and a process were on their way.
    monotonic = iter([0, 0, 1, 2, *range(3602, 3662)])
    for second, now in enumerate(tell_instants(RealClock(), monotonic_ns=lambda: next(monotonic) * 10**9)):
        if second == 60:
            break
        lag.add([10], {0: 9}, now)
        lake.add([now.machine_us + 1], 7.0, now)
        processes.add({"sink": {"stream": 7} if second < 2 else {}}, now)
        told += [(second, one.kind) for judge in (lag, lake, processes) for one in judge.judge(now) if one.is_clear]
    assert {kind: min(second for second, one in told if one == kind) for _, kind in told} == {
        "dead-role": 10, "lag": 30, "freshness": 31,
    }  # fmt: skip


@pytest.mark.parametrize(("free", "states"), [(2e9, []), (1.05e9, [False]), (0.9e9, [True])])
def test_a_disk_wants_its_rest(free, states):
    assert [one.is_clear for one in judge_disk(int(free), 1e9)] == states

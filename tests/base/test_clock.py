"""The project's clock: real, a world's, stepped."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import msgspec
import pytest

from headrace.base.clock import SCHEMES, Anchor, SteppedClock, WorldClock, machine_us, read_duration
from headrace.base.errors import CallError, FormatError, ProjectError, UnknownOptionError, UnknownSchemeError
from headrace.events.click import decode_door
from running import project_toml, running


class Machine:
    """A machine's time that a test moves."""

    def __init__(self, now_us):
        self.now_us = now_us

    def __call__(self):
        return self.now_us


def world(machine, *, rate=3600.0, path=None, world_us=5_000):
    return WorldClock(rate, Anchor(machine.now_us, world_us), path=path, machine=machine)


def test_real_is_the_machines_time(tmp_path):
    before = machine_us()
    assert before <= SCHEMES.open("real://", root=tmp_path).now_us() <= machine_us()


def test_a_world_runs_at_its_rate():
    machine = Machine(1_000_000)
    clock = world(machine)
    assert clock.now_us() == 5_000
    machine.now_us += 1_000_000
    assert clock.now_us() == 5_000 + 3_600_000_000


def test_all_processes_of_a_world_see_the_same_time(tmp_path):
    clock = SCHEMES.open("world://?rate=3600", root=tmp_path)
    clock.resume()
    other = SCHEMES.open("world://?rate=3600", root=tmp_path)
    first, between, last = clock.now_us(), other.now_us(), clock.now_us()
    assert first <= between <= last


def test_time_in_which_nothing_runs_does_not_pass_in_a_world(tmp_path):
    path = tmp_path / "clock.json"
    machine = Machine(1_000_000)
    clock = world(machine, path=path)
    clock.note()
    machine.now_us += 86_400_000_000
    again = WorldClock(3600.0, msgspec.json.decode(path.read_bytes(), type=Anchor), path=path, machine=machine)
    again.resume()
    # A day went by; at most two seconds of the machine may have been unnoted.
    assert 5_000 <= again.now_us() <= 5_000 + 2 * 3_600_000_000


@pytest.mark.parametrize("unnoted_us", [0, 1, 500_000, 1_000_000, 1_999_999])
def test_a_world_never_goes_back_whatever_was_unnoted_at_a_kill(tmp_path, unnoted_us):
    path = tmp_path / "clock.json"
    machine = Machine(1_000_000)
    clock = world(machine, path=path)
    clock.note()
    machine.now_us += unnoted_us
    seen = clock.now_us()
    machine.now_us += 10_000
    again = WorldClock(3600.0, msgspec.json.decode(path.read_bytes(), type=Anchor), path=path, machine=machine)
    again.resume()
    assert again.now_us() >= seen


def test_a_world_stands_still_while_its_supervisor_is_frozen_and_never_goes_back(tmp_path):
    machine = Machine(1_000_000)
    path = tmp_path / "clock.json"

    def opened():
        return WorldClock(3600.0, msgspec.json.decode(path.read_bytes(), type=Anchor), path=path, machine=machine)

    supervisor = world(machine, path=path)
    supervisor.resume()
    worker = opened()
    seen = [worker.now_us()]
    for _ in range(200):
        machine.now_us += 333_333
        supervisor.note()
        seen.append(worker.now_us())
    assert seen[-1] == supervisor.now_us()
    # From here on the supervisor is frozen: no note for a minute, then a kill.
    for _ in range(60):
        machine.now_us += 1_000_000
        seen.append(worker.now_us())
    assert seen[-1] - seen[-60] <= 2 * 3_600_000_000
    # It wakes, as after a laptop's sleep, and freezes again.
    supervisor.note()
    seen += [supervisor.now_us(), worker.now_us()]
    machine.now_us += 60_000_000
    seen += [worker.now_us(), supervisor.now_us()]
    assert seen[-1] - seen[-64] <= 4 * 3_600_000_000
    again = opened()
    again.resume()
    seen += [again.now_us(), opened().now_us()]
    assert seen == sorted(seen)


def test_a_machine_set_back_does_not_take_a_resumed_world_back(tmp_path):
    machine = Machine(10_000_000)
    clock = world(machine, path=tmp_path / "clock.json")
    machine.now_us -= 5_000_000
    clock.resume()
    assert clock.now_us() == 5_000


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_real_world_goes_on_after_a_stop_and_after_kill_9(tmp_path, number):
    toml = project_toml(clock="world://?rate=3600")
    received = []
    for _ in range(2):
        with running(tmp_path, toml=toml) as up:
            assert up.post("/v1/track", {"anonymousId": "ann"}).status == 200
            received = [decode_door(click["headers"].items()).received_us for click in up.read()]
            up.stop(number)
    assert len(received) == 2
    assert received == sorted(received)
    # Each start of Python alone takes longer than 20 ms, that is 72 s of this world, if its time passed.
    assert received[-1] - received[0] < 2 * 10 * 3_600_000_000


@pytest.mark.parametrize("rate", ["0", "-1", "1e9", "nan", "inf"])
def test_a_rate_out_of_range_is_refused(tmp_path, rate):
    with pytest.raises(CallError, match=r"^world://\?rate=\S+: the rate must be above 0 and at most 1,000,000$"):
        SCHEMES.open(f"world://?rate={rate}", root=tmp_path)


def test_clocks_know_their_options_and_names(tmp_path):
    with pytest.raises(UnknownOptionError, match=r"has no option 'rat'. Did you mean rate\?"):
        SCHEMES.open("world://?rat=1", root=tmp_path)
    for scheme in ("real", "stepped"):
        with pytest.raises(UnknownOptionError, match="known: none"):
            SCHEMES.open(f"{scheme}://?rate=1", root=tmp_path)
    with pytest.raises(UnknownSchemeError) as caught:
        SCHEMES.open("wrld://", root=tmp_path)
    assert str(caught.value) == (
        "no clock backend for 'wrld://'. Did you mean world://?  known: real://, world://, stepped://"
    )


@pytest.mark.parametrize("content", [b"", b"{", b'{"machine_us":1}', b'{"machine_us":"x","world_us":1}'])
def test_a_damaged_note_of_the_worlds_time_stops_loudly(tmp_path, content):
    path = tmp_path / ".headrace" / "clock.json"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"clock\.json.* holds no world's time"):
        SCHEMES.open("world://", root=tmp_path)


STEP = (
    "import sys; from headrace.base.clock import SCHEMES; print(SCHEMES.open('stepped://', root=sys.argv[1]).step(60))"
)


def test_a_stepped_clock_stands_still_and_is_shared_by_processes(tmp_path):
    clock = SCHEMES.open("stepped://", root=tmp_path)
    start = clock.now_us()
    time.sleep(0.005)
    assert clock.now_us() == start
    for number in (1, 2):
        done = subprocess.run([sys.executable, "-c", STEP, tmp_path], capture_output=True, text=True, check=True)
        assert clock.now_us() == int(done.stdout) == start + number * 60_000_000
    assert clock.step(0.5) == clock.now_us() == start + 120_500_000
    assert SCHEMES.open("stepped://", root=tmp_path).now_us() == clock.now_us(), "it stays after everybody closed it"


def test_a_stepped_clock_goes_forward_only(tmp_path):
    clock = SteppedClock(tmp_path / "clock")
    with pytest.raises(CallError, match="a stepped clock goes forward only, got -1 seconds"):
        clock.step(-1)


@pytest.mark.parametrize(
    ("text", "seconds"), [("1s", 1), ("30m", 1800), ("1h", 3600), ("3d", 259_200), ("0.5h", 1800), ("0.000001s", 1e-6)]
)
def test_a_duration_is_a_number_and_a_unit(text, seconds):
    assert read_duration(text) == seconds * 1e6


@pytest.mark.parametrize(
    "text", ["", "30", "m", "30 m", "-1h", "0s", "0.0m", "1w", "1H", "1e3s", "٣m", "1h30m", "1.h", None, 30, 1.5, b"1s"]
)
def test_what_is_no_duration_is_told_with_its_place(text):
    with pytest.raises(ProjectError) as caught:
        read_duration(text, "Metric('ctr'): within")
    assert str(caught.value) == (
        f"Metric('ctr'): within is {text!r}; write a number and s, m, h or d, such as '30m' or '3d'"
    )

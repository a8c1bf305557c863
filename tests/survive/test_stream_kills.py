"""kill -9 of settler, sink and keeper, at every step and at random: each acknowledged event is one row."""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from pathlib import Path

import pytest

from headrace.project import OpenProject, open_project
from running import running
from survive.account import check_account
from survive.load import Proxy, kill, until
from survive.stream import (
    POINTS,
    Counts,
    Part,
    Parts,
    Shoppers,
    done_of,
    lag,
    make_project,
    wait_caught_up,
)
from survive.test_kills import free_port
from survive.yard import replay_anew

SHOPPERS = 12
AT_RANDOM = "at random"

pytestmark = pytest.mark.slow


async def die_again_and_again(part: Part, rounds: int, *, proxy: Proxy, draw: random.Random) -> dict[str, int]:
    """Kills a role at each of its crash points and at random, in turn; returns the rounds that count."""
    targets = [*POINTS[part.role], AT_RANDOM]
    counted = dict.fromkeys(targets, 0)
    for number in range(rounds):
        target = targets[number % len(targets)]
        if target == AT_RANDOM:
            await _die_at_random(part, draw, proxy)
            if part.role == "settler":
                # What it remembers may be gone, too.
                shutil.rmtree(part.folder / ".headrace" / "settler")
        else:
            await _die_at(part, target, passage=draw.randint(1, 3))
        counted[target] += 1
    part.start()
    return counted


async def _die_at(part: Part, point: str, *, passage: int) -> None:
    mark = part.folder / f"{part.role}.mark"
    mark.unlink(missing_ok=True)
    part.start(fault=f"{point}=kill@{passage}:{mark}")
    await until(part.is_dead, 40, what=f"{point} is reached for the time {passage}")
    assert mark.read_text().split() == [point, str(part.pid)]


async def _die_at_random(part: Part, draw: random.Random, proxy: Proxy) -> None:
    part.start()
    await until(lambda: proxy.in_flight > 0, what="requests are in flight")
    await asyncio.sleep(draw.uniform(1.0, 2.5))  # the instant of the kill is drawn, nothing waits for it
    # Records are on their way through this role: some wait for it at the instant of the kill.
    waiting = Counts(0, 0)
    while not (waiting.settler if part.role == "settler" else waiting.sink):
        waiting = await asyncio.to_thread(lag, part.folder)
    assert not part.is_dead(), part.log.read_text()[-2000:]
    part.kill()


async def kill_rounds(folder: Path, rounds: dict[str, int], port: int) -> tuple[set[str], dict[str, int]]:
    """Kills all three roles side by side under live load; returns what was acknowledged and the rounds that count."""
    draw = random.Random(4)
    make_project(folder, port=port)
    with running(folder, "collector"), Parts(folder) as parts:
        async with Proxy(port) as proxy:
            async with Shoppers(proxy.port, SHOPPERS) as shoppers:
                counts = await asyncio.gather(
                    *(die_again_and_again(parts[role], rounds[role], proxy=proxy, draw=draw) for role in parts)
                )
                sent = shoppers.sent
                await until(lambda: shoppers.sent > sent + 50, what="the load goes on after the last kill")
            parts.catch_up(folder, seconds=60)
    return proxy.acknowledged, {name: count for one in counts for name, count in one.items() if name != AT_RANDOM} | {
        AT_RANDOM: sum(one[AT_RANDOM] for one in counts)
    }


def check_rounds(folder: Path, rounds: dict[str, int]) -> None:
    begun_at = time.monotonic()
    acknowledged, counted = asyncio.run(kill_rounds(folder, rounds, free_port()))
    print(f"{sum(counted.values())} rounds in {time.monotonic() - begun_at:.0f} s: {counted}")
    assert sum(counted.values()) == sum(rounds.values())
    account = check_account(folder, acknowledged)
    print(account)
    assert min(account.settled, account.failed, account.repeats) > 50
    replay_anew(folder, folder / "anew")


def test_deaths_of_settler_sink_and_keeper_leave_each_event_once(tmp_path):
    check_rounds(tmp_path, {"settler": 4, "sink": 6, "keeper": 3})


@pytest.mark.soak
def test_two_hundred_deaths_leave_each_event_once(tmp_path):
    check_rounds(tmp_path, {"settler": 80, "sink": 80, "keeper": 48})


async def resume_seconds(folder: Path, rounds: int, port: int) -> tuple[set[str], list[tuple[float, float]]]:
    """Kills the whole stream under `up` again and again; returns how long settler and sinks took to move on."""
    make_project(folder, port=port)
    with running(folder) as up, open_project(folder) as project:
        async with Proxy(port) as proxy, Shoppers(proxy.port, SHOPPERS) as shoppers:
            found = []
            for _ in range(rounds):
                before = done_of(project)
                await until(lambda before=before: _has_passed(project, before), what="both move on")
                sent = shoppers.sent
                stream = up.pids["stream"]
                kill(stream)
                found.append(await _until_both_move(project))
                await until(lambda stream=stream: up.pids.get("stream", stream) != stream)
                assert shoppers.sent > sent, "the door stood still meanwhile"
        await asyncio.to_thread(wait_caught_up, folder)
        return proxy.acknowledged, found


async def _until_both_move(project: OpenProject) -> tuple[float, float]:
    killed_at = time.monotonic()
    await asyncio.sleep(0.1)  # what the dead one had handed to the topic's writer may still land
    before = done_of(project)
    seconds: dict[str, float] = {}
    while len(seconds) < 2:
        assert time.monotonic() < killed_at + 30, f"only {list(seconds)} went on after kill -9"
        done = done_of(project)
        for role in ("settler", "sink"):
            if getattr(done, role) > getattr(before, role):
                seconds.setdefault(role, time.monotonic() - killed_at)
        await asyncio.sleep(0.02)
    return seconds["settler"], seconds["sink"]


def _has_passed(project: OpenProject, before: Counts) -> bool:
    done = done_of(project)
    return done.settler > before.settler and done.sink > before.sink


@pytest.mark.soak
def test_settler_and_sink_go_on_by_themselves_within_seconds_of_a_kill(tmp_path):
    acknowledged, seconds = asyncio.run(resume_seconds(tmp_path, 4, free_port()))
    print("settler, sink:", [f"{settler:.2f} s, {sink:.2f} s" for settler, sink in seconds])
    assert max(max(one) for one in seconds) < 10
    check_account(tmp_path, acknowledged)

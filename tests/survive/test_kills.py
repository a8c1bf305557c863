"""kill -9 under load: nothing acknowledged is lost, and every visitor's order is kept."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import sys
from pathlib import Path

import pytest

from headrace.project import open_project
from headrace.topics import Message
from running import freeze, project_toml, running, wait_until
from survive.load import Clients, Proxy, check, kill, until, writer_pid

CLIENTS = 160
IN_FLIGHT = 100
POINTS = ("collect.parsed", "topics.received", "topics.written", "topics.synced", "collect.answering")

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def read_all(folder: Path, topic: str = "clicks") -> list[Message]:
    with open_project(folder) as project:
        log = project.topic(topic)
        offsets = {p: bound.start for p, bound in enumerate(log.bounds())}
        messages: list[Message] = []
        while found := log.read(offsets):
            messages += found
            offsets.update({m.partition: m.offset + 1 for m in found})
        return messages


async def kill_rounds(folder: Path, rounds: int, port: int) -> tuple[set[str], dict[str, int]]:
    """Kills writer, other worker and whole group in turn; returns what was acknowledged and the rounds that count."""
    toml = project_toml(port=port, workers=2)
    counted = dict.fromkeys(("writer", "worker", "group"), 0)
    targets = [list(counted)[n % 3] for n in range(rounds)]
    async with Proxy(port) as proxy:
        with contextlib.ExitStack() as stack:
            up = stack.enter_context(running(folder, "collector", toml=toml))
            async with Clients(proxy.port, CLIENTS) as clients:
                for target in targets:
                    sent = clients.sent
                    await until(lambda sent=sent: clients.sent > sent + 300, what="the load goes on")
                    await asyncio.sleep(
                        random.uniform(0, 0.1)
                    )  # the instant of the kill is drawn, nothing waits for it
                    writer = await _writer_among(up, folder)
                    await until(lambda: proxy.in_flight >= IN_FLIGHT, what=f"{IN_FLIGHT} requests in flight")
                    if target == "group":
                        up.kill()
                        await asyncio.to_thread(wait_until, lambda: not writer_pid(folder), what="the group is gone")
                        up = await asyncio.to_thread(stack.enter_context, running(folder, "collector"))
                    else:
                        kill(writer if target == "writer" else _other(up.pids, writer))
                    counted[target] += 1
                sent = clients.sent
                await until(lambda: clients.sent > sent + 100, what="the load goes on after the last kill")
            assert set(proxy.statuses) <= {200, 429, 503}, dict(proxy.statuses)
            return proxy.acknowledged, counted


async def _writer_among(up, folder: Path) -> int:
    await until(lambda: len(up.pids) == 2 and writer_pid(folder) in up.pids.values(), what="a worker writes")
    return writer_pid(folder)


def _other(pids: dict[str, int], writer: int) -> int:
    return next(pid for pid in pids.values() if pid != writer)


def test_random_kills_lose_nothing_acknowledged(tmp_path):
    acknowledged, counted = asyncio.run(kill_rounds(tmp_path, 6, free_port()))
    assert counted == {"writer": 2, "worker": 2, "group": 2}
    assert len(acknowledged) > 6 * 300
    check(read_all(tmp_path), acknowledged)


@pytest.mark.soak
def test_two_hundred_random_kills_lose_nothing_acknowledged(tmp_path):
    acknowledged, counted = asyncio.run(kill_rounds(tmp_path, 201, free_port()))
    print(f"{len(acknowledged):,} acknowledged over {counted}")
    check(read_all(tmp_path), acknowledged)


async def die_at(folder: Path, point: str, rounds: int, port: int) -> set[str]:
    """Lets workers die at a crash point, proved reached by its mark, `rounds` times; returns what was acknowledged."""
    mark = folder / "mark"
    passages = 400 if point.startswith("collect") else 40
    async with Proxy(port) as proxy:
        fault = {"HEADRACE_FAULT": f"{point}=kill@{passages}:{mark}"}
        with running(folder, "collector", toml=project_toml(port=port, workers=2), env=fault):
            async with Clients(proxy.port, CLIENTS):
                for _ in range(rounds):
                    await until(mark.exists, what=f"{point} is reached")
                    assert mark.read_text().startswith(point)
                    mark.unlink()
        return proxy.acknowledged


@pytest.mark.parametrize("point", POINTS)
def test_death_at_a_crash_point_loses_nothing_acknowledged(tmp_path, point):
    acknowledged = asyncio.run(die_at(tmp_path, point, 2, free_port()))
    assert acknowledged
    check(read_all(tmp_path), acknowledged)


@pytest.mark.soak
@pytest.mark.parametrize("point", POINTS)
def test_twenty_deaths_at_a_crash_point_lose_nothing_acknowledged(tmp_path, point):
    acknowledged = asyncio.run(die_at(tmp_path, point, 20, free_port()))
    check(read_all(tmp_path), acknowledged)


def test_a_frozen_writer_is_told_and_not_replaced(tmp_path):
    toml = project_toml(workers=2)
    with running(tmp_path, "collector", toml=toml) as up:
        assert up.post("/v1/track", {"anonymousId": "ann", "messageId": "1"}).status == 200
        writer = writer_pid(tmp_path)
        freeze(writer)
        try:
            statuses = _statuses_while_frozen(up)
            assert 503 in statuses
            assert 200 not in statuses
            assert writer_pid(tmp_path) == writer, "somebody took the seat of a frozen writer"
        finally:
            os.kill(writer, 18)
        wait_until(lambda: up.post("/v1/track", {"anonymousId": "ann", "messageId": "2"}).status == 200)
        assert writer_pid(tmp_path) == writer
        kill(writer)
        wait_until(lambda: writer_pid(tmp_path) not in (0, writer), seconds=2, what="another takes over from the dead")
        assert up.post("/v1/track", {"anonymousId": "ann", "messageId": "3"}).status == 200
    stored = {m.value for m in read_all(tmp_path)}
    assert len(stored) >= 3


def _statuses_while_frozen(up) -> set[int]:
    """Asks until the worker that is not frozen has answered; the frozen one cannot."""
    statuses: set[int] = set()
    for number in range(12):
        with contextlib.suppress(TimeoutError):
            event = {"anonymousId": "ann", "messageId": f"frozen-{number}"}
            statuses.add(up.post("/v1/track", event, timeout=1.5).status)
        if 503 in statuses:
            break
    return statuses


def test_sender_workers_and_cli_append_at_once(tmp_path):
    toml = project_toml(workers=2)
    script = (
        "import asyncio, sys\n"
        "from headrace.project import open_project\n"
        "from headrace.topics import Record\n"
        "async def main(project):\n"
        "    sender = project.topics.open_sender(deadline_seconds=5, max_pending_bytes=1 << 24)\n"
        "    for n in range(300):\n"
        "        await sender.append('decisions', [Record(b'v%d' % (n % 7), b'd%d' % n + b'x' * 1500)])\n"
        "    await sender.close()\n"
        "with open_project(sys.argv[1]) as project:\n"
        "    project.make_topic('decisions')\n"
        "    asyncio.run(main(project))\n"
    )

    async def everybody() -> tuple[set[str], int]:
        with running(tmp_path, "collector", toml=toml) as up:
            async with Proxy(up.address[1]) as proxy, Clients(proxy.port, 40):
                endpoint = await _start("-c", script, str(tmp_path))
                for _ in range(5):
                    lines = b"".join(b"line %d\n" % n for n in range(200))
                    cli = await _start("-m", "headrace", "topic", "append", "clicks2", "--project", str(tmp_path))
                    await cli.communicate(lines)
                    assert cli.returncode == 0
                assert await endpoint.wait() == 0
            return proxy.acknowledged, 5 * 200

    _make(tmp_path, toml, "clicks2")
    acknowledged, lines = asyncio.run(everybody())
    check(read_all(tmp_path), acknowledged)
    assert len(read_all(tmp_path, "clicks2")) == lines
    decisions = [m.value.split(b"x")[0] for m in read_all(tmp_path, "decisions")]
    assert sorted(decisions) == sorted(b"d%d" % n for n in range(300))


def _make(folder: Path, toml: str, topic: str) -> None:
    (folder / "headrace.toml").write_text(toml)
    (folder / "project.py").write_text("from headrace import Project\nproject = Project('p')\n")
    with open_project(folder) as project:
        project.make_topic(topic)


async def _start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )

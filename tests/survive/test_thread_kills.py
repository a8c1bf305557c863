"""kill -9 of every process in mid-trial, the roles together or each alone: the verdict comes, and each page is once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from headrace import learn, loop
from headrace.console.crowd import HABITS, Crowd
from headrace.console.init import write_project
from headrace.events.world import DAY, World
from headrace.experiments.verdict import Verdict
from headrace.project import DOORS, ROLES, OpenProject, open_project
from headrace.verify.count import prove, prove_pages, wait_at_rest
from headrace.verify.truth import tell_truth
from running import Running, running
from streamline import PROJECT
from survive.load import kill, until
from survive.test_kills import free_port

VISITORS = 250
EXPERIMENT = "taste-home"
POINTS = ("endpoint.decided", "endpoint.answering")
# The writer of the topics' file dies with a commit on disk of which nobody was told: what it held comes again.
SYNCED = "topics.synced"
SYNCED_PASSAGE = 300
ALONE = [(role,) for role in ROLES]
TOGETHER = [ROLES]

pytestmark = pytest.mark.slow


@dataclass
class Group:
    """Roles under one `up`, which is started again when it was killed."""

    folder: Path
    roles: Sequence[str]
    stack: contextlib.ExitStack
    up: Running = field(init=False)

    def start(self, fault: str = "") -> None:
        """Starts its `up`."""
        env = {"HEADRACE_FAULT": fault}
        self.up = self.stack.enter_context(running(self.folder, *self.roles, env=env))

    @property
    def pids(self) -> dict[str, int]:
        """The processes that do its work, by name, as its `up` last wrote them down."""
        found: dict[str, int] = {}
        for role in self.roles:
            path = self.folder / ".headrace" / "run" / f"{role}.json"
            if path.exists():
                found |= json.loads(path.read_text())["pids"]
        return found

    async def kill_workers(self) -> list[str]:
        """Kills each process that does its work, and waits for the next one."""
        names = sorted(self.pids)
        for name in names:
            pid = self.pids[name]
            kill(pid)
            await until(lambda name=name, pid=pid: self.pids.get(name, pid) != pid, what=f"{name} is started anew")
        return names

    async def kill_all(self) -> list[str]:
        """Kills its `up`, with which the others end, and starts it again."""
        self.up.kill()
        await asyncio.to_thread(self.start)
        return [f"up {' '.join(self.roles)}"]

    async def die_at(self, point: str, passage: int) -> list[str]:
        """Lets its process die at a crash point, for which its `up` is started under the fault and then without."""
        mark = self.folder / f"{point}.mark"
        self.up.kill()
        await asyncio.to_thread(self.start, f"{point}=kill@{passage}:{mark}")
        await until(mark.exists, 30, what=f"{point} is reached")
        assert mark.read_text().split()[0] == point
        mark.unlink()
        self.up.kill()
        await asyncio.to_thread(self.start)
        return [point]


@dataclass
class Result:
    """What a trial came to in which everything was killed."""

    verdict: Verdict
    crowd: Crowd
    killed: list[str]


@contextlib.contextmanager
def groups_of(folder: Path, arrangement: Sequence[Sequence[str]]) -> Iterator[list[Group]]:
    """Yields the running groups of a project, which end with the block."""
    ports = (free_port(), free_port(), free_port())
    write_project(folder, ports=ports, clock="world://?rate=3600", flush_seconds=0.3)
    (folder / "project.py").write_text(PROJECT.format(per_row=10, explore=0.1, below=""))
    with contextlib.ExitStack() as stack:
        groups = [Group(folder, roles, stack) for roles in arrangement]
        # The first one is the writer of the topics' file, and its clock the one by which the others go.
        groups[0].start(f"{SYNCED}=kill@{SYNCED_PASSAGE}:{folder / SYNCED}")
        for group in groups[1:]:
            group.start()
        yield groups


@contextlib.asynccontextmanager
async def visited(crowd: Crowd) -> AsyncIterator[None]:
    """Lets the audience come as long as the body runs."""
    stop = asyncio.Event()
    live = asyncio.create_task(crowd.live(stop))
    try:
        yield
        stop.set()
        await asyncio.wait_for(live, 30)
    finally:
        live.cancel()


async def kill_everything(groups: Sequence[Group], crowd: Crowd, *, rounds: int) -> list[str]:
    """Kills every process in turn, and each time waits until pages and events come again; returns who died."""
    killed = []
    for number in range(rounds):
        for group in groups:
            kills = [group.kill_workers, group.kill_all]
            if "endpoint" in group.roles:
                kills += [partial(group.die_at, point, 5 + 7 * number) for point in POINTS]
            for one in kills:
                before = crowd.pages, crowd.answered
                killed += await one()
                await until(
                    lambda before=before: crowd.pages > before[0] + 20 and crowd.answered > before[1] + 100,
                    30,
                    what=f"visitors are served after the death of {killed[-1]}",
                )
    return killed


async def play(project: OpenProject, groups: Sequence[Group], *, rounds: int) -> Result:
    """Returns what a trial found in which every process was killed."""
    world = World(5, visitors=VISITORS, born_us=project.clock.now_us() - 2 * DAY, habits=HABITS)
    urls = {role: url for group in groups for role, url in group.up.urls.items()}
    crowd = Crowd(world, urls["collector"], urls["endpoint"], project.clock)
    await crowd.send_history(1.0)
    await fit(project, "popular")
    async with visited(crowd):
        await until(lambda: crowd.pages > 400, 40, what="there is somebody to be split")
        await until((project.folder / SYNCED).exists, 40, what=f"{SYNCED} is reached")
        await fit(project, "tastes")
        await asyncio.to_thread(loop.start, project, EXPERIMENT)
        begun = crowd.pages
        await until(lambda: crowd.pages > begun + 50, 20, what="the trial runs")
        killed = await kill_everything(groups, crowd, rounds=rounds)
        verdict = await asyncio.to_thread(loop.stop, project, EXPERIMENT)
    return Result(verdict, crowd, [SYNCED, *killed])


async def fit(project: OpenProject, model: str) -> None:
    await asyncio.to_thread(learn.wait_for_lake, project)
    await asyncio.to_thread(learn.fit, project, model)


def check_thread(project: OpenProject, result: Result) -> None:
    """Asserts that the verdict stands, that nothing is lost or doubled, and that every page is made again."""
    verdict, crowd = result.verdict, result.crowd
    assert verdict.outcome in ("better", "worse", "undecided", "early"), verdict.reasons
    assert verdict.multiple == 0
    assert wait_at_rest(project, 30)
    learn.wait_for_lake(project)
    proof, pages = prove(project, crowd.record.acknowledged), prove_pages(project, crowd.record.recommended)
    print(f"{verdict.outcome}, {verdict.control.pages + verdict.treatment.pages} pages; {proof}; {pages}")
    assert proof.holds, proof
    assert pages.holds, pages
    assert pages.decided > pages.recommended, "nobody died between decision and answer"
    truth = tell_truth(project, crowd.world, verdict)
    assert truth.replayed > 50
    assert truth.different == 0
    # What came after the verdict changes nothing.
    assert loop.judge_again(project, verdict) == verdict


def check_kills(folder: Path, arrangement: Sequence[Sequence[str]], *, rounds: int) -> Result:
    """Asserts that a trial of this arrangement of roles outlives the death of each."""
    began_at = time.monotonic()
    with groups_of(folder, arrangement) as groups, open_project(folder) as project:
        result = asyncio.run(play(project, groups, rounds=rounds))
        print(f"{len(result.killed)} deaths in {time.monotonic() - began_at:.0f} s: {', '.join(result.killed)}")
        check_thread(project, result)
    return result


@pytest.mark.soak
def test_a_trial_outlives_the_death_of_every_role_run_alone(tmp_path):
    result = check_kills(tmp_path / "alone", ALONE, rounds=1)
    workers = [f"{role}-1" if role in DOORS else role for role in ROLES]
    assert sorted(result.killed) == sorted([*workers, *(f"up {role}" for role in ROLES), *POINTS, SYNCED])


@pytest.mark.soak
@pytest.mark.parametrize("arrangement", [ALONE, TOGETHER], ids=["alone", "together"])
def test_a_trial_outlives_many_deaths(tmp_path, arrangement):
    result = check_kills(tmp_path / "many", arrangement, rounds=10)
    assert len(set(result.killed)) == (15 if arrangement is ALONE else 6)

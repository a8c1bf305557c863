"""headrace demo: from click to lift in under a minute, on a simulated product whose truth is known."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shlex
import signal
import tempfile
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.live import Live

from headrace import learn, loop
from headrace.base.clock import begin_world, machine_us
from headrace.base.errors import CallError, DeadlineError, HeadraceError, StopError, UnavailableError
from headrace.base.telemetry import start_logging
from headrace.collect.app import CLICKS
from headrace.collect.load import load_members
from headrace.console.crowd import HABITS, Crowd
from headrace.console.features import compare
from headrace.console.init import write_project
from headrace.console.panel import FRAME_SECONDS, Stage
from headrace.console.roles import supervise
from headrace.console.show import print_lines, print_table
from headrace.console.state import read_state
from headrace.console.verdict import print_verdict
from headrace.endpoints.serving import TRIAL
from headrace.events.world import BORN_US, DAY, HOUR, World
from headrace.experiments.experiment import Trial, decode_trial
from headrace.experiments.verdict import Verdict
from headrace.features.parity import Parity
from headrace.models.registry import Entry
from headrace.profile import FILE as PROFILE_FILE
from headrace.project import ROLES, OpenProject, open_project
from headrace.tables.catalog import funnel_sql
from headrace.verify.case import Case
from headrace.verify.checks import check
from headrace.verify.count import PageProof, Proof, prove, prove_pages, wait_at_rest
from headrace.verify.report import Line, Report, write_report
from headrace.verify.truth import Truth

_CLOCK = "world://?rate=3600"
# The first night falls some 10 s after the first page: an hour is a second, and doors and past take eight of them.
_BEGIN_US = BORN_US + 3 * DAY + 6 * HOUR
_VISITORS = 900
_HISTORY_DAYS = 2.0
_START_SECONDS = 20.0
_REST_SECONDS = 20.0
_LOOK_SECONDS = 0.2
_TAKEN_SECONDS = 5.0
_RANKER = "ranker"
_EXPERIMENT = "ranked-home"
_KILLS = ("endpoint", "settler", "runner")
_KILL_SECONDS = 1.5

_TOP_ITEMS = """
SELECT product_id AS item, count(*) AS clicks, count(DISTINCT person) AS persons
FROM product_clicked WHERE NOT bot GROUP BY ALL ORDER BY clicks DESC, item LIMIT 5
"""
_FUNNEL = ("page", "Product List Viewed", "Product Clicked", "Video Playback Completed")
_CLICKED = """
SELECT recommendation_id FROM decisions JOIN product_clicked USING (recommendation_id)
WHERE arm = 'treatment' ORDER BY decisions.received_us LIMIT 1
"""
_FAILURES = """
SELECT reason, count(*) AS events, any_value(message) AS example FROM failed GROUP BY reason ORDER BY events DESC
"""


@dataclass
class _Found:
    """What the play has come to."""

    verdict: Verdict | None = None
    champion: str = ""
    """The hash of the bundle that serves by the verdict; nothing if the challenger was refused."""
    served: str = ""
    """The hash of the bundle that the page is served from after the verdict."""
    gate: dict[str, Any] = field(default_factory=dict)
    """What the offline gate said of the challenger."""
    parity: Parity | None = None
    truth: Truth | None = None
    seconds: float = 0.0
    """From the command to the verdict."""
    proof: Proof | None = None
    pages: PageProof | None = None
    lines: tuple[Line, ...] = ()
    """What the world itself says of each room."""
    recommendation_id: str = ""

    @property
    def checks(self) -> dict[str, bool]:
        """The checks of the loop, by what they promise: those of the play, then those of each room."""
        verdict = self.verdict
        return {
            "the offline gate passes": bool(self.gate.get("passed")),
            "the A/A gate passes": verdict is not None and verdict.gate is not None and verdict.gate.is_passed,
            "the trial is healthy": verdict is not None and verdict.outcome not in ("unhealthy", "empty"),
            "the page is served by its champion": self.served == self.champion != "" or not self.champion,
            "served features are those of the lake": self.parity is not None
            and self.parity.decisions > 0
            and not self.parity.mismatches,
            **{line.name: line.state == "holds" for line in self.lines if line.state != "left out"},
        }

    @property
    def code(self) -> int:
        """The exit code: 0 if every check holds, else 1."""
        return int(not self.lines or not all(self.checks.values()))


def demo(given: argparse.Namespace) -> int:
    """Plays the whole loop and returns 0 if every check of it holds; without --once it then stays up until Ctrl-C."""
    began_at = time.monotonic()
    if not 0 <= given.personalisation <= 10:
        raise CallError(f"--personalisation {given.personalisation:g}: must be 0 to 10")
    if not 5 <= given.seconds <= 3600:
        raise CallError(f"--seconds {given.seconds:g}: must be 5 to 3600")
    with _folder(given.dir) as folder:
        if not (folder / PROFILE_FILE).exists():
            write_project(folder, ports=(0, 0, 0), clock=_CLOCK, flush_seconds=1)
            # Whenever it is played, popularity has an evening and the trial the day after it.
            begin_world(folder, _BEGIN_US)
        _refuse_foreign(folder)
        with open_project(folder) as project:
            roles = _Roles(project)
            return roles.run(lambda: asyncio.run(_Play(project, given, began_at, roles).run()))


def _refuse_foreign(folder: Path) -> None:
    """Raises CallError unless the demo made the project: its events would not be wanted in another."""
    clock = open_project(folder).profile.urls.clock
    if clock != _CLOCK:
        raise CallError(
            f"{str(folder)!r} holds a project that the demo did not make: its clock is {clock!r}. Choose another folder"
        )


@contextlib.contextmanager
def _folder(chosen: str | None) -> Iterator[Path]:
    if chosen is not None:
        try:
            Path(chosen).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CallError(f"cannot make the folder {chosen!r}: {error.strerror}. Choose another one") from error
        yield Path(chosen)
        return
    with tempfile.TemporaryDirectory(prefix="headrace-demo-") as folder:
        yield Path(folder)


class _Roles:
    """The project's roles, which the main thread supervises, while another one plays.

    Signals come to the main thread, and the kernel ends children with the thread that has started them.
    """

    def __init__(self, project: OpenProject) -> None:
        self.is_ending = False
        self.cancel: Callable[[], object] = lambda: None
        """Breaks the play off, from whatever thread."""
        self._project = project
        self._log = project.folder / "up.log"
        self._latest_at = time.monotonic() + _START_SECONDS
        self._playing: Future[int] | None = None
        self._ended = threading.Event()

    def run(self, play: Callable[[], int]) -> int:
        """Runs the roles and, once they are ready, the play beside them; returns its exit code."""
        with ThreadPoolExecutor(1, "play") as pool:
            try:
                start_logging(path=self._log)
                announce = partial(self._begin, pool, play)
                supervise(self._project, ROLES, announce=announce, is_over=self._is_over, log=str(self._log))
            except OSError as error:
                raise UnavailableError(f"cannot run the roles of {self._project.folder}: {error}") from error
            finally:
                self._ended.set()
                if not self.is_ending:
                    self._interrupt()
            return 130 if self._playing is None else self._playing.result()

    def end(self) -> None:
        """Ends the roles, and returns once they have ended; the play goes on."""
        self.is_ending = True
        self._ended.wait()

    def _begin(self, pool: Executor, play: Callable[[], int], _: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)
        self._playing = pool.submit(play)

    def _interrupt(self, *_: object) -> None:
        self.is_ending = True
        # The play has ended and closed its loop.
        with contextlib.suppress(RuntimeError):
            self.cancel()

    def _is_over(self) -> bool:
        """Whether the roles are needed no longer."""
        if self._playing is None and time.monotonic() > self._latest_at:
            raise DeadlineError(f"the roles were not ready within {_START_SECONDS:g} s. What they say: {self._log}")
        return self.is_ending or (self._playing is not None and self._playing.done())


class _Play:
    """The demo while it runs: the crowd, what is shown of it, and what it has come to."""

    def __init__(self, project: OpenProject, given: argparse.Namespace, began_at: float, roles: _Roles) -> None:
        self.project = project
        self.roles = roles
        self.given = given
        self.stage = Stage(began_at)
        self.found = _Found()
        self.console = Console(highlight=False, quiet=given.json)
        self.crowd = _make_crowd(project, given)
        # Its past is over once it was sent; a folder that was played in before has one already.
        self.has_past = any(bound.end for bound in project.topics.bounds(CLICKS))

    async def run(self) -> int:
        """Plays, reports, and stays up if asked to; returns the exit code."""
        main = asyncio.current_task()
        assert main is not None
        self.roles.cancel = partial(asyncio.get_running_loop().call_soon_threadsafe, main.cancel)
        if self.roles.is_ending:
            main.cancel()
        try:
            async with self._pictured():
                await self._play()
            code = self._report()
            if not self.given.once:
                await self._stay()
        except asyncio.CancelledError:
            return 130 if self.found.proof is None else self.found.code
        return code

    async def _play(self) -> None:
        stage, crowd, project = self.stage, self.crowd, self.project
        if not self.has_past:
            stage.now("the titles are loaded", 0.03)
            await asyncio.to_thread(_load_titles, project, crowd.world)
            stage.now(f"two days of the site's own past come in at {crowd.collector}", 0.05)
            await crowd.send_history(_HISTORY_DAYS)
        stage.now("popularity is fitted from the lake", 0.15)
        stage.models = [await asyncio.to_thread(_fit_popular, project)]
        stage.now("the audience comes; popularity serves until the night", 0.2)
        async with self._visited():
            await self._watch()
            self.found.served = await asyncio.to_thread(_find_served, self.project, self.found.champion)
        stage.now("everything comes to rest", 0.9)
        await asyncio.to_thread(self._rest)
        stage.now("everything is counted", 0.93)
        await asyncio.to_thread(self._prove)
        stage.now("the world tells the truth of each room", 0.96)
        await asyncio.to_thread(self._judge)
        stage.now("done", 1.0)

    def _rest(self) -> None:
        """Waits until all that was sent is in the lake; whoever goes on needs the roles, others their memory."""
        wait_at_rest(self.project, _REST_SECONDS)
        learn.wait_for_lake(self.project, seconds=_REST_SECONDS)
        if self.given.once:
            self.roles.end()

    def _prove(self) -> None:
        """Counts what there is in the end."""
        project, found = self.project, self.found
        found.recommendation_id = _find_clicked(project)
        found.pages = prove_pages(project, self.crowd.record.recommended)
        found.proof = prove(project, self.crowd.record.acknowledged)
        found.parity = compare(project)

    def _judge(self) -> None:
        """Asks each room's checks, and writes their report down for the console."""
        began_at, case = time.monotonic(), Case(self.project, self.crowd.world, self.crowd.record, self.found.verdict)
        self.found.lines = tuple(check(case))
        self.found.truth = case.truth
        report = Report(
            made_us=machine_us(),
            seed=self.given.seed,
            worlds=1,
            seconds=round(time.monotonic() - began_at, 1),
            lines=self.found.lines,
        )
        write_report(self.project.profile.state, report)

    async def _watch(self) -> None:
        """Looks on while the runner fits, tests and promotes, and kills its processes on the way."""
        began_at, kills, killed_at = time.monotonic(), list(_KILLS), 0.0
        while self.found.verdict is None:
            if time.monotonic() - began_at > self.given.seconds:
                raise StopError(
                    f"no verdict within {self.given.seconds:g} s of the first page. What the runner did: "
                    f"headrace pipeline history --project {self.project.folder}"
                )
            await asyncio.sleep(_LOOK_SECONDS)
            trial = await asyncio.to_thread(self._look)
            if trial is not None and kills and time.monotonic() > killed_at + _KILL_SECONDS:
                self.crowd.killed_at = killed_at = time.monotonic()
                self.stage.killed.append(_kill(self.project, kills.pop(0)))
        self.found.seconds = time.monotonic() - self.stage.began_at

    def _look(self) -> Trial | None:
        """Reads how far the runner is; returns the trial that runs."""
        stage, registry, found = self.stage, self.project.registry, self.found
        fitted = registry.bundles(_RANKER)
        gates = registry.newest("gate")
        stage.models[1:] = [f"{_RANKER} {one.hash[:8]} {_gate_text(gates.get(one.hash))}" for one in fitted[:1]]
        entry = registry.newest(TRIAL).get(_EXPERIMENT)
        if entry is None:
            told = "the night: the ranker is judged" if fitted else "popularity serves until the night"
            stage.now(told if fitted else stage.doing, 0.45 if fitted else 0.3)
            return None
        trial = decode_trial(entry.value)
        if trial.gate is not None:
            stage.gate = f"A/A ✓ {trial.gate.significant} of {trial.gate.splits:,} splits differ"
        stage.trial = f"trial {trial.id} runs, {trial.planned:,} visitors an arm are planned"
        stage.now(f"the trial {trial.id} runs", 0.7)
        verdict = loop.find_verdict(self.project, _EXPERIMENT)
        if verdict is None:
            return trial
        found.verdict, found.gate = verdict, msgspec.json.decode(gates[verdict.treatment_bundle].value)
        champion = loop.find_champion(self.project, verdict.page)
        found.champion = champion.bundle if champion is not None else ""
        stage.trial = f"trial {trial.id}: {verdict.outcome}, " + (
            f"{found.champion[:8]} serves from now on" if found.champion else "popularity goes on serving"
        )
        return None

    @contextlib.asynccontextmanager
    async def _visited(self) -> AsyncIterator[None]:
        """Lets the audience come as long as the body runs."""
        stop = asyncio.Event()
        live = asyncio.create_task(self.crowd.live(stop))
        try:
            yield
            stop.set()
            await live
        finally:
            live.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await live

    async def _stay(self) -> None:
        """Goes on until Ctrl-C; nobody counts any more."""
        self.crowd.record.close()
        url = read_state(self.project, "console")["url"]
        self.console.print(f"\nThe audience goes on; look at {url} as one of them. Ctrl-C ends it.")
        async with self._visited():
            await asyncio.Event().wait()

    @contextlib.asynccontextmanager
    async def _pictured(self) -> AsyncIterator[None]:
        """Draws the panel as long as the body runs; a pipe gets the last picture only."""
        ended = threading.Event()
        looker = threading.Thread(target=self.stage.look, args=(self.project.folder, ended))
        looker.start()
        live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        with live or contextlib.nullcontext():
            drawer = asyncio.create_task(self._draw(live))
            try:
                yield
            finally:
                ended.set()
                await asyncio.to_thread(looker.join)
                drawer.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await drawer
                if live is not None:
                    live.update(self.stage.draw(self.crowd), refresh=True)
                else:
                    self.console.print(self.stage.draw(self.crowd))

    async def _draw(self, live: Live | None) -> None:
        while live is not None:
            live.update(self.stage.draw(self.crowd), refresh=True)
            await asyncio.sleep(FRAME_SECONDS)

    def _report(self) -> int:
        """Says what came of it, and returns the exit code."""
        found = self.found
        if self.given.json:
            print_lines([_summary(self.crowd, found)])
            return found.code
        assert found.verdict is not None
        print()
        print_verdict(found.verdict, truth=found.truth)
        assert found.proof is not None
        print(_proof_text(found.proof))
        print(f"\nchecks        {found.seconds:.0f} s from the command to the verdict")
        rooms = {line.name: line for line in found.lines}
        for name, holds in found.checks.items():
            print(f"              {_sign(holds)} {name}")
            if not holds and name in rooms:
                print(f"                {rooms[name].text}; the first witness: {rooms[name].witness}")
        print(f"\n{sum(found.checks.values())} of {len(found.checks)} checks hold")
        _ask(self.project)
        _print_next(self.given, self.project.folder, found.recommendation_id)
        return found.code


def _make_crowd(project: OpenProject, given: argparse.Namespace) -> Crowd:
    born_us = project.clock.now_us() - int(_HISTORY_DAYS * DAY)
    habits = msgspec.structs.replace(HABITS, taste=given.personalisation)
    world = World(given.seed, visitors=_VISITORS, born_us=born_us, habits=habits)
    collector, endpoint = (read_state(project, role)["url"] for role in ("collector", "endpoint"))
    return Crowd(world, collector, endpoint, project.clock)


def _load_titles(project: OpenProject, world: World) -> None:
    """Loads the dimension, as `headrace table load` does."""
    (items,) = project.declared.dimensions
    members = {item.product_id: {"title": item.title, "genre": item.genre} for item in world.items}
    load_members(project.topics, items, members=members, now_us=project.clock.now_us())


def _fit_popular(project: OpenProject) -> str:
    """Fits what serves first; returns it for the panel."""
    learn.wait_for_lake(project)
    bundle = learn.fit(project, "popular")
    return f"popular {bundle.hash[:8]} from {bundle.source['rows']:,} clicks"


def _find_served(project: OpenProject, champion: str) -> str:
    """Returns the hash of the bundle that answers somebody new; the champion's has a moment to get there."""
    url, body = read_state(project, "endpoint")["url"], msgspec.json.encode({"page": "home"})
    until = time.monotonic() + _TAKEN_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{url}/v1/page", body, timeout=_TAKEN_SECONDS) as answer:  # noqa: S310 - ours
                served = str(msgspec.json.decode(answer.read())["bundle"])
        except OSError:
            served = ""
        if served == champion or not champion or time.monotonic() > until:
            return served
        time.sleep(_LOOK_SECONDS)


def _gate_text(entry: Entry | None) -> str:
    if entry is None:
        return "is fitted"
    return "past the gate" if msgspec.json.decode(entry.value)["passed"] else "refused by the gate"


def _find_clicked(project: OpenProject) -> str:
    """Returns the id of a page of the treatment on which something was clicked."""
    found = project.query(_CLICKED).table().to_pylist()
    return str(found[0]["recommendation_id"]) if found else ""


def _kill(project: OpenProject, role: str) -> str:
    pids: dict[str, int] = read_state(project, role)["pids"]
    name, pid = next(iter(pids.items()))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return name


def _sign(holds: bool) -> str:
    return "✓" if holds else "✗"


def _proof_text(proof: Proof) -> str:
    sign = "=" if not proof.lost else "≠"
    verdict = "✓ exactly once" if proof.holds else "✗ NOT exactly once"
    return (
        f"proof         {proof.acknowledged:,} acknowledged {sign} settled or failed, {proof.lost} lost\n"
        f"              {proof.clicks:,} clicks = {proof.settled:,} settled + {proof.failed:,} failed + "
        f"{proof.repeats:,} repeats; {proof.rows:,} rows in the lake {verdict}"
    )


def _summary(crowd: Crowd, found: _Found) -> dict[str, Any]:
    assert found.proof is not None
    return {
        **asdict(found.proof),
        "exactly_once": found.proof.holds and found.pages is not None and found.pages.holds,
        "sent": crowd.sent,
        "requests": crowd.requests,
        "refused": crowd.refused,
        "ack_p50_ms": round(crowd.acks.quantile_ms(0.5), 2),
        "ack_p99_ms": round(crowd.acks.quantile_ms(0.99), 2),
        "longest_pause_seconds": round(crowd.pause, 2),
        "pages": crowd.pages,
        "decisions": asdict(found.pages) if found.pages else None,
        "unlogged": crowd.record.unlogged,
        "page_p50_ms": round(crowd.page_times.quantile_ms(0.5), 2),
        "page_p99_ms": round(crowd.page_times.quantile_ms(0.99), 2),
        "verdict": msgspec.to_builtins(found.verdict),
        "truth": {**asdict(found.truth), "lift": found.truth.lift, "static_lift": found.truth.static.lift}
        if found.truth
        else None,
        "seconds_to_verdict": round(found.seconds, 1),
        "recommendation_id": found.recommendation_id,
        "champion": found.champion,
        "gate": found.gate,
        "parity": {"decisions": found.parity.decisions, "mismatches": found.parity.mismatches}
        if found.parity
        else None,
        "checks": found.checks,
    }


def _ask(project: OpenProject) -> None:
    """Prints what the lake answers to a few questions."""
    for title, sql in (
        ("the most clicked", _TOP_ITEMS),
        ("from page to the end of a film, within half an hour", funnel_sql(_FUNNEL, within_seconds=1800)),
        ("what failed, and why", _FAILURES),
    ):
        print(f"\n{title}")
        try:
            rows = project.query(sql).table().to_pylist()
        except HeadraceError as error:
            print(f"  {error}")
            continue
        print_table(tuple(rows[0]) if rows else (), [tuple(map(_cell, row.values())) for row in rows], empty="  none")


def _cell(value: Any) -> Any:
    return "-" if value is None else f"{value:.1%}" if isinstance(value, float) else value


def _print_next(given: argparse.Namespace, folder: Path, recommendation_id: str) -> None:
    if given.dir is None or not recommendation_id:
        print("\ntry           headrace demo --dir demo     and keep what it made")
        print("              headrace init shop && cd shop && headrace up")
        return
    place = shlex.quote(str(folder))
    print(f"\ntry           headrace explain {shlex.quote(recommendation_id)} --project {place}")
    print(f"              headrace experiment analyse {_EXPERIMENT} --project {place}")
    print(f"              headrace table sql 'FROM decisions LIMIT 5' --project {place}")
    print(f"              headrace up --project {place}")

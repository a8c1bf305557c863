"""headrace verify: plays the whole loop in made-up worlds whose truth is known, and judges each room from outside."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from headrace.base.clock import begin_stepped, machine_us
from headrace.base.errors import CallError, HeadraceError
from headrace.base.telemetry import start_logging
from headrace.console.crowd import HABITS
from headrace.console.init import write_project
from headrace.console.show import print_lines, shown
from headrace.events.world import BORN_US, DAY, HOUR
from headrace.events.world import World as Market
from headrace.loop import find_champion
from headrace.project import open_project
from headrace.verify.case import Case
from headrace.verify.checks import check
from headrace.verify.play import Script, play
from headrace.verify.report import Line, Report, write_report
from headrace.verify.worlds import World, describe, join_lines

# The first night falls twelve hours after the first page: the busy half of a day is enough to learn from.
BEGIN_US = BORN_US + 3 * DAY + 12 * HOUR
_BEATS = 1.0
# Robots look at dozens of pages each, which cost time and tell little.
_BOTS = 0.01
_SIGNS = {"holds": "✓", "fails": "✗", "left out": "-"}


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One world to be played."""

    seed: int
    folder: str
    visitors: int = 900
    personalisation: float = HABITS.taste
    script: Script = Script()


def verify(given: argparse.Namespace) -> int:
    """Returns 0 if every check holds in every world, else 1."""
    if not 1 <= given.worlds <= 10_000:
        raise CallError(f"--worlds {given.worlds}: must be 1 to 10,000")
    if not 0 <= given.personalisation <= 10:
        raise CallError(f"--personalisation {given.personalisation:g}: must be 0 to 10")
    if not 200 <= given.visitors <= 1_000_000:
        raise CallError(f"--visitors {given.visitors}: must be 200 to 1,000,000; with fewer no gate can tell anything")
    if given.processes is not None and not 1 <= given.processes <= 256:
        raise CallError(f"--processes {given.processes}: must be 1 to 256")
    began_at = time.monotonic()
    with _folder(given.dir) as folder:
        asked = [
            Asked(
                seed=seed,
                folder=str(folder / f"world-{seed}"),
                visitors=given.visitors,
                personalisation=given.personalisation,
            )
            for seed in range(given.seed, given.seed + given.worlds)
        ]
        processes = min(given.processes or os.cpu_count() or 1, len(asked))
        worlds, broken = _play_all(asked, processes=processes, keeps=given.dir is not None, is_quiet=given.json)
    lines = join_lines(worlds)
    report = Report(
        made_us=machine_us(),
        seed=given.seed,
        worlds=len(worlds),
        seconds=round(time.monotonic() - began_at, 1),
        lines=(*lines, *_tell_broken(broken, len(asked))),
    )
    _tell(report, worlds, folder if folder.exists() else None, as_json=given.json)
    return int(not report.holds)


@contextlib.contextmanager
def _folder(chosen: str | None) -> Iterator[Path]:
    if chosen is None:
        made = Path(tempfile.mkdtemp(prefix="headrace-verify-"))
        try:
            yield made
        except BaseException:
            # Also after Ctrl-C.
            shutil.rmtree(made, ignore_errors=True)
            raise
        # Worlds that fail are left there: the same seed is not the same world again.
        with contextlib.suppress(OSError):
            made.rmdir()
        return
    folder = Path(chosen)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_empty = not any(folder.iterdir())
    except OSError as error:
        raise CallError(f"cannot make the folder {chosen!r}: {error.strerror}. Choose another one") from error
    if not is_empty:
        raise CallError(f"{chosen!r} is not empty; choose another folder for the worlds' projects")
    yield folder


def _play_all(
    asked: Sequence[Asked], *, processes: int, keeps: bool, is_quiet: bool
) -> tuple[list[World], Mapping[int, BaseException]]:
    """Returns the worlds in the order of their seeds, played in so many processes at once, and which broke and how.

    Where all of them break the first one's error is raised.
    """
    found: list[World] = []
    broken: dict[int, BaseException] = {}
    # Forked, a process with threads of Arrow may hang.
    spawned = multiprocessing.get_context("spawn")
    with _progress(is_quiet=is_quiet) as progress:
        bar = progress.add_task(f"worlds, {processes} at once", total=len(asked))
        with ProcessPoolExecutor(processes, mp_context=spawned) as pool:
            seeds = {pool.submit(play_world, one, keeps=keeps): one.seed for one in asked}
            try:
                for done in as_completed(seeds):
                    error = done.exception()
                    if error is None:
                        found.append(done.result())
                    else:
                        broken[seeds[done]] = error
                    progress.advance(bar)
            finally:
                # After Ctrl-C no further world is begun.
                pool.shutdown(cancel_futures=True)
    if not found:
        raise broken[min(broken)]
    return sorted(found, key=lambda one: one.seed), broken


def _tell_broken(broken: Mapping[int, BaseException], worlds: int) -> list[Line]:
    if not broken:
        return []
    seed = min(broken)
    text = f"{len(broken)} of {worlds} worlds were not"
    witness = f"seed {seed}: {type(broken[seed]).__name__}: {broken[seed]}"
    return [Line(name="every world is played to its end", room="verify", state="fails", text=text, witness=witness)]


def _progress(*, is_quiet: bool) -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=is_quiet or not console.is_terminal)


def play_world(asked: Asked, *, keeps: bool = False) -> World:
    """Returns what came of one world, played in a project of its own."""
    began_at = time.monotonic()
    folder = Path(asked.folder)
    write_project(folder, ports=(0, 0, 0), clock="stepped://")
    start_logging(path=folder / "verify.log")
    begin_stepped(folder, BEGIN_US)
    market = make_market(asked)
    with open_project(folder) as project:
        played = play(project, market, asked.script)
        case = Case(project, market, played.record, played.verdict, played.served)
        lines, truth = check(case), None
        if played.verdict is not None:
            # Why it cannot be told is what the lines say that ask for it.
            with contextlib.suppress(HeadraceError):
                truth = case.truth
        champion = find_champion(project, project.declared.pages[0].name)
        world = World(
            seed=asked.seed,
            lines=tuple(lines),
            pages=played.record.answered,
            events=len(played.record.acknowledged),
            seconds=round(time.monotonic() - began_at, 1),
            is_promoted=champion is not None and bool(champion.bundle),
            **describe(played.verdict, truth),  # type: ignore[arg-type]  # its fields
        )
        own = Report(made_us=machine_us(), seed=asked.seed, worlds=1, seconds=world.seconds, lines=world.lines)
        write_report(project.profile.state, own)
    if not keeps and own.holds:
        shutil.rmtree(folder, ignore_errors=True)
    return world


def make_market(asked: Asked) -> Market:
    """Returns the audience of a world, as old as the past that its site has seen."""
    habits = msgspec.structs.replace(HABITS, beats=_BEATS, bots=_BOTS, taste=asked.personalisation)
    return Market(asked.seed, visitors=asked.visitors, born_us=BEGIN_US - asked.script.past_us, habits=habits)


def _tell(report: Report, worlds: Sequence[World], kept: Path | None, *, as_json: bool) -> None:
    if as_json:
        print_lines([{"kind": "line", **msgspec.to_builtins(line)} for line in report.lines])
        told = [{name: value for name, value in msgspec.to_builtins(one).items() if name != "lines"} for one in worlds]
        print_lines([{"kind": "world", **one} for one in told])
        summary = {"seed": report.seed, "worlds": report.worlds, "seconds": report.seconds, "holds": report.holds}
        print_lines([{"kind": "report", **summary, "kept": None if kept is None else str(kept)}])
        return
    pages, events = sum(one.pages for one in worlds), sum(one.events for one in worlds)
    print(
        f"{len(worlds)} {'world' if len(worlds) == 1 else 'worlds'} from seed {report.seed}: {pages:,} pages, "
        f"{events:,} events, {report.seconds:.0f} s\n"
    )
    print_report(report.lines)
    if kept is not None:
        print(f"\nto be looked at: the project of {'each world' if report.holds else 'what fails'} in {kept}")


def print_report(lines: Sequence[Line]) -> None:
    """Prints the lines of a report, those that fail with their witness, and how many hold."""
    width = max(len(line.name) for line in lines)
    for line in lines:
        alarm = "exact" if not line.false_alarm else f"{line.false_alarm:.0e}"
        print(f"{_SIGNS[line.state]} {line.room:<12}{line.name:<{width}}  {alarm:<6} {shown(line.text)}")
        if line.witness:
            print(f"  {'':<12}{'the first witness:':>{width}}  {shown(line.witness)}")
    holds = sum(line.state == "holds" for line in lines)
    asked = sum(line.state != "left out" for line in lines)
    left = f"; {len(lines) - asked} left out" if asked < len(lines) else ""
    print(f"\n{holds} of {asked} checks hold{left}")

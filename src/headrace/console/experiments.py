"""headrace experiment: list, plan, aa, start, analyse, stop, exposures."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from headrace import loop, survey
from headrace.base.errors import CallError
from headrace.console.report import save_report
from headrace.console.show import format_seconds, format_time, print_facts, print_lines, print_table, working
from headrace.console.verdict import print_verdict
from headrace.endpoints.serving import TRIAL
from headrace.experiments.experiment import Experiment, Gate, Trial, decode_trial
from headrace.experiments.promotion import Champion
from headrace.experiments.verdict import Verdict
from headrace.project import OpenProject, open_project

_SHOWN_ROWS = 20
_MOST_SPLITS = 100_000
_ANSWERED = ("better", "worse", "undecided")


def _opened(given: argparse.Namespace) -> OpenProject:
    return open_project(given.project, profile=given.profile)


# list.


def list_experiments(given: argparse.Namespace) -> None:
    """Lists the experiments that the project declares, with what became of each."""
    with _opened(given) as project:
        rows = list_declared(project)
    if given.json:
        print_lines(rows)
        return
    print_table(
        ("experiment", "page", "goal", "state", "trial"),
        [(row["experiment"], row["page"], row["goal"], _state_text(row), row["trial"] or "-") for row in rows],
        empty="no experiments: declare one in project.py and name it in Project(experiments=...)",
    )
    for row in rows:
        if row["champion"]:
            print(f"\n{row['page']} is served by its champion {row['champion']} of {row['champion_model']}")


def list_declared(project: OpenProject) -> list[dict[str, Any]]:
    """Returns the experiments as `experiment list --json` shows them."""
    trials = {name: decode_trial(entry.value) for name, entry in project.registry.newest(TRIAL).items()}
    return [
        {
            **_listed(one, trials.get(one.name), loop.find_verdict(project, one.name)),
            **_served(loop.find_champion(project, one.on.name)),
        }
        for one in project.declared.experiments
    ]


def _listed(experiment: Experiment, trial: Trial | None, verdict: Verdict | None) -> dict[str, Any]:
    given = verdict if trial is not None and verdict is not None and verdict.trial == trial.id else None
    state = "not started" if trial is None else "decided" if given else trial.status
    return {
        "experiment": experiment.name,
        "page": experiment.on.name,
        "goal": experiment.goal.name,
        "guardrails": [metric.name for metric in experiment.guardrails],
        "mde": experiment.mde,
        "power": experiment.power,
        "alpha": experiment.alpha,
        "state": state,
        "trial": trial.id if trial else None,
        "started_us": trial.started_us if trial else None,
        "outcome": given.outcome if given else None,
        "lift": given.lift if given else None,
    }


def _served(champion: Champion | None) -> dict[str, Any]:
    """Returns what serves the page of an experiment; nothing is its fallback."""
    if champion is None or not champion.bundle:
        return {"champion": None, "champion_model": None, "champion_how": None}
    return {"champion": champion.bundle, "champion_model": champion.model, "champion_how": champion.how}


def _state_text(row: Mapping[str, Any]) -> str:
    if row["state"] == "running":
        return f"running since {format_time(row['started_us'])[:19]}"
    if row["state"] == "stopped":
        return "stopped, not judged yet"
    if row["outcome"] is None:
        return str(row["state"])
    return row["outcome"] if row["lift"] is None else f"{row['outcome']}, lift {100 * row['lift']:+.1f} %"


# plan.


def plan(given: argparse.Namespace) -> None:
    """Says how many visitors a trial needs, and how long they take to come."""
    with _opened(given) as project:
        experiment = survey.find_experiment(project, given.name)
        with working("reading the logged visitors"):
            found = survey.read_plan(project, given.name)
    if given.json:
        asked = {"mde": experiment.mde, "power": experiment.power, "alpha": experiment.alpha}
        print_lines([{"experiment": experiment.name, **asked, **asdict(found), "days": found.days}])
        return
    print_facts(_plan_facts(experiment, found))


def _plan_facts(experiment: Experiment, found: survey.Plan) -> list[tuple[str, str]]:
    ratio = "no ratio" if found.ratio is None else f"{experiment.goal.name} {found.ratio:.5f}"
    since = format_seconds(found.logged_us / 1e6)
    facts = [
        ("experiment", f"{experiment.name} on the page {experiment.on.name}, goal {experiment.goal.name}"),
        ("logged", f"{found.visitors:,} visitors in {since}, outside of any trial: {ratio}"),
    ]
    if not found.needed:
        why = "their ratio is 0, or they are all alike, so nothing says how many visitors would show a lift"
        return [*facts, ("needed", f"unknown: {why}")]
    asked = f"a lift of {100 * experiment.mde:g} % {100 * experiment.power:g} times in 100, alpha {experiment.alpha:g}"
    facts.append(("needed", f"{found.needed:,} visitors in each arm, to show {asked}"))
    shows = "" if found.daily_mde is None else f", which show a lift of {100 * found.daily_mde:.1f} %"
    facts.append(("a day", f"brings {found.visitors_per_day:,.0f} visitors to both arms{shows}"))
    if found.days is not None:
        waits = format_seconds((experiment.goal.within_us + experiment.lateness_us) / 1e6)
        facts.append(
            ("takes", f"{format_seconds(found.days * 86_400)} if each day brings new ones, and {waits} for the last")
        )
    return facts


# aa.


def split(given: argparse.Namespace) -> int:
    """Splits the logged visitors anew, again and again; returns 1 if splits differ more often than chance allows."""
    if not 20 <= given.splits <= _MOST_SPLITS:
        raise CallError(f"--splits {given.splits}: must be 20 to {_MOST_SPLITS:,}")
    with _opened(given) as project, working(f"splitting the logged visitors {given.splits:,} times"):
        gate, needed = survey.read_gate(project, given.name, splits=given.splits)
    if given.json:
        passed = {"passed": gate.is_passed, "needed": needed}
        print_lines([{"experiment": given.name, **msgspec.to_builtins(gate), **passed}])
    else:
        print_facts([("A/A", _gate_text(gate)), *_needed_facts(needed)])
    return int(not gate.is_passed)


def _gate_text(gate: Gate) -> str:
    sign = "✓ passes" if gate.is_passed else "✗ refuses"
    return (
        f"{sign}: {gate.significant:,} of {gate.splits:,} splits of {gate.visitors:,} logged visitors differ at "
        f"p < {gate.alpha:g}, up to {gate.band[1]:,} may"
    )


def _needed_facts(needed: int) -> list[tuple[str, str]]:
    return [("needed", f"{needed:,} visitors in each arm, see: headrace experiment plan")] if needed else []


# start.


def start(given: argparse.Namespace) -> None:
    """Begins a trial: what serves now against what was fitted last, both frozen."""
    with _opened(given) as project, working("splitting the logged visitors for the A/A gate"):
        trial = loop.start(project, given.name, gate=not given.without_aa)
    if given.json:
        print_lines([{**msgspec.to_builtins(trial)}])
        return
    gate = "left out" if trial.gate is None else _gate_text(trial.gate)
    planned = f"{trial.planned:,} visitors in each arm" if trial.planned else "no number of visitors"
    print_facts(
        (
            ("trial", f"{trial.id} runs on the page {trial.page}, goal {trial.goal}"),
            *((("guardrails", ", ".join(one.name for one in trial.guardrails)),) if trial.guardrails else ()),
            ("A/A", gate),
            ("control", trial.control),
            ("treatment", trial.treatment),
            ("planned", planned),
            ("next", f"headrace experiment analyse {trial.experiment}, in the end: stop {trial.experiment}"),
        )
    )


# analyse and stop.


def analyse(given: argparse.Namespace) -> None:
    """Shows what a trial would find if it were stopped now, or the verdict that was given."""
    with _opened(given) as project:
        with working("waiting for the lake, and reading the trial"):
            verdict = loop.look(project, given.name)
        given_one = loop.find_verdict(project, given.name)
        is_final = given_one is not None and given_one.trial == verdict.trial
        if given.html:
            save_report(project, verdict, Path(given.html), is_final=is_final)
    if given.json:
        print_lines([{**msgspec.to_builtins(verdict), "final": is_final}])
        return
    if given.html:
        print(f"the report is in {given.html}")
        return
    print_verdict(verdict)
    if not is_final:
        print(
            f"\nNot final, the trial goes on. Who stops at the first p < {verdict.alpha:g} finds lifts that\n"
            f"are not there, so wait for the visitors that were planned. Then:\n  headrace experiment stop {given.name}"
        )


def stop(given: argparse.Namespace) -> int:
    """Ends a trial and gives its verdict; returns 0 if it answers the question, 1 if it can't."""
    with _opened(given) as project, working("stopping the trial and reading it up to its cut-off"):
        verdict = loop.stop(project, given.name)
    if given.json:
        print_lines([{**msgspec.to_builtins(verdict), "final": True}])
    else:
        print_verdict(verdict)
    return int(verdict.outcome not in _ANSWERED)


# exposures.


def exposures(given: argparse.Namespace) -> None:
    """Lists who was in a trial, as the analysis counts it."""
    if given.max is not None and given.max < 1:
        raise CallError(f"--max {given.max}: must be 1 or more")
    with _opened(given) as project, working("waiting for the lake, and reading the trial"):
        found = loop.list_exposures(project, loop.look(project, given.name))
    if given.json:
        print_lines(msgspec.to_builtins(one) for one in islice(found, given.max))
        return
    shown = found[: given.max or _SHOWN_ROWS]
    print_table(
        ("visitor", "arm", "arms", "bot", "first exposed at", "pages", "views", "clicks"),
        [
            (
                one.visitor,
                one.arm,
                one.arms,
                "yes" if one.bot else "-",
                format_time(one.first_us)[:19],
                one.pages,
                one.views,
                one.clicks,
            )
            for one in shown
        ],
        empty="nobody was exposed before the cut-off; see: headrace experiment analyse",
    )
    if len(found) > len(shown):
        print(f"the first {len(shown):,} of {len(found):,} visitors, --max ROWS shows more")

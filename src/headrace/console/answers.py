"""What the reader answers to the console's pages: facts of the lake and the registry as plain values.

Where a command has the same with --json, this is what it prints.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib import import_module
from itertools import chain, islice
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from headrace import loop, survey
from headrace.base.errors import CallError, HeadraceError, unknown_name
from headrace.console.experiments import list_declared
from headrace.console.explain_walk import encode_walks
from headrace.console.lift import follow
from headrace.console.models import describe_bundle, find_bundle, list_bundles
from headrace.console.pipelines import describe_state, list_rows
from headrace.console.show import as_text
from headrace.console.sql import list_views, rows_of
from headrace.console.state import is_running
from headrace.console.tables import describe, describe_fully, list_versions, open_table
from headrace.endpoints.serving import TRIAL
from headrace.events.decision import DECISIONS
from headrace.events.settled import EVENTS
from headrace.experiments.analyse import trial_scope
from headrace.experiments.experiment import Trial, decode_trial
from headrace.experiments.promotion import CHAMPION, decode_champion
from headrace.experiments.verdict import Verdict, decode_verdict
from headrace.learn import find_model, view_of
from headrace.models.learned import read_odds, weigh
from headrace.models.logistic import chance_of
from headrace.models.model import Judged
from headrace.project import OpenProject
from headrace.tables.catalog import find_sources
from headrace.tables.sink import INCARNATION

SQL_SECONDS = 10.0
MOST_ROWS = 200
BINS = 10

_MOST_TEXT = 300
_MOST_FILES = 40
_MOST_VERSIONS = 30
_MOST_HISTORY = 12
_MOST_PAGES, _MOST_RECORDS = 5, 100


# Tables.


def list_tables(project: OpenProject) -> Any:
    """Returns the tables with their sizes, and the names of the views."""
    tables = [describe(project, name) for name in project.tables.names()]
    return {"tables": tables, "views": [view.name for view in list_views(project)]}


def tell_table(project: OpenProject, *, name: str) -> Any:
    """Returns what a table holds, its versions and its files; of a view its columns and its SQL."""
    found = describe_fully(project, name)
    if "view" in found:
        return found
    table = open_table(project, name)
    files = sorted(table.files(), key=lambda one: one.path, reverse=True)
    shown = [{"path": one.path.rpartition("/")[2], "size": one.size, "rows": one.rows,
              "partition": dict(one.partition)} for one in files[:_MOST_FILES]]  # fmt: skip
    return {**found, "versions": list_versions(table, _MOST_VERSIONS), "shown_files": shown}


def ask_sql(project: OpenProject, *, sql: str) -> Any:
    """Returns the first rows that one SELECT answers, as texts, with the numbers of what may be drawn."""
    began_at = time.monotonic()
    sources, views = find_sources(project.tables, project.events, sql, at=lambda table: table)
    with project.engine.query(sql, sources=sources, views=views, deadline_seconds=SQL_SECONDS) as result:
        schema = result.schema
        found = list(islice(chain.from_iterable(map(rows_of, result.batches())), MOST_ROWS + 1))
        scanned = result.scanned
    return {
        "columns": [{"name": field.name, "type": str(field.type), "kind": _kind(field.type)} for field in schema],
        "rows": [[None if cell is None else as_text(cell)[:_MOST_TEXT] for cell in row] for row in found[:MOST_ROWS]],
        "more": len(found) > MOST_ROWS,
        "seconds": time.monotonic() - began_at,
        "bytes": scanned.bytes if scanned else None,
    }


def _kind(of: pa.DataType) -> str:
    if pa.types.is_integer(of) or pa.types.is_floating(of) or pa.types.is_decimal(of):
        return "number"
    return "time" if pa.types.is_temporal(of) else "text"


# Models and pipelines.


def list_models(project: OpenProject) -> Any:
    """Returns bundles, what was not fitted yet, and what pipelines do."""
    bundles = list_bundles(project)
    fitted = {one["name"] for one in bundles}
    runs = is_running(project, "runner")
    pipelines = project.declared.pipelines
    return {
        "bundles": bundles,
        "missing": [model.name for model in project.declared.models if model.name not in fitted],
        "pipelines": [describe_state(project, one, runs=runs) for one in pipelines],
        "history": list_rows(project, [one.name for one in pipelines], _MOST_HISTORY),
        "champions": _list_champions(project),
    }


def _list_champions(project: OpenProject) -> list[dict[str, Any]]:
    """Returns what serves each page, with what served before."""
    newest = {name: decode_champion(entry.value) for name, entry in project.registry.newest(CHAMPION).items()}
    pages = project.declared.pages
    return [
        {"page": page.name, "fallback": page.fallback.name,
         "champion": msgspec.to_builtins(newest[page.name]) if page.name in newest else None}
        for page in pages
    ]  # fmt: skip


def tell_model(project: OpenProject, *, bundle: str) -> Any:
    """Returns a bundle's card: what it is, its weights, and the bundles of its name before and after."""
    fitted = find_bundle(project, bundle)
    arrays = project.registry.load(fitted.hash).arrays
    found = describe_bundle(project, fitted)
    columns = [one["name"] for one in found["manifest"]["parameters"].get("columns", ())]
    weights = arrays["weights"].tolist() if columns and "weights" in arrays else []
    versions = [one for one in list_bundles(project) if one["name"] == fitted.name]
    entries = project.registry.entries
    trials = [decode_trial(row.value) for name in project.registry.newest(TRIAL) for row in entries(TRIAL, name)]
    tested = sorted({one.id for one in trials if fitted.hash in (one.control, one.treatment)})
    return {
        **found,
        "weights": [{"name": name, "weight": weight} for name, weight in zip(columns, weights, strict=False)],
        "examination": float(arrays["base"][1]) if columns and "base" in arrays else None,
        "lineage": versions[:_MOST_HISTORY],
        "trials": [{"id": one, "experiment": one.rpartition("-")[0]} for one in tested],
    }


def calibrate(project: OpenProject, *, bundle: str) -> Any:
    """Returns how often what a bundle gave a chance was clicked: bins of as many rows each, of what was judged."""
    loaded = project.registry.load(find_bundle(project, bundle).hash)
    model = find_model(project, loaded.name)
    if not isinstance(model, Judged) or "weights" not in loaded.arrays:
        return {"bins": [], "rows": 0}
    rows = model.read(view_of(project, loaded))
    rows = rows.where(rows.at_us >= rows.at_us[int(0.8 * len(rows))])
    weights = weigh(rows, loaded.parameters["most_weight"])
    chances = chance_of(read_odds(loaded.arrays, rows))
    bins = []
    for places in np.array_split(np.argsort(chances, kind="stable"), BINS):
        total = float(weights[places].sum())
        if total:
            expected, came = ((values[places] * weights[places]).sum() / total for values in (chances, rows.clicked))
            bins.append({"expected": float(expected), "came": float(came), "rows": len(places)})
    return {"bins": bins, "rows": len(rows)}


# Experiments.


def list_experiments(project: OpenProject) -> Any:
    """Returns the declared experiments, with what became of each."""
    return list_declared(project)


def tell_experiment(project: OpenProject, *, name: str, trial: str = "") -> Any:
    """Returns an experiment with one of its trials, and what that found or would find if it were stopped now."""
    declared = survey.find_experiment(project, name)
    row = next(one for one in list_declared(project) if one["experiment"] == name)
    trials = _read_trials(project, name)
    found = _choose(trials, trial)
    given = _find_verdict(project, found) if found else None
    verdict, problem = (given, "") if given or not found else _look(project, found)
    return {
        **row,
        "within": declared.goal.within,
        "lateness": declared.lateness,
        "row": msgspec.to_builtins(found) if found else None,
        "is_final": given is not None,
        "verdict": msgspec.to_builtins(verdict) if verdict else None,
        "problem": problem,
        "now_us": project.clock.now_us(),
        "others": [{"id": one} for one in trials if found and one != found.id],
    }


def _read_trials(project: OpenProject, name: str) -> dict[str, Trial]:
    """Returns the trials of an experiment as they stand, the oldest first."""
    rows = [decode_trial(one.value) for one in project.registry.entries(TRIAL, name)]
    return {one.id: one for one in rows}


def _choose(trials: Mapping[str, Trial], wanted: str) -> Trial | None:
    """Returns the trial that was asked for, else the newest one; None if none was started."""
    if wanted and wanted not in trials:
        raise unknown_name("trial", wanted, trials)
    return trials.get(wanted) or next(reversed([*trials.values()]), None)


def _find_verdict(project: OpenProject, trial: Trial) -> Verdict | None:
    rows = [decode_verdict(one.value) for one in project.registry.entries(loop.VERDICT, trial.experiment)]
    return next((one for one in reversed(rows) if one.trial == trial.id), None)


def _look(project: OpenProject, trial: Trial) -> tuple[Verdict | None, str]:
    """Returns what the lake, as it is, says of a trial without waiting for more of it; or why it says nothing."""
    try:
        return loop.judge_trial(project, trial, _read_positions(project), project.clock.now_us()), ""
    except HeadraceError as error:
        return None, str(error)


def _read_positions(project: OpenProject) -> dict[str, list[int]]:
    standing = project.tables.names()
    tables = {name: project.tables.open(name) for name in (DECISIONS, EVENTS) if name in standing}
    return {
        name: [
            table.position(f"{table.properties[INCARNATION]}/{partition}") or 0
            for partition in range(project.topics.describe(name).partitions)
        ]
        for name, table in tables.items()
    }


def follow_lift(project: OpenProject, *, name: str, trial: str = "") -> Any:
    """Returns what a trial would have found at earlier cut-offs: what somebody who looked often would have seen."""
    found = _choose(_read_trials(project, name), trial)
    if found is None:
        return []
    given = _find_verdict(project, found)
    positions: Mapping[str, Any] = given.positions if given else _read_positions(project)
    if len(positions) < 2:
        return []
    now_us = project.clock.now_us()
    cutoff_us = given.cutoff_us if given else now_us - found.within_us - found.lateness_us
    return follow(project, found, trial_scope(found, cutoff_us=cutoff_us, positions=positions))


def stop_trial(project: OpenProject, *, name: str, trial: str) -> Any:
    """Returns the verdict on an experiment's trial, which ends with it; refuses one that another has followed."""
    newest = loop.find_trial(project, name).id
    if trial != newest:
        raise CallError(
            f"the newest trial of {name!r} is {newest!r} by now, not {trial!r}. Look at it before it is stopped"
        )
    return msgspec.to_builtins(loop.stop(project, name))


def roll_back(project: OpenProject, *, page: str, bundle: str) -> Any:
    """Returns the champion that served a page before a bundle, and serves it again; refuses if another one serves."""
    champion = loop.find_champion(project, page)
    if champion is not None and champion.bundle != bundle:
        serves = champion.bundle or "its fallback"
        raise CallError(f"the page {page!r} is served by {serves} by now, not by {bundle!r}. Look at it first")
    return msgspec.to_builtins(loop.roll_back(project, page, reason="from the console"))


# Lineage.


def walk(project: OpenProject, *, id: str) -> Any:  # noqa: A002 - the word that `explain ID` has
    """Returns what is known around an id, as walks."""
    return msgspec.Raw(encode_walks(import_module("headrace.console.explain").tell(project, id)))


def suggest(project: OpenProject) -> Any:
    """Returns a few ids that a walk can begin with: the newest pages, bundles and trials."""
    found = {"bundles": [{"id": one["hash"], "name": one["name"]} for one in list_bundles(project)[:3]]}
    found["trials"] = [
        {"id": one["trial"], "name": one["experiment"]} for one in list_declared(project) if one["trial"]
    ]
    found["pages"] = []
    if DECISIONS in project.tables.names():
        # A page has a record for each of its rows. Grouped they would be held all at once, and they are many.
        sql = (
            f"SELECT recommendation_id AS id, visitor AS name FROM {DECISIONS} "  # noqa: S608 - our own names
            f"WHERE recommendation_id IS NOT NULL ORDER BY received_us DESC LIMIT {_MOST_RECORDS}"
        )
        pages = {one["id"]: one for one in project.query(sql).table().to_pylist()}
        found["pages"] = [*pages.values()][:_MOST_PAGES]
    return found


Answer = Callable[..., Any]

ANSWERS: dict[str, Answer] = {
    "tables": list_tables,
    "table": tell_table,
    "sql": ask_sql,
    "models": list_models,
    "model": tell_model,
    "calibration": calibrate,
    "experiments": list_experiments,
    "experiment": tell_experiment,
    "lift": follow_lift,
    "stop": stop_trial,
    "roll back": roll_back,
    "walk": walk,
    "suggest": suggest,
}
"""What may be asked."""

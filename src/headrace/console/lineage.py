"""headrace explain --openlineage: what was recorded of all runs, as OpenLineage events; nothing is written for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import msgspec

from headrace.base.clock import machine_us, read_duration
from headrace.collect.app import CLICKS
from headrace.console.show import print_lines
from headrace.console.sql import query
from headrace.events.decision import DECISIONS
from headrace.events.settled import EVENTS, FAILED
from headrace.experiments.promotion import CHAMPION, decode_champion
from headrace.experiments.verdict import VERDICTS, decode_verdict
from headrace.learn import read_tables
from headrace.loop import VERDICT
from headrace.models.provenance import FIT, decode_fit
from headrace.models.registry import Entry
from headrace.pipelines import history
from headrace.project import OpenProject
from headrace.tables import Commit
from headrace.tables.sink import INCARNATION
from headrace.watch.lineage import Data, Run, State, write_events

_MOST_RUNS = 1_000
_STATES: Mapping[history.State, State] = {
    "running": "RUNNING", "done": "COMPLETE", "failed": "FAIL", "broken off": "ABORT",
}  # fmt: skip


def print_lineage(project: OpenProject, *, since: str | None) -> None:
    """Prints the run events of a project, by the beginning of the runs, one a line."""
    runs = gather(project)
    if since:
        length_us = read_duration(since, "--since")
        # What settler and sinks note is the machine's time, all else the project's.
        clocks = {True: machine_us(), False: project.clock.now_us()}
        runs = [run for run in runs if run.ended_us >= clocks[run.kind in ("SETTLER", "SINK")] - length_us]
    print_lines(write_events(project.declared.name, runs, version=version("headrace")))


def gather(project: OpenProject) -> list[Run]:
    """Returns the runs of sinks, pipelines, fits, endpoints and verdicts that the project's stores tell of."""
    places = _Places(project)
    found = [*_list_settlers(project, places), *_list_sinks(project, places), *_list_fits(project, places)]
    found += _list_updaters(project, places)
    return [*found, *_list_endpoints(project, places), *_list_verdicts(project, places)]


class _Places:
    """Where the project's data is, as namespaces of datasets: the URLs of its stores, without secrets."""

    def __init__(self, project: OpenProject) -> None:
        self.topics, self._tables, self.registry, self.online = (
            _address(project, noun) for noun in ("topics", "tables", "registry", "online")
        )
        lake = project.profile.url("tables")
        is_far = bool(lake.address)
        self._place = f"{lake.scheme}://{lake.address}" if is_far else "file"
        self._folder = (lake.path if is_far else str(lake.local_path())).rstrip("/")
        self._columns = {
            name: tuple((field.name, str(field.type)) for field in project.tables.open(name).schema)
            for name in project.tables.names()
        }

    def table(self, name: str, version: str = "", **more: Any) -> Data:
        """Returns a table, with the columns that it has now: they are only added to.

        Its name is that of its folder, as the standard has it: what Spark says of a table names the same.
        """
        columns = self._columns.get(name, ())
        place = (self._place, f"{self._folder}/{name}")
        return Data(*place, version, columns=columns, table=(self._tables, name), **more)


def _address(project: OpenProject, noun: str) -> str:
    url = project.profile.url(noun)
    return url.masked().partition("?")[0] if url.address else f"{url.scheme}://{url.local_path()}"


# Settler and sinks.

_SETTLED = f"""SELECT log_partition, min(log_us) AS began_us, max(log_us) AS ended_us, max(src_offset) + 1 AS src_end,
  min(log_offset) AS first, max(log_offset) + 1 AS end_ FROM {EVENTS} GROUP BY log_partition ORDER BY log_partition"""  # noqa: S608


def _list_settlers(project: OpenProject, places: _Places) -> Iterator[Run]:
    """Yields the one run that folds `clicks` into events, as far as the lake tells of it."""
    if EVENTS not in project.tables.names():
        return
    incarnation = project.tables.open(EVENTS).properties.get(INCARNATION, "")
    with query(project, _SETTLED) as found:
        rows = found.table().to_pylist()
    if rows:
        clicks = Data(places.topics, CLICKS, positions={str(row["log_partition"]): (row["src_end"],) for row in rows})
        spans = {str(row["log_partition"]): (row["first"], row["end_"]) for row in rows}
        events = Data(places.topics, EVENTS, positions=spans, incarnation=incarnation)
        times = (min(row["began_us"] for row in rows), max(row["ended_us"] for row in rows))
        outputs = (events, Data(places.topics, FAILED))
        # Where the table forgets its first days, the run is the same.
        yield Run("SETTLER", "settler", incarnation, *times, (clicks,), outputs, "RUNNING", stamp_us=0)


def _list_sinks(project: OpenProject, places: _Places) -> Iterator[Run]:
    """Yields a run for each commit of a sink that the log of its table still has."""
    for name in project.tables.names():
        commits = [one for one in project.tables.open(name).history() if one.note.get("topic")]
        for commit in commits:
            yield _sink(places, name, commit)


def _sink(places: _Places, table: str, commit: Commit) -> Run:
    note = commit.note
    source = Data(
        places.topics, note["topic"], positions=note.get("offsets", {}), incarnation=note.get("incarnation", "")
    )
    return Run(
        "SINK",
        f"sink.{table}",
        f"{note.get('incarnation', '')}/{commit.version}",
        commit.time_us,
        commit.time_us,
        inputs=(source,),
        outputs=(places.table(table, str(commit.version), rows=commit.rows),),
        facts={"by": note.get("producer", "")},
    )


# Pipelines and fits.


def _list_fits(project: OpenProject, places: _Places) -> Iterator[Run]:
    """Yields the runs of pipelines, and for each bundle the join of its rows and its fit."""
    parents: dict[str, Run] = {}
    for run in (run for one in project.declared.pipelines for run in _list_runs(project, one.name)):
        made = _pipeline(project, run)
        yield made
        parents |= {output: made for step in run.steps for output in step.outputs}
    fits = project.registry.newest(FIT)
    for fitted in project.registry.bundles():
        source = msgspec.json.decode(fitted.manifest)["source"]
        yield from _fit(places, (fitted.hash, fitted.name), source, fits.get(fitted.hash), parents.get(fitted.hash))


def _list_runs(project: OpenProject, pipeline: str) -> Sequence[history.Run]:
    return project.runner.history.runs(pipeline, limit=_MOST_RUNS)


def _pipeline(project: OpenProject, run: history.Run) -> Run:
    state = _STATES[run.state]
    ended_us = run.ended_us or (project.clock.now_us() if state == "RUNNING" else run.began_us)
    steps = [{"name": step.name, "state": step.state, "attempts": step.attempts} for step in run.steps]
    error = run.error or next((step.error for step in run.steps if step.error), "")
    name = f"pipeline.{run.pipeline}"
    return Run(
        "PIPELINE", name, str(run.number), run.began_us, ended_us, state=state, facts={"steps": steps}, error=error
    )


def _fit(
    places: _Places, named: tuple[str, str], source: Mapping[str, Any], entry: Entry | None, parent: Run | None
) -> Iterator[Run]:
    name_hash, model = named
    began_us = source.get("at_us", 0)
    ended_us = entry.at_us if entry else began_us
    tables = tuple(
        places.table(name, str(one["version"]), positions=_ends(one["positions"]), incarnation=one["incarnation"])
        for name, one in read_tables(source).items()
    )
    inputs = tables
    if "clicks" in source:
        # Rows to learn from are joined anew for each fit, and kept nowhere else than in the versions that they are of.
        rows = Data(places.registry, f"rows/{model}", name_hash, rows=source["rows"])
        yield Run("JOIN", f"join.{model}", name_hash, began_us, ended_us, tables, (rows,), parent=parent)
        inputs = (rows,)
    facts: dict[str, Any] = {"bundle": name_hash, "rows": source.get("rows", 0)}
    if entry is not None:
        made = decode_fit(entry.value)
        facts |= {"code": made.code, "environment": made.environment, "seconds": made.seconds, "seed": made.seed}
    bundle = Data(places.registry, f"bundle/{model}", name_hash)
    yield Run("FIT", f"fit.{model}", name_hash, began_us, ended_us, inputs, (bundle,), facts=facts, parent=parent)


def _ends(positions: Sequence[int]) -> dict[str, list[int]]:
    return {str(partition): [end] for partition, end in enumerate(positions)}


# Tiles, and endpoints.


def _list_updaters(project: OpenProject, places: _Places) -> Iterator[Run]:
    """Yields the one run that counts events in the tiles that serve, by the newest event that they know."""
    state = project.online.read_state()
    if state is None or not state.newest_us:
        return
    events = Data(places.topics, EVENTS, positions=_ends(state.offsets), incarnation=state.incarnation)
    name, newest_us = f"{state.incarnation}/{state.generation}", max(state.newest_us)
    tiles, facts = Data(places.online, "tiles"), {"definitions": state.definitions}
    yield Run(
        "UPDATER", "updater", name, newest_us, newest_us, (events,), (tiles,), "RUNNING", facts,
        stamp_us=state.generation,
    )  # fmt: skip


_SERVED = f"""SELECT page, bundle, events, min(received_us) AS began_us, max(received_us) AS ended_us,
  count(*)::BIGINT AS decisions, count(DISTINCT trial)::BIGINT AS trials, arg_max(applied, received_us) AS applied
FROM {DECISIONS} GROUP BY page, bundle, events"""  # noqa: S608 - a name of ours


def _list_endpoints(project: OpenProject, places: _Places) -> Iterator[Run]:
    """Yields a run for each bundle on each page: it serves until another does, and may again."""
    if DECISIONS not in project.tables.names():
        return
    bundles = {one.hash: one for one in project.registry.bundles()}
    incarnation = project.tables.open(DECISIONS).properties.get(INCARNATION, "")
    with query(project, _SERVED) as found:
        rows = found.table().to_pylist()
    for row in rows:
        bundle = bundles.get(row["bundle"])
        inputs = (
            Data(places.registry, f"bundle/{bundle.name if bundle else 'unknown'}", row["bundle"]),
            Data(places.topics, EVENTS, positions=_ends(row["applied"]), incarnation=row["events"]),
            Data(places.online, "tiles"),
        )
        output = Data(places.topics, DECISIONS, rows=row["decisions"], incarnation=incarnation)
        name = f"{row['bundle']}/{row['events']}"
        times = (row["began_us"], row["ended_us"])
        facts = {"decisions": row["decisions"], "trials": row["trials"]}
        # The first decisions may reach the table late, and leave it.
        stamp_us = bundle.at_us if bundle else 0
        job = f"endpoint.{row['page']}"
        yield Run("ENDPOINT", job, name, *times, inputs, (output,), "RUNNING", facts, stamp_us=stamp_us)


# Verdicts.


def _list_verdicts(project: OpenProject, places: _Places) -> Iterator[Run]:
    """Yields a run for each verdict, with the champion that it made."""
    registry = project.registry
    champions = {
        champion.trial: champion
        for page in registry.newest(CHAMPION)
        for entry in registry.entries(CHAMPION, page)
        if (champion := decode_champion(entry.value)).trial
    }
    names = {one.hash: one.name for one in registry.bundles()}
    for experiment in registry.newest(VERDICT):
        for entry in registry.entries(VERDICT, experiment):
            verdict = decode_verdict(entry.value)
            inputs = [
                places.table(name, positions=_ends(ends), incarnation=verdict.incarnations.get(name, ""))
                for name, ends in verdict.positions.items()
            ]
            arms = (verdict.control_bundle, verdict.treatment_bundle)
            inputs += [Data(places.registry, f"bundle/{names.get(one, 'unknown')}", one) for one in arms]
            outputs = [places.table(VERDICTS, verdict.trial, rows=1)]
            if verdict.trial in champions:
                won = champions[verdict.trial]
                outputs.append(Data(places.registry, f"champion/{won.page}", won.bundle))
            lift = {"lift": verdict.lift, "interval": verdict.lift_interval, "srm_p": verdict.srm_p}
            yield Run(
                "VERDICT",
                f"verdict.{experiment}",
                verdict.trial,
                verdict.started_us,
                entry.at_us,
                tuple(inputs),
                tuple(outputs),
                facts={"outcome": verdict.outcome, **lift},
            )

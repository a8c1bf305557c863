"""Lineage as OpenLineage has it: run events of the standard, written from what is recorded anyway."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any, Literal
from uuid import UUID

PRODUCER = "urn:headrace:lineage"
"""Who says so; with its version behind it."""

_EVENT = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
_FACET = "https://openlineage.io/spec/facets/{version}/{name}.json#/$defs/{name}"
_OWN = "urn:headrace:lineage:{name}:1"
_FACETS = {
    "schema": ("SchemaDatasetFacet", "1-2-0"),
    "symlinks": ("SymlinksDatasetFacet", "1-0-1"),
    "version": ("DatasetVersionDatasetFacet", "1-0-1"),
    "outputStatistics": ("OutputStatisticsOutputDatasetFacet", "1-0-2"),
    "jobType": ("JobTypeJobFacet", "2-0-4"),
    "processing_engine": ("ProcessingEngineRunFacet", "1-1-1"),
    "parent": ("ParentRunFacet", "1-2-0"),
    "errorMessage": ("ErrorMessageRunFacet", "1-0-1"),
}
_EPOCH = datetime.fromtimestamp(0, UTC)

State = Literal["RUNNING", "COMPLETE", "FAIL", "ABORT"]
Kind = Literal["SETTLER", "SINK", "UPDATER", "JOIN", "FIT", "ENDPOINT", "VERDICT", "PIPELINE"]

_STREAMS: tuple[Kind, ...] = ("SETTLER", "SINK", "UPDATER", "ENDPOINT")


@dataclass(frozen=True)
class Data:
    """What a run has read or written: a topic, a table, a bundle."""

    namespace: str
    """Where it is: the URL of its store, or of the machine on which its folder is."""
    name: str
    version: str = ""
    """Which one: a table's version, a bundle's hash."""
    rows: int | None = None
    """How many rows were written."""
    positions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Of each partition the offset from which on, and the one that came next; or the latter alone."""
    incarnation: str = ""
    """Which topic of this name."""
    columns: Sequence[tuple[str, str]] = ()
    """The names and types of a table's columns."""
    table: tuple[str, str] | None = None
    """The lake, and what SQL calls it there, if its name is a folder."""


@dataclass(frozen=True)
class Run:
    """Something that was done once: a commit, a fit, a verdict."""

    kind: Kind
    job: str
    """What is done again and again, such as `sink.events`."""
    name: str
    """What tells this run of the job from all others."""
    began_us: int
    ended_us: int
    inputs: tuple[Data, ...] = ()
    outputs: tuple[Data, ...] = ()
    state: State = "COMPLETE"
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else is known of it, for the facet `headrace`."""
    parent: Run | None = None
    """The run that it was a step of."""
    error: str = ""
    stamp_us: int | None = None
    """What the id of a run begins with whose beginning is only known as far as rows still tell of it."""

    @property
    def id(self) -> str:
        """The id of the run: the same from each reading of the record, sorted by its beginning."""
        stamp_us = self.began_us if self.stamp_us is None else self.stamp_us
        return make_run_id(stamp_us, f"{self.job}/{self.name}")


def make_run_id(began_us: int, name: str) -> str:
    """Returns a UUID of version 7 whose random part is the hash of a name.

    >>> make_run_id(1_795_277_634_612_000, "sink.events/17")
    '01a1fee2-bc34-7d59-81c9-c13827dec6b8'
    """
    chance = int.from_bytes(blake2b(name.encode(), digest_size=10).digest(), "big")
    high = (began_us // 1000 & (1 << 48) - 1) << 16 | 0x7000 | chance >> 68
    return str(UUID(int=high << 64 | 0b10 << 62 | chance & (1 << 62) - 1))


def write_events(project: str, runs: Iterable[Run], *, version: str) -> Iterator[dict[str, Any]]:
    """Yields a START and the last state of each run, by the beginning of the runs, as the standard's JSON."""
    writer = _Writer(project, version)
    for run in sorted(runs, key=lambda run: (run.began_us, run.id)):
        yield writer.event(run, "START", run.began_us)
        yield writer.event(run, run.state, run.ended_us)


@dataclass(frozen=True)
class _Writer:
    project: str
    version: str

    def event(self, run: Run, state: str, at_us: int) -> dict[str, Any]:
        is_over = state != "START"
        return {
            "eventType": state,
            "eventTime": (_EPOCH + timedelta(microseconds=at_us)).isoformat().replace("+00:00", "Z"),
            "producer": self._producer,
            "schemaURL": _EVENT,
            "run": {"runId": run.id, "facets": self._of_run(run)},
            "job": {"namespace": self.project, "name": run.job, "facets": {"jobType": self._job_type(run)}},
            "inputs": [self._dataset(data, is_over=is_over) for data in run.inputs],
            "outputs": [self._output(data, is_over=is_over) for data in run.outputs],
        }

    @property
    def _producer(self) -> str:
        return f"{PRODUCER}:{self.version}"

    def _facet(self, kind: str, **values: Any) -> dict[str, Any]:
        name, version = _FACETS.get(kind, (kind, ""))
        url = _FACET.format(name=name, version=version) if version else _OWN.format(name=name)
        return {"_producer": self._producer, "_schemaURL": url, **values}

    def _of_run(self, run: Run) -> dict[str, Any]:
        engine = self._facet("processing_engine", name="headrace", version=self.version)
        found = {"processing_engine": engine}
        if run.facts:
            found["headrace"] = self._facet("run", **run.facts)
        if run.parent is not None:
            job = {"namespace": self.project, "name": run.parent.job}
            found["parent"] = self._facet("parent", run={"runId": run.parent.id}, job=job)
        if run.error:
            found["errorMessage"] = self._facet("errorMessage", message=run.error, programmingLanguage="Python")
        return found

    def _job_type(self, run: Run) -> dict[str, Any]:
        processing = "STREAMING" if run.kind in _STREAMS else "BATCH"
        return self._facet("jobType", processingType=processing, integration="HEADRACE", jobType=run.kind)

    def _dataset(self, data: Data, *, is_over: bool) -> dict[str, Any]:
        facets = {}
        if data.columns and is_over:
            fields = [{"name": name, "type": kind} for name, kind in data.columns]
            facets["schema"] = self._facet("schema", fields=fields)
        if data.table:
            namespace, name = data.table
            facets["symlinks"] = self._facet(
                "symlinks", identifiers=[{"namespace": namespace, "name": name, "type": "TABLE"}]
            )
        if data.version:
            facets["version"] = self._facet("version", datasetVersion=data.version)
        if data.positions:
            positions = {partition: list(offsets) for partition, offsets in data.positions.items()}
            facets["headrace_positions"] = self._facet("positions", incarnation=data.incarnation, offsets=positions)
        return {"namespace": data.namespace, "name": data.name, "facets": facets}

    def _output(self, data: Data, *, is_over: bool) -> dict[str, Any]:
        found = self._dataset(data, is_over=is_over)
        if is_over and data.rows is not None:
            found["outputFacets"] = {"outputStatistics": self._facet("outputStatistics", rowCount=data.rows)}
        return found

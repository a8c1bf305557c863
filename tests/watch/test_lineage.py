"""OpenLineage events: what the standard asks of each, and what its own client reads in them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

import msgspec
import pytest
from openlineage.client import event_v2, facet_v2
from openlineage.client.serde import Serde

from headrace.watch.lineage import Data, Run, make_run_id, write_events

BEGAN_US, ENDED_US = 1_767_571_200_000_000, 1_767_571_201_500_000

LAKE_EVENTS = ("file:///lake", "events")
NIGHTLY = Run("PIPELINE", "pipeline.nightly", "3", BEGAN_US, ENDED_US, state="FAIL", error="no rows")
SINK = Run(
    "SINK",
    "sink.events",
    "inc/17",
    BEGAN_US + 1,
    ENDED_US,
    inputs=(Data("kafka://broker:9092", "events", positions={"0": (3, 9), "1": (0, 4)}, incarnation="inc"),),
    outputs=(Data("file", "/lake/events", "17", rows=10, columns=(("event_us", "int64"),), table=LAKE_EVENTS),),
)
FIT = Run(
    "FIT",
    "fit.ranker",
    "d5",
    BEGAN_US + 2,
    ENDED_US,
    inputs=(Data("file", "/lake/events", "17", table=LAKE_EVENTS),),
    outputs=(Data("sqlite:///registry.db", "bundle/ranker", "d5"),),
    facts={"rows": 7},
    parent=NIGHTLY,
)
SERVES = Run("ENDPOINT", "endpoint.home", "d5", BEGAN_US + 3, ENDED_US, state="RUNNING")

FACETS = {
    "processing_engine": facet_v2.processing_engine_run.ProcessingEngineRunFacet,
    "errorMessage": facet_v2.error_message_run.ErrorMessageRunFacet,
    "jobType": facet_v2.job_type_job.JobTypeJobFacet,
    "schema": facet_v2.schema_dataset.SchemaDatasetFacet,
    "symlinks": facet_v2.symlinks_dataset.SymlinksDatasetFacet,
    "version": facet_v2.dataset_version_dataset.DatasetVersionDatasetFacet,
    "outputStatistics": facet_v2.output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet,
}


class Facet(msgspec.Struct):
    """What the standard asks of every facet, whatever else it has."""

    producer: Annotated[str, msgspec.Meta(pattern="^[a-z]+:")] = msgspec.field(name="_producer")
    schema: Annotated[str, msgspec.Meta(pattern="^[a-z]+:")] = msgspec.field(name="_schemaURL")


class RunPart(msgspec.Struct, forbid_unknown_fields=True):
    runId: UUID  # noqa: N815 - the standard's word
    facets: dict[str, Facet]


class JobPart(msgspec.Struct, forbid_unknown_fields=True):
    namespace: str
    name: str
    facets: dict[str, Facet]


class DataPart(msgspec.Struct, forbid_unknown_fields=True):
    namespace: str
    name: str
    facets: dict[str, Facet]
    outputFacets: dict[str, Facet] = {}  # noqa: N815


class Event(msgspec.Struct, forbid_unknown_fields=True):
    """RunEvent of the specification 2-0-2, the parts that we write."""

    eventType: Literal["START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER"]  # noqa: N815
    eventTime: Annotated[datetime, msgspec.Meta(tz=True)]  # noqa: N815
    producer: Annotated[str, msgspec.Meta(pattern="^[a-z]+:")]
    schemaURL: Literal["https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"]  # noqa: N815
    run: RunPart
    job: JobPart
    inputs: list[DataPart]
    outputs: list[DataPart]


@pytest.fixture(scope="module")
def events():
    return [*write_events("streamline", [SERVES, FIT, SINK, NIGHTLY], version="1.2.3")]


def test_each_event_has_what_the_standard_asks(events):
    for event in events:
        found = msgspec.convert(json.loads(msgspec.json.encode(event)), Event, strict=False)
        assert found.run.runId.version == 7
        assert found.job.namespace == "streamline"


def test_runs_are_told_by_their_beginning_with_start_and_end(events):
    assert [(event["job"]["name"], event["eventType"]) for event in events] == [
        ("pipeline.nightly", "START"), ("pipeline.nightly", "FAIL"),
        ("sink.events", "START"), ("sink.events", "COMPLETE"),
        ("fit.ranker", "START"), ("fit.ranker", "COMPLETE"),
        ("endpoint.home", "START"), ("endpoint.home", "RUNNING"),
    ]  # fmt: skip
    assert events[0]["eventTime"] == "2026-01-05T00:00:00Z"
    assert "outputFacets" not in events[2]["outputs"][0], "nothing was written yet"
    assert events[3]["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == 10
    assert events[3]["outputs"][0]["facets"]["schema"]["fields"] == [{"name": "event_us", "type": "int64"}]
    assert events[3]["inputs"][0]["facets"]["headrace_positions"]["offsets"] == {"0": [3, 9], "1": [0, 4]}
    assert events[5]["run"]["facets"]["parent"]["run"]["runId"] == events[0]["run"]["runId"] == NIGHTLY.id


def test_a_step_names_the_run_that_it_was_part_of_as_the_client_does(events):
    ours = events[4]["run"]["facets"]["parent"]
    theirs = facet_v2.parent_run.ParentRunFacet(
        facet_v2.parent_run.Run(NIGHTLY.id), facet_v2.parent_run.Job("streamline", "pipeline.nightly")
    )
    assert ours == {**_narrow(Serde.to_dict(theirs)), "_producer": ours["_producer"]}


def test_run_ids_are_the_same_from_each_reading_and_no_two_alike():
    assert make_run_id(BEGAN_US, "sink.events/1") == make_run_id(BEGAN_US, "sink.events/1")
    ids = [make_run_id(BEGAN_US + 1000 * second, f"sink.events/{n}") for second in range(20) for n in range(50)]
    assert len(set(ids)) == 1_000
    later = replace(SERVES, began_us=BEGAN_US + 9_000_000, stamp_us=BEGAN_US)
    assert later.id == replace(SERVES, began_us=BEGAN_US).id, "whatever rows are left of its beginning"
    assert [one[:13] for one in ids] == sorted(one[:13] for one in ids), "they sort by their beginning"


def _typed(facets):
    """Returns facets as the client's own classes where it has one, else as its base of all."""
    return {name: _read(FACETS[name], values) for name, values in facets.items() if name in FACETS}


def _read(kind, values):
    plain = {name: value for name, value in values.items() if not name.startswith("_")}
    found = kind(**plain, producer=values["_producer"])
    assert values["_schemaURL"] == kind._get_schema(), "the version of the facet that the client speaks"
    return found


def test_the_client_of_the_standard_reads_and_writes_the_same(events):
    for event in events:
        made = event_v2.RunEvent(
            eventType=event_v2.RunState[event["eventType"]],
            eventTime=event["eventTime"],
            run=event_v2.Run(event["run"]["runId"], _typed(event["run"]["facets"])),
            job=event_v2.Job(event["job"]["namespace"], event["job"]["name"], _typed(event["job"]["facets"])),
            inputs=[
                event_v2.InputDataset(one["namespace"], one["name"], facets=_typed(one["facets"]))
                for one in event["inputs"]
            ],
            outputs=[
                event_v2.OutputDataset(
                    one["namespace"],
                    one["name"],
                    facets=_typed(one["facets"]),
                    outputFacets=_typed(one.get("outputFacets", {})),
                )
                for one in event["outputs"]
            ],
            producer=event["producer"],
        )
        assert _narrow(Serde.to_dict(made)) == _narrow(json.loads(msgspec.json.encode(event)))


def _narrow(value):
    """Returns an event without empty parts, and without the facets that only we or another file know."""
    if isinstance(value, list):
        return [_narrow(one) for one in value]
    if not isinstance(value, dict):
        return value
    kept = {
        name: _narrow(one) for name, one in value.items() if name not in ("headrace", "headrace_positions", "parent")
    }
    return {name: one for name, one in kept.items() if one not in ({}, [], None)}

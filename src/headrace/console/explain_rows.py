"""What is learned from a decision: its training rows, and the bundles whose training set holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from headrace.base.errors import StopError
from headrace.console.explain_bundle import Place, count_rows, list_models, list_readers
from headrace.console.explain_walk import Link, Node, Sheet
from headrace.console.models import SHOWN_HASH
from headrace.console.show import format_time
from headrace.events.decision import DECISIONS
from headrace.events.event import Event
from headrace.events.settled import EVENTS
from headrace.experiments.metric import RatioMetric
from headrace.learn import open_lake
from headrace.models.linear import ClickModel
from headrace.models.registry import Fitted
from headrace.models.rows import read_labels
from headrace.project import OpenProject

Row = Mapping[str, Any]


def make_rows(project: OpenProject, decision: Row, events: Sequence[Row]) -> Node | None:
    """Returns the training rows of a decision as a node; None if no model learns from decisions."""
    models = [model for model in list_models(project) if isinstance(model, ClickModel)]
    if not models or not decision["in_table"] or EVENTS not in project.tables.names():
        return None
    metric, trace = models[0].metric, decision["recommendation_id"]
    views, clicks = (_pick(events, event, decision["visitor"]) for event in (metric.below, metric.above))
    try:
        rows = read_labels(open_lake(project), metric, (), only=trace).to_pylist()
    except StopError:
        rows = []
    learners = _find_learners(project, models, decision, views) if rows else []
    clicked = sum(row["clicked"] for row in rows)
    why = () if rows else (("why", _why_none(project, metric, decision, has_views=bool(views))),)
    return Node(
        kind="rows",
        id=trace,
        title=f"{len(rows):,} training rows, {clicked:,} clicked" if rows else "no training row",
        facts=(*why, *_not_yet(rows, learners)),
        sheets=(_sheet(rows),) if rows else (),
        upstream=(
            Link("of", "decision", trace),
            *(Link("seen in", "event", row["message_id"]) for row in views),
            *(Link("clicked in", "event", row["message_id"]) for row in clicks),
        ),
        downstream=tuple(learners),
        record={"metric": metric.name, "rows": [_record(row) for row in rows]},
    )


def _pick(events: Sequence[Row], event: Event, visitor: str | None) -> list[Row]:
    """Returns those of an event that a page's own visitor has sent, and no robot: others teach nothing."""
    return [row for row in events if (row["event"], row["visitor"], row["bot"]) == (event.name, visitor, False)]


def find_metric(project: OpenProject, page: str) -> RatioMetric | None:
    """Returns what is counted of a page: the goal of its experiment, else what a model learns; None if nothing is."""
    models = list_models(project)
    if not models:
        return None
    goals = [one.goal for one in project.declared.experiments if one.on.name == page]
    learned = (model.metric for model in models if isinstance(model, ClickModel))
    return next(iter([*goals, *learned]), None)


def _sheet(rows: Sequence[Row]) -> Sheet:
    cells = tuple(
        (row["position"], row["item"], round(row["propensity"], 4), "yes" if row["clicked"] else "-") for row in rows
    )
    return Sheet("rows", ("position", "item", "chance", "clicked"), cells)


def _record(row: Row) -> dict[str, Any]:
    return {name: row[name] for name in ("item", "position", "propensity", "clicked", "at_us", "received_us")}


def _not_yet(rows: Sequence[Row], learners: Sequence[Link]) -> tuple[tuple[str, str], ...]:
    if learners or not rows:
        return ()
    return (("learned", "by no bundle yet: each was fitted from what had arrived before"),)


def _find_learners(
    project: OpenProject, models: Sequence[ClickModel], decision: Row, views: Sequence[Row]
) -> list[Link]:
    """Returns the bundles that have learned from a decision, as links."""
    within = {model.name: model.metric.within_us for model in models}
    places = [{DECISIONS: _place(decision), EVENTS: _place(view)} for view in views]
    # Only pages count whose time for clicks was over.
    found = [
        fitted
        for fitted in list_readers(project, within, places)
        if decision["received_us"] <= fitted.at_us - within[fitted.name]
    ]
    return link_bundles("learned by", found)


def _place(row: Row) -> Place:
    return row["log_partition"], row["log_offset"], row["received_us"]


def link_bundles(word: str, found: Sequence[Fitted]) -> list[Link]:
    """Returns links to bundles."""
    return [
        Link(word, "bundle", fitted.hash, f"{fitted.name} {fitted.hash[:SHOWN_HASH]} of {_rows_of(fitted)}")
        for fitted in found
    ]


def find_readers(project: OpenProject, event: Row) -> list[Link]:
    """Returns the bundles whose snapshot holds an event that their model reads, as links."""
    reads = {
        model.name: {model.clicks.name, *(column.event for feature in model.features for column in feature.columns)}
        for model in list_models(project)
    }
    names = [name for name, events in reads.items() if event["event"] in events]
    return [] if event["bot"] else link_bundles("read by", list_readers(project, names, [{EVENTS: _place(event)}]))


def _rows_of(fitted: Fitted) -> str:
    return count_rows(msgspec.json.decode(fitted.manifest)["source"])


def _why_none(project: OpenProject, metric: RatioMetric, decision: Row, *, has_views: bool) -> str:
    """Returns why a decision has no training row."""
    over_us = decision["received_us"] + metric.within_us
    reasons = (
        (decision["bot"], "robots teach nothing"),
        (decision["visitor"] is None, "the page had no visitor"),
        ("unlogged" in decision["degraded"], "the decision was withdrawn as unlogged"),
        (not decision["known"], "it does not say what its features knew, so they cannot be told again"),
        (project.clock.now_us() < over_us, f"its time for clicks lasts until {format_time(over_us)[:19]}"),
        (not has_views, f"no item of it was seen: no {metric.below.name!r} with its id has come"),
        (True, "none of its views was of an item that it showed, by its own visitor"),
    )
    return next(text for is_so, text in reasons if is_so)

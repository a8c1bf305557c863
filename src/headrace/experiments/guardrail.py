"""Guardrails: what a trial did to the metrics that must not get worse, each compared like the goal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.events.event import Event
from headrace.experiments.analyse import Scope, Visitors, counts_sql, exposures_sql, pair_of, read_visitors
from headrace.experiments.experiment import ARMS, Trial
from headrace.experiments.metric import FrozenMetric
from headrace.experiments.verdict import Guardrail
from headrace.stats.compare import REASONS, Comparison, compare_ratios
from headrace.stats.moments import measure_ratio_by_arm

_UNSEEN = "no visitor has sent {event!r} since it was exposed"
_UNVIEWED = "no {event!r} with the recommendation_id of the trial's pages has arrived"
_ALL_CUT = (
    "so few visitors have any that the cap is 0, as cap={cap:g} says; give the metric a higher cap, or leave it out"
)


Ask = Callable[[str, Mapping[str, object]], pa.Table]
"""What answers a SELECT over the lake, with its parameters."""


@dataclass(frozen=True)
class Measured:
    """What visitors have of a metric, by column: one place in each array per visitor."""

    above: NDArray[np.float64]
    below: NDArray[np.float64]
    """1 for each visitor of a mean, which is the ratio of a sum and their number."""
    arms: NDArray[np.int8]


def judge_guardrail(trial: Trial, metric: FrozenMetric, visitors: Visitors, *, scope: Scope, ask: Ask) -> Guardrail:
    """Returns what a trial did to one metric; `visitors` are those of the trial's own verdict."""
    if metric.kind == "ratio":
        found = read_ratio(trial, metric, visitors, scope=scope, ask=ask)
    else:
        found = read_mean(metric, visitors, scope=scope, ask=ask)
    return compare_guardrail(trial, metric, found)


def read_ratio(trial: Trial, metric: FrozenMetric, visitors: Visitors, *, scope: Scope, ask: Ask) -> Measured:
    """Returns what visitors have of a ratio: counted like the goal, for other events.

    If its `within` is longer than the goal's, its pages end by so much earlier: the lake does not wait for what
    follows later ones.
    """
    mine = replace(
        scope,
        above=Event(metric.above, item=metric.above_item),
        below=Event(metric.below, item=metric.below_item),
        within_us=metric.within_us,
        cutoff_us=scope.cutoff_us - max(metric.within_us - trial.within_us, 0),
    )
    found = read_visitors(ask(exposures_sql(mine), {}))
    ours = {name for name, is_kept in zip(visitors.names, visitors.counted.tolist(), strict=True) if is_kept}
    kept = found.counted & np.fromiter((name in ours for name in found.names), bool, len(found.names))
    return Measured(found.clicks[kept].astype(float), found.views[kept].astype(float), found.arms[kept])


def read_mean(metric: FrozenMetric, visitors: Visitors, *, scope: Scope, ask: Ask) -> Measured:
    """Returns what visitors have of a mean, before its cap: each record of its event counts.

    A visitor's records count from its first exposure to as long after the cut-off of exposures as the goal waits for
    its own events.
    """
    kept = visitors.counted
    names = [name for name, is_kept in zip(visitors.names, kept.tolist(), strict=True) if is_kept]
    above = np.zeros(len(names))
    if names:
        sql = counts_sql(scope, metric.above, until_us=scope.cutoff_us + scope.within_us)
        found = ask(sql, {"visitors": names, "firsts": visitors.first_us[kept].tolist()})
        above[found.column("place").to_numpy()] = found.column("records").to_numpy() * metric.each
    return Measured(above, np.ones(len(names)), visitors.arms[kept])


def compare_guardrail(trial: Trial, metric: FrozenMetric, measured: Measured) -> Guardrail:
    """Returns the comparison of both arms in a metric, after its cap."""
    above, cap = measured.above, None
    if metric.cap is not None and above.size:
        cap = float(np.quantile(above, metric.cap))
        above = np.minimum(above, cap)
    control, treatment = measure_ratio_by_arm(above, measured.below, measured.arms, num_arms=len(ARMS))
    found = compare_ratios(control, treatment, alpha=trial.alpha)
    return Guardrail(
        name=metric.name,
        control=found.control.estimate,
        treatment=found.treatment.estimate,
        control_visitors=found.control.n,
        treatment_visitors=found.treatment.n,
        cap=cap,
        difference=found.difference,
        difference_interval=pair_of(found.difference_interval),
        lift=found.lift,
        lift_interval=pair_of(found.lift_interval),
        p=found.p,
        df=found.df,
        is_worse=found.is_significant and found.difference is not None and found.difference < 0,
        reason=_find_reason(metric, measured, found, cap=cap),
    )


def _find_reason(metric: FrozenMetric, measured: Measured, found: Comparison, *, cap: float | None) -> str | None:
    if found.reason is None:
        return None
    if metric.kind == "ratio" and not measured.below.any():
        return _UNVIEWED.format(event=metric.below)
    if metric.kind == "mean" and not measured.above.any():
        return _UNSEEN.format(event=metric.above)
    if cap == 0.0 and metric.cap is not None:
        return _ALL_CUT.format(cap=metric.cap)
    return REASONS[found.reason]

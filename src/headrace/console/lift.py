"""What a trial would have found at earlier cut-offs, from one SELECT: what whoever looked often would have seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from headrace.experiments.analyse import Scope, announced_sql, decided_sql, viewed_sql
from headrace.experiments.experiment import ARMS, Trial
from headrace.experiments.srm import check_ratio
from headrace.project import OpenProject
from headrace.stats.compare import compare_ratios
from headrace.stats.moments import measure_ratio_by_arm

LOOKS = 24


def follow(project: OpenProject, trial: Trial, scope: Scope) -> list[dict[str, Any]]:
    """Returns what exposures before each of some cut-offs say of the lift, up to that of the scope."""
    span_us = (scope.cutoff_us - trial.started_us) // LOOKS
    if span_us <= 0:
        return []
    found = project.query(_looks_sql(scope, span_us)).table()
    cutoffs = [trial.started_us + span_us * number for number in range(1, LOOKS)]
    return [_judge(trial, found, number, at_us) for number, at_us in enumerate([*cutoffs, scope.cutoff_us])]


def _looks_sql(scope: Scope, span_us: int) -> str:
    """Returns the SELECT of views and clicks by visitor, arm and the number of the look that first sees their page."""
    key = "recommendation_id, visitor, arm, look"
    look = f", least((received_us - {scope.since_us:d}) // {span_us:d}, {LOOKS - 1}) AS look"
    return f"""WITH {decided_sql(scope, more=look)},
{viewed_sql(scope, key=key)},
counted AS (
  SELECT visitor, arm, look, count(*) AS views, bool_or(bot) AS bot,
    count(*) FILTER (click_us <= view_us + {scope.within_us:d}) AS clicks
  FROM viewed LEFT JOIN clicked USING ({key}, position) GROUP BY ALL
),
exposed AS (
  SELECT visitor, arm, bot, received_us, look FROM decided
  UNION ALL
  {announced_sql(scope, more=look)}
),
people AS (SELECT visitor, arm, look, bool_or(bot) AS bot FROM exposed GROUP BY ALL)
SELECT dense_rank() OVER (ORDER BY visitor)::BIGINT - 1 AS visitor, arm, look::BIGINT AS look,
  people.bot OR coalesce(counted.bot, false) AS bot, coalesce(views, 0)::BIGINT AS views,
  coalesce(clicks, 0)::BIGINT AS clicks
FROM people LEFT JOIN counted USING (visitor, arm, look)"""  # noqa: S608 - every text in it is quoted, every number ours


def _judge(trial: Trial, rows: pa.Table, look: int, at_us: int) -> dict[str, Any]:
    seen = rows.filter(pa.array(rows.column("look").to_numpy() <= look))
    visitors = seen.column("visitor").to_numpy()
    size = int(visitors.max()) + 1 if len(visitors) else 0
    arms = np.array([ARMS.index(arm) if arm in ARMS else -1 for arm in seen.column("arm").to_pylist()], np.int64)
    first, last = np.full(size, len(ARMS)), np.full(size, -1)
    np.minimum.at(first, visitors, arms)
    np.maximum.at(last, visitors, arms)
    bots = np.bincount(visitors, seen.column("bot").to_numpy(zero_copy_only=False), size) > 0
    kept = (first == last) & (first >= 0) & ~bots
    views, clicks = (np.bincount(visitors, seen.column(name).to_numpy(), size) for name in ("views", "clicks"))
    counts = np.bincount(first[kept], minlength=len(ARMS))
    whole = (clicks[kept].astype(np.int64), views[kept].astype(np.int64), first[kept].astype(np.int8))
    found = compare_ratios(*measure_ratio_by_arm(*whole, num_arms=len(ARMS)), alpha=trial.alpha)
    return {
        "at_us": at_us,
        "lift": found.lift,
        "interval": found.lift_interval and [*found.lift_interval],
        "p": found.p,
        "srm_p": check_ratio(counts.tolist(), trial.weights).p if counts.sum() else None,
        "visitors": counts.tolist(),
    }

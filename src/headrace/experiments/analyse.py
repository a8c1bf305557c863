"""Reads a trial: who was exposed, what they viewed and clicked, and what that says about the arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.engines.engine import quote_text
from headrace.events.decision import DECISIONS
from headrace.events.event import Event
from headrace.events.settled import EVENTS
from headrace.experiments.assign import arms_of, buckets
from headrace.experiments.experiment import ARMS, Gate, Trial
from headrace.experiments.outcomes import outcomes_sql
from headrace.experiments.srm import Srm, check_ratio, explain_ratio
from headrace.experiments.verdict import VERSION, Arm, Guardrail, Outcome, Verdict
from headrace.stats.compare import REASONS, Comparison, compare_ratios
from headrace.stats.intervals import binomial_band
from headrace.stats.moments import measure_ratio_by_arm
from headrace.tables.catalog import below_sql, item_sql

# One visitor in a hundred in both arms is more than a lost cookie explains.
_MOST_MULTIPLE = 0.01
_NOBODY = (
    "no visitor was exposed before the cut-off: did pages ask /v1/page with an anonymous_id, and has the trial run "
    "for longer than attribution window and lateness together?"
)
_UNVIEWED = (
    "{total:,} visitors were exposed, and no {below!r} with the recommendation_id of their pages has arrived: "
    "does the page send its visible impressions?"
)
# 1,000 splits of so many visitors take some 5 s.
_MOST_VISITORS = 20_000


@dataclass(frozen=True)
class Scope:
    """Which decisions are read, and which events: nothing outside it can change what comes of it."""

    where: str
    """The condition on the rows of `decisions`, SQL."""
    above: Event
    below: Event
    within_us: int
    cutoff_us: int
    """Decisions from here on are left out."""
    positions: Mapping[str, Sequence[int]]
    """Up to where each topic is read."""
    starts: Mapping[str, Sequence[int]]
    """From where each topic is read."""
    since_us: int = 0
    viewed: tuple[str, ...] = ()
    """The ids by which `Experiment Viewed` events name the trial."""


@dataclass(frozen=True)
class Visitors:
    """The exposures of a scope, by column: one place in each array per visitor, sorted by visitor."""

    names: Sequence[str]
    arms: NDArray[np.int8]
    """The number of each visitor's arm in ARMS."""
    num_arms: NDArray[np.int64]
    bots: NDArray[np.bool_]
    first_us: NDArray[np.int64]
    pages: NDArray[np.int64]
    views: NDArray[np.int64]
    clicks: NDArray[np.int64]

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Which of them count: people, each in one arm."""
        kept: NDArray[np.bool_] = ~self.bots & (self.num_arms == 1)
        return kept


def trial_scope(trial: Trial, *, cutoff_us: int, positions: Mapping[str, Sequence[int]]) -> Scope:
    """Returns the scope of a trial, from its frozen row alone."""
    return Scope(
        where=f"trial = {quote_text(trial.id)}",
        above=Event(trial.above, item=trial.above_item),
        below=Event(trial.below, item=trial.below_item),
        within_us=trial.within_us,
        cutoff_us=cutoff_us,
        positions=positions,
        starts=trial.positions,
        since_us=trial.started_us,
        viewed=(trial.id, trial.experiment),
    )


def exposures_sql(scope: Scope) -> str:
    """Returns the SELECT of a scope's exposures: a row for each visitor, sorted.

    An item counts as viewed once per recommendation, and as clicked if its first click came no later than `within`
    after its first view. So neither order nor repeats of events matter. Events count for the visitor only whom the
    page was made for, and a page that was withdrawn as unlogged for nobody.
    """
    return f"""WITH {decided_sql(scope)},
{viewed_sql(scope, key="recommendation_id, visitor")},
counted AS (
  SELECT visitor, count(*) AS views, count(*) FILTER (click_us <= view_us + {scope.within_us:d}) AS clicks,
    bool_or(bot) AS bot
  FROM viewed LEFT JOIN clicked USING (recommendation_id, visitor, position) GROUP BY visitor
),
exposed AS (
  SELECT visitor, arm, bot, received_us FROM decided
  UNION ALL
  {announced_sql(scope)}
),
people AS (
  SELECT visitor, min(arm) AS arm, count(DISTINCT arm) AS arms, bool_or(bot) AS bot, min(received_us) AS first_us
  FROM exposed GROUP BY visitor
),
asked AS (SELECT visitor, count(DISTINCT recommendation_id) AS pages FROM decided GROUP BY visitor)
SELECT visitor, arm, arms, people.bot OR coalesce(counted.bot, false) AS bot, first_us,
  coalesce(pages, 0)::BIGINT AS pages, coalesce(views, 0)::BIGINT AS views, coalesce(clicks, 0)::BIGINT AS clicks
FROM people LEFT JOIN asked USING (visitor) LEFT JOIN counted USING (visitor)
ORDER BY visitor"""  # noqa: S608 - every text in it is quoted, and every number one of ours


def decided_sql(scope: Scope, *, more: str = "") -> str:
    """Returns `decided`: the pages of a scope that a visitor has, with further columns."""
    return f"""decided AS (
  SELECT recommendation_id, visitor, coalesce(arm, '') AS arm, bot, received_us, items,
    coalesce(len(above), 0) AS num_above{more}
  FROM {DECISIONS}
  WHERE {scope.where} AND {_at_sql(scope)} AND {inside_sql(scope, DECISIONS)}
    AND recommendation_id NOT IN (
      SELECT recommendation_id FROM {DECISIONS}
      WHERE list_contains(degraded, 'unlogged') AND {inside_sql(scope, DECISIONS)}
    )
)"""  # noqa: S608 - every text in it is quoted, and every number one of ours


def viewed_sql(scope: Scope, *, key: str) -> str:
    """Returns `viewed` and `clicked`: the outcomes of what was `decided`, by the columns of a key."""
    below, above = item_sql(scope.below), item_sql(scope.above)
    return outcomes_sql(below, above, within_us=scope.within_us, inside=inside_sql(scope, EVENTS), key=key)


def announced_sql(scope: Scope, *, more: str = "") -> str:
    """Returns the SELECT of visitor, arm, bot and receipt of who was told to be in an arm elsewhere, and of more."""
    ours = ", ".join(map(quote_text, scope.viewed)) or "NULL"
    return f"""SELECT visitor, json_extract_string(properties, '$.variation_id') AS arm, bot, received_us{more}
  FROM {EVENTS}
  WHERE type = 'track' AND event = 'Experiment Viewed' AND {_at_sql(scope)} AND {inside_sql(scope, EVENTS)}
    AND json_extract_string(properties, '$.experiment_id') IN ({ours})
    AND json_extract_string(properties, '$.variation_id') IN ({", ".join(map(quote_text, ARMS))})"""  # noqa: S608


def _at_sql(scope: Scope) -> str:
    return f"visitor IS NOT NULL AND received_us >= {scope.since_us:d} AND received_us < {scope.cutoff_us:d}"


def counts_sql(scope: Scope, event: str, *, until_us: int) -> str:
    """Returns the SELECT that counts an event's records of some visitors, each from its own instant to before `until`.

    Its parameters are `$visitors` and `$firsts`; a row has the place of a visitor among them. Robots' records don't
    count. Each was settled once, so that repeats don't occur.
    """
    return f"""SELECT place, count(*)::BIGINT AS records
FROM (
  SELECT unnest($visitors::VARCHAR[]) AS visitor, unnest($firsts::BIGINT[]) AS first_us,
    unnest(range(len($visitors))) AS place
) AS people JOIN {EVENTS} USING (visitor)
WHERE type = 'track' AND event = {quote_text(event)} AND NOT bot
  AND event_us >= first_us AND event_us < {until_us:d} AND {inside_sql(scope, EVENTS)}
GROUP BY place"""  # noqa: S608 - every text in it is quoted, and every number one of ours


def degraded_sql(scope: Scope) -> str:
    """Returns the SELECT that counts what went other than planned, by arm."""
    return f"""SELECT coalesce(arm, 'none') || '/' || what AS what, count(DISTINCT recommendation_id)::BIGINT AS pages
FROM (
  SELECT arm, recommendation_id, unnest(degraded) AS what FROM {DECISIONS}
  WHERE {scope.where} AND received_us < {scope.cutoff_us:d} AND {inside_sql(scope, DECISIONS)}
) GROUP BY ALL ORDER BY ALL"""  # noqa: S608 - every text in it is quoted, and every number one of ours


def inside_sql(scope: Scope, topic: str) -> str:
    """Returns the condition that a row of a topic's table lies between the scope's positions."""
    starts = ", ".join(map(str, map(int, scope.starts[topic])))
    return f"log_offset >= ([{starts}])[log_partition + 1] AND {below_sql(scope.positions[topic])}"


def read_visitors(rows: pa.Table) -> Visitors:
    """Returns the answer to `exposures_sql` as arrays."""
    numbers = {name: rows.column(name).to_numpy().astype(np.int64) for name in ("first_us", "pages", "views", "clicks")}
    arms = rows.column("arm").to_pylist()
    return Visitors(
        names=rows.column("visitor").to_pylist(),
        arms=np.array([ARMS.index(arm) if arm in ARMS else -1 for arm in arms], np.int8),
        num_arms=rows.column("arms").to_numpy().astype(np.int64),
        bots=rows.column("bot").to_numpy(zero_copy_only=False).astype(bool),
        **numbers,
    )


def judge(
    trial: Trial,
    visitors: Visitors,
    *,
    made_us: int,
    scope: Scope,
    degraded: Mapping[str, int] = {},
    guardrails: Sequence[Guardrail] = (),
) -> Verdict:
    """Returns what the visitors of a trial say about its arms. Health comes first: what fails there decides."""
    kept = visitors.counted
    arms, views, clicks = visitors.arms[kept], visitors.views[kept], visitors.clicks[kept]
    counts = np.bincount(arms, minlength=len(ARMS))[: len(ARMS)]
    srm = check_ratio(counts.tolist(), trial.weights) if counts.sum() else None
    control, treatment = measure_ratio_by_arm(clicks, views, arms, num_arms=len(ARMS))
    found = compare_ratios(control, treatment, alpha=trial.alpha)
    outcome, reasons = _weigh(trial, *_conclude(trial, visitors, srm, found), lift=found.lift, guardrails=guardrails)
    return Verdict(
        version=VERSION,
        trial=trial.id,
        experiment=trial.experiment,
        page=trial.page,
        goal=trial.goal,
        made_us=made_us,
        started_us=trial.started_us,
        cutoff_us=scope.cutoff_us,
        positions={name: tuple(places) for name, places in scope.positions.items()},
        incarnations=trial.incarnations,
        control_bundle=trial.control,
        treatment_bundle=trial.treatment,
        alpha=trial.alpha,
        planned=trial.planned,
        outcome=outcome,
        reasons=tuple(reasons),
        gate=trial.gate,
        srm_p=srm.p if srm else None,
        multiple=int((visitors.num_arms > 1).sum()),
        bots=int(visitors.bots.sum()),
        degraded=dict(degraded),
        control=_arm(0, visitors, kept, found.control.estimate),
        treatment=_arm(1, visitors, kept, found.treatment.estimate),
        difference=found.difference,
        difference_interval=pair_of(found.difference_interval),
        lift=found.lift,
        lift_interval=pair_of(found.lift_interval),
        p=found.p,
        df=found.df,
        guardrails=tuple(guardrails),
    )


def pair_of(interval: Sequence[float] | None) -> tuple[float, float] | None:
    """Returns an interval as a verdict has it."""
    return None if interval is None else (float(interval[0]), float(interval[1]))


def _arm(number: int, visitors: Visitors, kept: NDArray[np.bool_], ratio: float | None) -> Arm:
    mine = kept & (visitors.arms == number)
    sums = {name: int(getattr(visitors, name)[mine].sum()) for name in ("pages", "views", "clicks")}
    return Arm(visitors=int(mine.sum()), ratio=ratio, **sums)


def _conclude(trial: Trial, visitors: Visitors, srm: Srm | None, found: Comparison) -> tuple[Outcome, list[str]]:
    ill = _find_ill(trial, visitors, srm)
    if ill is not None:
        return ill[0], [ill[1]]
    if found.p is None:
        return "empty", [REASONS[found.reason]] if found.reason else []
    assert srm is not None
    assert found.difference is not None
    reasons = [explain_ratio(srm, ARMS)]
    if found.lift_reason is not None:
        reasons.insert(0, REASONS[found.lift_reason])
    fewest = min(found.control.n, found.treatment.n)
    short = f"{fewest:,} visitors in the smaller arm, {trial.planned:,} were planned"
    if found.is_significant:
        if fewest < trial.planned:
            reasons.append(f"{short}: who looks often stops early by chance")
        return ("better" if found.difference > 0 else "worse"), reasons
    if fewest < trial.planned:
        return "early", [short, *reasons]
    return "undecided", reasons


def _find_ill(trial: Trial, visitors: Visitors, srm: Srm | None) -> tuple[Outcome, str] | None:
    """Returns why nothing may be compared, or None."""
    total, kept = len(visitors.names), visitors.counted
    multiple = int((visitors.num_arms > 1).sum())
    if not total:
        return "empty", _NOBODY
    if multiple > _MOST_MULTIPLE * total:
        return "unhealthy", f"{multiple:,} of {total:,} visitors were seen in both arms, so the arms are mixed"
    if srm is None:
        return "empty", f"all {total:,} exposed visitors are robots or were seen in both arms"
    if not srm.is_ok:
        return "unhealthy", explain_ratio(srm, ARMS)
    if not visitors.views[kept].any():
        return "empty", _UNVIEWED.format(total=total, below=trial.below)
    return None


def _weigh(
    trial: Trial, outcome: Outcome, reasons: Sequence[str], *, lift: float | None, guardrails: Sequence[Guardrail]
) -> tuple[Outcome, list[str]]:
    """Returns the outcome and its reasons once more, now that the guardrails are known.

    Where one is worse the treatment is not better; one that can't be judged is told, and holds nobody back.
    """
    if outcome in ("unhealthy", "empty"):
        return outcome, list(reasons)
    fallen = [one for one in guardrails if one.is_worse]
    unknown = [f"the guardrail {one.name} cannot be judged: {one.reason}" for one in guardrails if one.p is None]
    told = [f"the guardrail {one.name} is worse: {_tell_fall(one)}" for one in fallen]
    if not fallen or outcome != "better":
        return outcome, [*reasons, *told, *unknown]
    gain = "" if lift is None else f" by {100 * lift:.1f} %"
    return "worse", [f"{trial.goal} is better{gain}, but {'; '.join(told)}", *reasons, *unknown]


def _tell_fall(found: Guardrail) -> str:
    # Without a lift it would not have fallen: the control's value is above 0 then.
    share = f" by {-100 * found.lift:.1f} %" if found.lift is not None else ""
    return f"it fell{share}, from {found.control:.5g} to {found.treatment:.5g}, p = {found.p:.2g}"


def split_again(visitors: Visitors, *, seed: str, splits: int, weights: Sequence[float], alpha: float) -> Gate:
    """Returns how often splits of the same visitors by other seeds find a difference, which is never there."""
    # Who comes first by hash is a sample like any other, and the same one each time.
    order = np.argsort(buckets(f"{seed}/sample", visitors.names), kind="stable")
    kept = np.sort(order[visitors.counted[order]][:_MOST_VISITORS])
    names = [visitors.names[number] for number in kept.tolist()]
    views, clicks = visitors.views[kept], visitors.clicks[kept]
    significant, least = 0, 1.0
    for found in buckets([f"{seed}/{number}" for number in range(splits)], names):
        arms = arms_of(found, weights)
        control, treatment = measure_ratio_by_arm(clicks, views, arms, num_arms=len(ARMS))
        significant += compare_ratios(control, treatment, alpha=alpha).is_significant
        counts = np.bincount(arms, minlength=len(ARMS))[: len(ARMS)]
        least = min(least, check_ratio(counts.tolist(), weights).p)
    band = binomial_band(splits, alpha, false_alarm=0.001)
    return Gate(splits, len(names), significant, band, alpha, least)

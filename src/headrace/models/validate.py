"""How a click model does on what came after all that it learned from, against popularity as it was known then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.events.event import Event
from headrace.features import Column
from headrace.models.learned import Arrays, learn, read_odds, read_scores, weigh
from headrace.models.logistic import chance_of, fit_logistic
from headrace.models.metrics import Ranking, bound_gain, calibration, correlate_scores, log_loss, measure_ranking
from headrace.models.model import Bundle, Lake
from headrace.models.popular import Popularity, read_popularity
from headrace.models.rows import Rows

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 1

TRAINED = 0.8
"""Of all rows, by time, the first so many are learned from, the rest is judged: time in which few came tells little."""

QUANTILE = 0.2
"""The quantile of the gain over popularity that stands in a report."""

_RIDGE = 1.0


class Measures(msgspec.Struct, frozen=True):
    """What one ranking did on the judged rows."""

    log_loss: float
    """Of the clicks as they were shown, by the rows' weights; popularity's is that of position and popularity."""
    ndcg: float
    """NDCG at 10 of the viewed items of each page, clicks weighted by 1 over the chance that they were seen."""
    recall: float
    """The share of these clicks among the first three."""
    calibration: float
    """The clicks expected by those that came, by the rows' weights."""


class Report(msgspec.Struct, kw_only=True, frozen=True):
    """What is known of a bundle without showing it to anybody."""

    version: int
    """The version of this contract."""
    split_us: int
    """Decisions from here on are judged; those whose clicks were in before are learned from."""
    trained: int
    """How many rows were learned from for that."""
    judged: int
    """How many rows were judged."""
    pages: int
    """Of how many decisions."""
    clicks: int
    """How many of these rows were clicked."""
    examination: float
    """A position is examined with the chance `position ** examination`, as the model learned it."""
    held_out: Measures | None
    """The same declaration, learned from what came before the split; null where that cannot be learned."""
    popularity: Measures | None
    """What was clicked before the split, with the half-life of 3 days."""
    bundle: Measures | None
    """The bundle itself, which has learned from these rows too; null if some of its scores are no numbers."""
    least_gain: float | None
    """The NDCG of `held_out` less popularity's, at least: one sample of persons in five has less."""
    agreement: float | None
    """How alike the bundle and `held_out` rank within pages: the correlation of scores, 1 for the same."""
    broken: int
    """How many of the bundle's scores are no numbers."""
    idle: tuple[str, ...]
    """The columns that were the same in all rows, and so weigh nothing."""


@dataclass(frozen=True)
class _Earlier:
    """A lake as it was known at an instant before."""

    lake: Lake
    at_us: int

    @property
    def source(self) -> Mapping[str, Any]:
        return self.lake.source

    def ask(self, sql: str, parameters: Mapping[str, Any]) -> Mapping[str, list[Any]]:
        return self.lake.ask(sql, parameters)

    def rows(self, sql: str, parameters: Mapping[str, Any]) -> pa.Table:
        return self.lake.rows(sql, parameters)

    def items_of(self, event: Event) -> str:
        return self.lake.items_of(event)

    def join(self, columns: Sequence[Column], labels: pa.Table) -> pa.Table:
        return self.lake.join(columns, labels)


def judge_ranking(lake: Lake, rows: Rows, bundle: Bundle, *, clicks: Event) -> Report:
    """Returns how a bundle's kind of model ranks the last fifth of the rows, and how the bundle itself does."""
    settings = bundle.parameters
    split_us = int(rows.at_us[int(TRAINED * len(rows))])
    # A click that came after the split would tell of the future.
    before = rows.where(rows.received_us + settings["within_us"] <= split_us)
    after = rows.where(rows.at_us >= split_us)
    scores = read_scores(bundle.arrays, after)
    broken = int((~np.isfinite(scores)).sum())
    names = [column["name"] for column in settings["columns"]]
    idle = tuple(name for name, scale in zip(names, bundle.arrays["scales"].tolist(), strict=True) if not scale)
    report = Report(
        version=VERSION,
        split_us=split_us,
        trained=len(before),
        judged=len(after),
        pages=len(np.unique(after.pages)),
        clicks=int(after.clicked.sum()),
        examination=float(bundle.arrays["base"][1]),
        held_out=None,
        popularity=None,
        bundle=None,
        least_gain=None,
        agreement=None,
        broken=broken,
        idle=idle,
    )
    if not _tells(before) or not _tells(after):
        return report
    arrays = learn(before, l2=settings["l2"], most_weight=settings["most_weight"])
    judge = _Judge(after, weigh(after, settings["most_weight"]), float(arrays["base"][1]))
    held_out_scores = read_scores(arrays, after)
    held_out = judge.rank(held_out_scores)
    popular = _score_popular(_Earlier(lake, split_us), clicks)
    baseline = judge.rank(popular(after))
    return msgspec.structs.replace(
        report,
        examination=judge.examination,
        held_out=judge.measure(held_out, read_odds(arrays, after)),
        popularity=judge.measure(baseline, _baseline_odds(popular, before, after, settings["most_weight"])),
        bundle=None if broken else judge.measure(judge.rank(scores), read_odds(bundle.arrays, after)),
        least_gain=bound_gain(held_out, baseline, quantile=QUANTILE),
        agreement=None if broken else correlate_scores(after, scores, held_out_scores),
    )


def _tells(rows: Rows) -> bool:
    return bool(rows.clicked.any() and not rows.clicked.all())


@dataclass(frozen=True)
class _Judge:
    rows: Rows
    weights: NDArray[np.float64]
    examination: float

    def rank(self, scores: NDArray[np.float64]) -> Ranking:
        return measure_ranking(self.rows, scores, examination=self.examination)

    def measure(self, ranking: Ranking, odds: NDArray[np.float64]) -> Measures:
        clicked = self.rows.clicked
        return Measures(
            log_loss=log_loss(odds, clicked, self.weights),
            ndcg=ranking.ndcg,
            recall=ranking.recall,
            calibration=calibration(chance_of(odds), clicked, self.weights),
        )


@dataclass(frozen=True)
class _Popular:
    """Scores of rows by what was popular."""

    shares: Mapping[str, float]
    least: float

    def __call__(self, rows: Rows) -> NDArray[np.float64]:
        return np.array([self.shares.get(name, self.least) for name in rows.names])[rows.items]


def _score_popular(lake: Lake, clicks: Event) -> _Popular:
    items, _, shares = read_popularity(Popularity("popularity", clicks).fit(lake))
    # What nobody had clicked by then has the share of no click.
    least = float(shares.min()) / 2 if len(shares) else 1.0
    return _Popular(dict(zip(items, shares.tolist(), strict=True)), least)


def _baseline_odds(popular: _Popular, before: Rows, after: Rows, most_weight: float) -> NDArray[np.float64]:
    """Returns the log-odds of clicks by position and popularity alone."""

    def columns(rows: Rows) -> Arrays:
        return {"position": np.log(rows.positions), "popularity": np.log(popular(rows))}

    found = fit_logistic(
        list(columns(before).values()), before.clicked, weights=weigh(before, most_weight), ridge=(0.0, _RIDGE)
    )
    return found.odds(list(columns(after).values()))

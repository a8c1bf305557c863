"""The contract `training row`, version 1: an item that somebody viewed on a logged page, and whether it was clicked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.base.errors import StopError
from headrace.events.decision import DECISIONS
from headrace.events.dimension import Dimension
from headrace.experiments.experiment import Metric
from headrace.experiments.outcomes import outcomes_sql
from headrace.features import Column
from headrace.models.model import Lake

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 1


class TrainingRow(msgspec.Struct, kw_only=True, frozen=True):
    """One viewed item of one decision, without its features."""

    version: int
    """The version of this contract."""
    at_us: int
    """The instant of the decision, which its features are of."""
    received_us: int
    """When the page was asked for, by the project's clock."""
    recommendation_id: str
    """The decision."""
    person: str
    """Whom it was made for: the user, else the visitor."""
    item: str
    """The item that was viewed."""
    position: int
    """Where it stood, from 1."""
    propensity: float
    """The chance with which it stood there."""
    clicked: bool
    """Whether a click followed the first view, no later than the metric's `within`."""
    known: tuple[int, ...]
    """Of each partition of `events` how many rows the decision's features knew."""
    attributes: dict[str, str | None]
    """What was known of the item at the dimension's offset that the decision read, as texts."""


@dataclass(frozen=True)
class Rows:
    """Training rows with their features, by column, sorted by instant, decision and position."""

    at_us: NDArray[np.int64]
    received_us: NDArray[np.int64]
    pages: NDArray[np.int64]
    """The number of each row's decision."""
    persons: NDArray[np.int64]
    """The number of each row's person."""
    items: NDArray[Any]
    positions: NDArray[np.int64]
    propensities: NDArray[np.float64]
    clicked: NDArray[np.bool_]
    inputs: tuple[NDArray[np.float64], ...]
    """What the model sees of each feature column."""

    def __len__(self) -> int:
        return len(self.at_us)

    def where(self, kept: NDArray[np.bool_]) -> Rows:
        """Returns some of the rows."""
        arrays = {name: getattr(self, name)[kept] for name in _ARRAYS}
        return Rows(**arrays, inputs=tuple(one[kept] for one in self.inputs))


_ARRAYS = ("at_us", "received_us", "pages", "persons", "items", "positions", "propensities", "clicked")


def rows_sql(lake: Lake, metric: Metric) -> str:
    """Returns the SELECT of a metric's training rows; `$at_us` is the instant of the fit.

    Only decisions whose time for clicks is over by then have rows, and events count that had arrived by then: what
    arrives later changes nothing. Robots have none, nor have pages that were withdrawn as unlogged or whose features
    are not known to the row.
    """
    below, above = (
        f"SELECT * FROM ({lake.items_of(event)}) WHERE received_us <= $at_us"  # noqa: S608 - quoted
        for event in (metric.below, metric.above)
    )
    dimension = metric.above.of
    # Without a dimension nothing is known of an item.
    end = "0" if dimension is None else f"""coalesce((dimensions ->> '$.{dimension.name}')::BIGINT, 0)"""
    return f"""WITH decided AS (
  SELECT recommendation_id, visitor, person, at_us, received_us, items, propensities, known, {end} AS dimension_end
  FROM {DECISIONS}
  WHERE visitor IS NOT NULL AND NOT bot AND len(known) > 0 AND received_us <= $at_us - {metric.within_us:d}
    AND recommendation_id NOT IN (SELECT recommendation_id FROM {DECISIONS} WHERE list_contains(degraded, 'unlogged'))
),
{outcomes_sql(below, above, within_us=metric.within_us, inside="true")},
labelled AS (
  SELECT at_us, received_us, recommendation_id, person, item, list_position(items, item)::BIGINT AS position,
    propensities[list_position(items, item)] AS propensity,
    coalesce(click_us <= view_us + {metric.within_us:d}, false) AS clicked, known, dimension_end
  FROM viewed JOIN decided USING (recommendation_id) LEFT JOIN clicked USING (recommendation_id, item)
  WHERE NOT viewed.bot
)
{_attributes_sql(dimension)}
ORDER BY at_us, recommendation_id, position"""  # noqa: S608 - every text in it is quoted, and every number one of ours


def _attributes_sql(dimension: Dimension | None) -> str:
    if dimension is None:
        return "SELECT * EXCLUDE (dimension_end) FROM labelled"
    listed = ", ".join(f"""(attributes ->> '$."{name}"') AS "@{name}\"""" for name in dimension.names)
    return (
        f"SELECT labelled.* EXCLUDE (dimension_end), {listed} FROM labelled "  # noqa: S608 - identifiers
        f'ASOF LEFT JOIN "{dimension.name}" AS member '
        "ON labelled.item = member.key AND labelled.dimension_end > member.log_offset"
    )


def read_labels(lake: Lake, metric: Metric) -> pa.Table:
    """Returns the training rows of a metric as Arrow, without features; raises StopError if there are none."""
    labels = lake.rows(rows_sql(lake, metric), {"at_us": lake.at_us})
    if not labels.num_rows:
        found = lake.ask(f"SELECT count(*)::BIGINT AS pages FROM {DECISIONS}", {})["pages"][0]  # noqa: S608 - ours
        raise StopError(
            f"nothing to learn from: of {found:,} decisions none has an item that was seen, by a "
            f"{metric.below.name!r} with its recommendation_id, {metric.within} ago or earlier. "
            "Let the page serve for a while, and let it send its visible impressions"
        )
    return labels


def list_rows(labels: pa.Table) -> list[TrainingRow]:
    """Returns training rows as the contract has them."""
    found = []
    for row in labels.to_pylist():
        attributes = {name[1:]: value for name, value in row.items() if name[:1] == "@"}
        found.append(msgspec.convert({**row, "version": VERSION, "attributes": attributes}, TrainingRow))
    return found


encode_row = msgspec.json.Encoder().encode


def read_rows(lake: Lake, metric: Metric, columns: Sequence[Column]) -> Rows:
    """Returns the training rows of a metric with the features of some columns."""
    labels = read_labels(lake, metric)
    joined = lake.join(columns, labels)
    return Rows(
        at_us=_numbers(labels, "at_us"),
        received_us=_numbers(labels, "received_us"),
        pages=_codes(labels, "recommendation_id"),
        persons=_codes(labels, "person"),
        items=_texts(labels, "item"),
        positions=_numbers(labels, "position"),
        propensities=labels.column("propensity").to_numpy().astype(np.float64),
        clicked=labels.column("clicked").to_numpy(zero_copy_only=False).astype(bool),
        inputs=tuple(_input(labels, joined, column) for column in columns),
    )


def _input(labels: pa.Table, joined: pa.Table, column: Column) -> NDArray[np.float64]:
    if column.is_text:
        return encode_texts(_texts(joined, column.name), _texts(labels, column.value))
    return encode_numbers(joined.column(column.name).to_numpy(zero_copy_only=False))


def encode_numbers(values: NDArray[Any]) -> NDArray[np.float64]:
    """Returns what a model sees of counts and totals: their size, where each next one counts for less."""
    numbers = np.asarray(values, np.float64)
    found: NDArray[np.float64] = np.sign(numbers) * np.log1p(np.abs(numbers))
    return found


def encode_texts(values: NDArray[Any], own: NDArray[Any]) -> NDArray[np.float64]:
    """Returns what a model sees of texts: 1 where one is the candidate's own, else 0; None is nobody's."""
    known = np.not_equal(values, np.array(None, object))
    same: NDArray[np.bool_] = np.equal(values, own).astype(bool) & known.astype(bool)
    return same.astype(np.float64)


def _numbers(table: pa.Table, name: str) -> NDArray[np.int64]:
    return np.asarray(table.column(name).to_numpy(), np.int64)


def _codes(table: pa.Table, name: str) -> NDArray[np.int64]:
    """Returns texts as numbers, in the order in which they come first."""
    column = table.column(name).combine_chunks().dictionary_encode()
    return np.asarray(column.indices.to_numpy(), np.int64)


def _texts(table: pa.Table, name: str) -> NDArray[Any]:
    return np.asarray(table.column(name).to_numpy(zero_copy_only=False), object)

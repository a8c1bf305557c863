"""The contract `training row`, version 1: an item that somebody viewed on a logged page, and whether it was clicked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.base.errors import StopError
from headrace.engines.engine import quote_text
from headrace.events.decision import DECISIONS
from headrace.experiments.metric import RatioMetric
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
    """Where it stood, counted down the page from 1."""
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
    items: NDArray[np.int64]
    """The place of each row's item in `names`."""
    names: Sequence[str]
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
        return Rows(**arrays, names=self.names, inputs=tuple(one[kept] for one in self.inputs))


_ARRAYS = ("at_us", "received_us", "pages", "persons", "items", "positions", "propensities", "clicked")


_PAGE_SHIFT = 21
"""Above a position, and whether it was clicked."""


def _decided_sql(metric: RatioMetric, only: str | None = None) -> str:
    """Returns the part `decided` of a WITH: the decisions that may have rows, numbered in their order.

    Only those whose time for clicks is over at the instant of the fit, `$at_us`. Robots have none, nor have pages that
    were withdrawn as unlogged or whose features are not known to the row.
    """
    dimension = metric.above.of
    # Without a dimension nothing is known of an item.
    end = "0::BIGINT" if dimension is None else f"coalesce((dimensions ->> '$.{dimension.name}')::BIGINT, 0)"
    asked = "" if only is None else f"recommendation_id = {quote_text(only)} AND "
    return f"""WITH decided AS (
  SELECT coalesce(len(above), 0)::BIGINT AS num_above,
    (row_number() OVER (ORDER BY at_us, recommendation_id, num_above) - 1)::BIGINT AS page, recommendation_id, visitor,
    person, at_us, received_us, items, propensities, known, {end} AS dimension_end
  FROM {DECISIONS}
  WHERE {asked}visitor IS NOT NULL AND NOT bot AND len(known) > 0 AND received_us <= $at_us - {metric.within_us:d}
    AND recommendation_id NOT IN (SELECT recommendation_id FROM {DECISIONS} WHERE list_contains(degraded, 'unlogged'))
)"""  # noqa: S608 - every text in it is quoted, and every number one of ours


def outcomes_of(lake: Lake, metric: RatioMetric, only: str | None = None) -> pa.Table:
    """Returns page, position and whether it was clicked of each item viewed.

    Events count that had arrived by the instant of the fit: what arrives later changes nothing.
    """
    # The join alone would let all events of the lake be read: 8.5 s and 2 GB of 3M, and with it 0.1 s.
    asked = "" if only is None else f" AND recommendation_id = {quote_text(only)}"
    below, above = (
        f"SELECT * FROM ({lake.items_of(event)}) WHERE received_us <= $at_us{asked}"  # noqa: S608 - quoted
        for event in (metric.below, metric.above)
    )
    outcomes = outcomes_sql(below, above, within_us=metric.within_us, inside="true", key="page")
    clicked = f"coalesce(click_us <= view_us + {metric.within_us:d}, false)"
    return lake.rows(
        f"{_decided_sql(metric, only)},\n{outcomes}\nSELECT page, position::BIGINT AS position, {clicked} AS clicked "
        "FROM viewed LEFT JOIN clicked USING (page, position) WHERE NOT viewed.bot",
        {"at_us": lake.at_us},
    )


def read_labels(
    lake: Lake, metric: RatioMetric, attributes: Sequence[str] | None = None, *, only: str | None = None
) -> pa.Table:
    """Returns the training rows of a metric as Arrow, without features; raises StopError if there are none.

    With `only` they are those of one recommendation.

    What stands once for a page is joined to its items here: as SQL the same rows took three times as long.
    """
    pages = lake.rows(f"{_decided_sql(metric, only)} SELECT * FROM decided ORDER BY page", {"at_us": lake.at_us})  # noqa: S608
    outcomes = outcomes_of(lake, metric, only)
    if not outcomes.num_rows:
        found = lake.ask(f"SELECT count(*)::BIGINT AS pages FROM {DECISIONS}", {})["pages"][0]  # noqa: S608 - ours
        raise StopError(
            f"nothing to learn from: of {found:,} decisions none has an item that was seen, by a "
            f"{metric.below.name!r} with its recommendation_id, {metric.within} ago or earlier. "
            "Let the page serve for a while, and let it send its visible impressions"
        )
    page, position, clicked = _sort_outcomes(outcomes)
    items = pages.column("items").combine_chunks()
    starts = np.r_[0, np.cumsum(items.value_lengths().to_numpy(zero_copy_only=False))]
    places = starts[page] + position - 1 - _numbers(pages, "num_above")[page]
    labels = pages.select(["at_us", "received_us"]).take(page).add_column(0, "page", [page])
    for name in ("recommendation_id", "person", "known"):
        labels = labels.append_column(name, _refer(pages.column(name).combine_chunks(), page))
    listed = items.flatten().dictionary_encode()
    for name, column in (
        ("item", _refer(listed.dictionary, listed.indices.to_numpy()[places])),
        ("position", position),
        ("propensity", pages.column("propensities").combine_chunks().flatten().to_numpy()[places]),
        ("clicked", clicked),
    ):
        labels = labels.append_column(name, column if hasattr(column, "type") else [column])
    dimension = metric.above.of
    if dimension is None:
        return labels
    ends = _numbers(pages, "dimension_end")[page]
    return _add_attributes(lake, labels, ends, dimension.name, dimension.names if attributes is None else attributes)


def _sort_outcomes(outcomes: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Returns page, position and whether it was clicked, sorted."""
    page, position = _numbers(outcomes, "page"), _numbers(outcomes, "position")
    clicked = outcomes.column("clicked").to_numpy(zero_copy_only=False)
    # As one number for each, and not by two columns.
    packed = np.sort((page << _PAGE_SHIFT) | (position << 1) | clicked)
    return packed >> _PAGE_SHIFT, (packed & ((1 << _PAGE_SHIFT) - 1)) >> 1, (packed & 1).astype(bool)


def _refer(values: pa.Array, places: NDArray[Any]) -> pa.Array:
    """Returns a column of values by their places, null below 0: what stands once for a page is not copied."""
    # Imported when asked for: doors don't load Arrow.
    arrow = import_module("pyarrow")
    return arrow.DictionaryArray.from_arrays(arrow.array(places.astype(np.int32), mask=places < 0), values)


def _add_attributes(
    lake: Lake, labels: pa.Table, ends: NDArray[np.int64], dimension: str, names: Sequence[str]
) -> pa.Table:
    """Returns labels with what was known of their items below an offset of the dimension's topic."""
    if not names:
        return labels
    listed = ", ".join(f"""(attributes ->> '$."{name}"') AS "@{name}\"""" for name in names)
    members = lake.rows(f'SELECT key, log_offset, {listed} FROM "{dimension}"', {})  # noqa: S608 - names of ours
    # Imported when asked for: doors don't load Arrow.
    places = import_module("headrace.features.keys").find_members(members, labels.column("item").combine_chunks(), ends)
    for name in names:
        labels = labels.append_column(f"@{name}", _refer(members.column(f"@{name}").combine_chunks(), places))
    return labels


def list_rows(labels: pa.Table) -> list[TrainingRow]:
    """Returns training rows as the contract has them."""
    found = []
    for row in labels.to_pylist():
        attributes = {name[1:]: value for name, value in row.items() if name[:1] == "@"}
        found.append(msgspec.convert({**row, "version": VERSION, "attributes": attributes}, TrainingRow))
    return found


encode_row = msgspec.json.Encoder().encode


def read_rows(lake: Lake, metric: RatioMetric, columns: Sequence[Column]) -> Rows:
    """Returns the training rows of a metric with the features of some columns."""
    parts = {part for column in columns for part in (*column.by, column.value)}
    labels = read_labels(lake, metric, sorted(part[1:] for part in parts if part[:1] == "@"))
    joined = lake.join(columns, labels)
    items, names = _sorted_codes(labels, "item")
    return Rows(
        at_us=_numbers(labels, "at_us"),
        received_us=_numbers(labels, "received_us"),
        pages=_numbers(labels, "page"),
        persons=_sorted_codes(labels, "person")[0],
        items=items,
        names=names,
        positions=_numbers(labels, "position"),
        propensities=labels.column("propensity").to_numpy().astype(np.float64),
        clicked=labels.column("clicked").to_numpy(zero_copy_only=False).astype(bool),
        inputs=tuple(_input(labels, joined, column) for column in columns),
    )


def _input(labels: pa.Table, joined: pa.Table, column: Column) -> NDArray[np.float64]:
    if column.is_text:
        # What `encode_texts` says, without a Python object for each.
        own = labels.column(column.value)
        same = import_module("pyarrow.compute").equal(joined.column(column.name), own.cast(own.type.value_type))
        return np.asarray(same.fill_null(False).to_numpy(), np.float64)
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


def _sorted_codes(table: pa.Table, name: str) -> tuple[NDArray[np.int64], list[str]]:
    """Returns texts as their places among all of them in order, and these."""
    # Imported when asked for: doors don't load Arrow.
    numbers, values = import_module("headrace.features.keys").encode_column(table.column(name))
    stands = np.zeros(len(values), np.bool_)
    stands[numbers] = True
    texts = values.to_pylist()
    names = sorted(text for text, used in zip(texts, stands.tolist(), strict=True) if used)
    place = {text: number for number, text in enumerate(names)}
    return np.array([place.get(text, -1) for text in texts], np.int64)[numbers], names

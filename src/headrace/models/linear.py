"""The click model: the chance that somebody clicks an item, from features, by a logistic regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.base.errors import FormatError, ProjectError, StopError
from headrace.events.decision import DECISIONS
from headrace.events.dimension import Dimension
from headrace.events.event import Event
from headrace.events.settled import EVENTS
from headrace.experiments.metric import RatioMetric
from headrace.features import Column, Feature, list_columns, person
from headrace.features.feature import VERSION as FEATURES
from headrace.features.feature import attribute_names
from headrace.models.learned import learn, varies
from headrace.models.logistic import chance_of
from headrace.models.model import Bundle, Lake, Values, pack_texts, read_texts
from headrace.models.popular import find_categories
from headrace.models.rows import Rows, encode_numbers, encode_texts, read_rows
from headrace.models.validate import Report, judge_ranking

_GENRE = "genre"
# Of smaller counts the logarithm is looked up, which costs a sixth.
_TABLE = encode_numbers(np.arange(1024))


@dataclass(frozen=True)
class ClickModel:
    """The declaration that `click_model` returns."""

    name: str
    metric: RatioMetric
    features: tuple[Feature, ...] = field(kw_only=True)
    l2: float = field(default=30.0, kw_only=True)
    most_weight: float = field(default=10.0, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ProjectError(f"click_model({self.name!r}): give it a name, such as 'ranker'")
        if not isinstance(self.metric, RatioMetric):
            raise ProjectError(
                f"click_model({self.name!r}): {self.metric!r} is no Metric.ratio, such as the goal of a trial"
            )
        found = self.features
        if not isinstance(found, tuple) or not found or not all(isinstance(one, Feature) for one in found):
            raise ProjectError(
                f"click_model({self.name!r}): features={found!r}; give it some, as a tuple: features=(taste, appeal)"
            )
        for name, value, least in (("l2", self.l2, 0.0), ("most_weight", self.most_weight, 1.0)):
            if not isinstance(value, int | float) or not least <= value <= 1e6:
                raise ProjectError(f"click_model({self.name!r}): {name}={value!r} must be from {least:g} to 1,000,000")
        list_columns(found)
        self._check_dimensions()

    def _check_dimensions(self) -> None:
        mine = self.metric.above.of
        for feature in self.features:
            attributes = attribute_names(part for one in feature.columns for part in (*one.by, one.value))
            if attributes and feature.event.of != mine:
                whose = "no dimension" if mine is None else f"the dimension {mine.name!r}"
                raise ProjectError(
                    f"click_model({self.name!r}): the feature {feature.name!r} is by {attributes[0]!r} of an item, "
                    f"and {self.metric.above.name!r} of the metric {self.metric.name!r} has {whose}; give both events "
                    "the same of="
                )

    @property
    def clicks(self) -> Event:
        """The event that says what people chose."""
        return self.metric.above

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tables that it reads."""
        return (DECISIONS, EVENTS, *([self.clicks.of.name] if self.clicks.of else []))

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of its features."""
        return list_columns(self.features)

    def read(self, lake: Lake) -> Rows:
        """Returns its training rows; raises StopError if nothing can be learned from them."""
        rows = read_rows(lake, self.metric, self.columns)
        clicks = int(rows.clicked.sum())
        if clicks in (0, len(rows)):
            found = "none" if not clicks else "each"
            raise StopError(
                f"{self.name!r} has learned nothing: of {len(rows):,} viewed items {found} was clicked by a "
                f"{self.clicks.name!r} with the page's recommendation_id and visitor. Does the page send both events?"
            )
        for column, values in zip(self.columns, rows.inputs, strict=True):
            if not np.isfinite(values).all():
                raise StopError(f"{self.name!r}: the feature {column.name!r} has values that are no numbers")
        if not any(varies(values) for values in rows.inputs):
            listed = ", ".join(column.name for column in self.columns)
            raise StopError(
                f"{self.name!r} has learned nothing: {listed} are each the same in all {len(rows):,} rows. "
                "Are their events sent, and do their windows reach back far enough?"
            )
        return rows

    def fit(self, lake: Lake) -> Bundle:
        """Returns the bundle of all rows."""
        return self.make(lake, self.read(lake))

    def make(self, lake: Lake, rows: Rows) -> Bundle:
        """Returns the bundle of some rows, with all items that may be ranked."""
        items, categories, texts = _find_items(lake, self.metric, self.columns)
        parameters = {
            "metric": self.metric.name,
            "within_us": self.metric.within_us,
            "l2": self.l2,
            "most_weight": self.most_weight,
            "columns": [msgspec.to_builtins(column) for column in self.columns],
        }
        arrays = {
            **learn(rows, l2=self.l2, most_weight=self.most_weight),
            "items": pack_texts(items),
            "categories": pack_texts(categories),
            **{f"item_{name}": pack_texts(found) for name, found in texts.items()},
        }
        source = {**lake.source, "at_us": lake.at_us, "rows": len(rows), "clicks": int(rows.clicked.sum())}
        return Bundle(self.name, "click", parameters, source, arrays)

    def judge(self, lake: Lake, rows: Rows, bundle: Bundle) -> Report:
        """Returns how its kind and how a bundle of it ranks what was seen last, against popularity."""
        return judge_ranking(lake, rows, bundle, clicks=self.clicks)


def click_model(
    name: str, metric: RatioMetric, *, features: tuple[Feature, ...] = (), l2: float = 30.0, most_weight: float = 10.0
) -> ClickModel:
    """Returns the declaration of a model of clicks: what a metric counts, learned from features of logged pages.

    `l2` holds weights near 0, `most_weight` is what an item shown by chance counts for at most.
    """
    return ClickModel(name, metric, features=features, l2=l2, most_weight=most_weight)


Items = tuple[list[str], list[str], dict[str, list[str]]]


def _find_items(lake: Lake, metric: RatioMetric, columns: Sequence[Column]) -> Items:
    """Returns all items that may be ranked, their categories, and the attributes that texts are compared with."""
    dimension = metric.above.of
    names = sorted({column.value[1:] for column in columns if column.is_text and column.value[:1] == "@"})
    if dimension is not None:
        return _find_members(lake, dimension, names)
    parts = (
        f"SELECT DISTINCT item FROM ({lake.items_of(event)}) WHERE received_us <= $at_us AND NOT bot"  # noqa: S608
        for event in (metric.below, metric.above)
    )
    found = lake.ask(
        f"SELECT DISTINCT item FROM ({' UNION ALL '.join(parts)}) WHERE item IS NOT NULL AND item != '' ORDER BY item",  # noqa: S608
        {"at_us": lake.at_us},
    )["item"]
    categories = find_categories(lake, metric.above)
    return found, [categories.get(item, "") for item in found], {}


def _find_members(lake: Lake, dimension: Dimension, names: Sequence[str]) -> Items:
    read = {name: f"""(arg_max(attributes, log_offset) ->> '$."{name}"')""" for name in (*names, _GENRE)}
    listed = ", ".join(f"coalesce({sql}, '') AS attribute_{number}" for number, sql in enumerate(read.values()))
    found = lake.ask(
        f'SELECT key, {listed} FROM "{dimension.name}" WHERE received_us <= $at_us GROUP BY key ORDER BY key',  # noqa: S608
        {"at_us": lake.at_us},
    )
    texts = {name: found[f"attribute_{number}"] for number, name in enumerate(read)}
    return found["key"], texts[_GENRE], {name: texts[name] for name in names}


class OpenClickModel:
    """A bundle of a click model, opened to rank."""

    def __init__(self, bundle: Bundle) -> None:
        arrays = bundle.arrays
        self.columns: Sequence[Column] = [msgspec.convert(one, Column) for one in bundle.parameters["columns"]]
        self.items: Sequence[str] = read_texts(arrays["items"])
        self.categories: Sequence[str] = read_texts(arrays["categories"])
        self.places = {item: number for number, item in enumerate(self.items)}
        self.examination = float(arrays["base"][1])
        _check(bundle, self.columns, [len(self.items), len(self.categories), len(self.places)])
        scales = arrays["scales"]
        self._rates = np.divide(arrays["weights"], scales, out=np.zeros(len(scales)), where=scales > 0).tolist()
        self._base, self._means = float(arrays["base"][0]), arrays["means"]
        self._intercept = self._base - float((np.array(self._rates) * self._means).sum())
        self._own = {"item": np.array(self.items, object)}
        for name, array in _item_texts(arrays):
            self._own[f"@{name}"] = np.array([text or None for text in read_texts(array)], object)
        # Of what is by person alone all items have one text: marking its own items takes a hundredth of comparing all.
        self._marks = {name: _list_places(own) for name, own in self._own.items()}
        missing = [one.name for one in self.columns if one.is_text and one.value not in self._own]
        if missing:
            raise FormatError(f"the bundle {bundle.name!r} does not say what {missing[0]!r} is compared with")

    def scores(self, person: str, values: Values = ()) -> NDArray[np.float64]:  # noqa: ARG002 - features know them
        """Returns the chance of a click on each item at position 1; without values those of somebody unknown."""
        odds = np.full(len(self.items), self._intercept)
        for rate, seen in zip(self._rates, self._encode(values), strict=True):
            if seen is not None:
                odds += rate * seen
        return chance_of(odds)

    def whys(self, places: Sequence[int], values: Values = ()) -> Sequence[str]:
        """Returns of each of some items the column that raises it most above the mean of all items."""
        chosen = np.asarray(places, np.int64)
        best, whys = np.full(len(chosen), 1e-9), [""] * len(chosen)
        for column, rate, seen in zip(self.columns, self._rates, self._encode(values), strict=True):
            if seen is None:
                continue
            raised = rate * (seen[chosen] - seen.mean())
            for number in np.flatnonzero(raised > best).tolist():
                whys[number] = column.name
            best = np.maximum(best, raised)
        return whys

    def split_odds(self, items: Sequence[str], vectors: Sequence[Sequence[Any]]) -> tuple[float, NDArray[np.float64]]:
        """Returns the odds of an average row, and what each column adds to them for some items, a row for each.

        All are logarithms: an item's score is the chance of their sum. `vectors` are the values of its columns.
        """
        places = [self.places[item] for item in items]
        added = np.zeros((len(places), len(self.columns)))
        for number, column in enumerate(self.columns):
            values = [vector[number] for vector in vectors]
            if not self._rates[number] or not places:
                continue
            if column.is_text:
                seen = encode_texts(np.array(values, object), self._own[column.value][places])
            else:
                seen = encode_numbers(np.array(values, np.float64))
            added[:, number] = self._rates[number] * (seen - self._means[number])
        return self._base, added

    def _encode(self, values: Values) -> list[NDArray[np.float64] | None]:
        """Returns what is seen of each column; None where it weighs nothing or is not known."""
        if not len(values) or not self.items:
            return [None] * len(self.columns)
        if len(values) != len(self.columns) or any(len(one) != len(self.items) for one in values):
            raise FormatError(f"{len(values)} columns of values were given, the model reads {len(self.columns)}")
        found = zip(self.columns, self._rates, values, strict=True)
        return [self._encode_one(column, one) if rate else None for column, rate, one in found]

    def _encode_one(self, column: Column, values: NDArray[Any]) -> NDArray[np.float64]:
        if column.is_text and column.by == (person.name,):
            seen = np.zeros(len(self.items))
            seen[self._marks[column.value].get(values[0], [])] = 1.0
            return seen
        if column.is_text:
            return encode_texts(values, self._own[column.value])
        if column.kind == "count" and len(values) and values.max() < len(_TABLE):
            return _TABLE.take(values.astype(np.intp), mode="clip")
        return encode_numbers(values)


def _list_places(own: NDArray[Any]) -> dict[str, list[int]]:
    """Returns the numbers of the items that have each text."""
    found: dict[str, list[int]] = {}
    for place, text in enumerate(own.tolist()):
        if text is not None:
            found.setdefault(text, []).append(place)
    return found


def _item_texts(arrays: Mapping[str, NDArray[Any]]) -> list[tuple[str, NDArray[Any]]]:
    return [(name.removeprefix("item_"), array) for name, array in arrays.items() if name.startswith("item_")]


def _check(bundle: Bundle, columns: Sequence[Column], sizes: Sequence[int]) -> None:
    """Raises FormatError for arrays that no fit makes."""
    arrays = bundle.arrays
    sizes = [*sizes, *(len(read_texts(array)) for _, array in _item_texts(arrays))]
    if len(set(sizes)) > 1:
        raise FormatError(f"the bundle {bundle.name!r} has items and attributes that do not fit together")
    if any(column.version != FEATURES for column in columns):
        raise FormatError(f"the bundle {bundle.name!r} has columns of another version. Fit it again")
    shapes = {"base": (2,)} | dict.fromkeys(("weights", "contexts", "means", "scales"), (len(columns),))
    for name, shape in shapes.items():
        if arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
            raise FormatError(f"the bundle {bundle.name!r} has {name} that no fit gives")
    if (arrays["scales"] < 0).any():
        raise FormatError(f"the bundle {bundle.name!r} has scales below 0")


def open_click_model(bundle: Bundle) -> OpenClickModel:
    """Returns a bundle of a click model, opened."""
    return OpenClickModel(bundle)

"""Models: fitted from the lake, packed as bundles, opened to rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from headrace.models.linear import ClickModel, click_model, open_click_model
from headrace.models.model import Bundle, Model, Scorer, Values
from headrace.models.model import open_bundle as _open
from headrace.models.popular import Popularity, open_popularity, popularity
from headrace.models.taste import Taste, open_taste, taste

__all__ = [
    "KINDS",
    "Bundle",
    "ClickModel",
    "Model",
    "Popularity",
    "Scorer",
    "Taste",
    "Values",
    "click_model",
    "open_bundle",
    "popularity",
    "taste",
]

KINDS: Mapping[str, Callable[[Bundle], Scorer]] = {
    "click": open_click_model,
    "popularity": open_popularity,
    "taste": open_taste,
}
"""The kinds of bundles, and what opens them."""


def open_bundle(bundle: Bundle) -> Scorer:
    """Returns a bundle as what ranks with it; raises FormatError if its kind is unknown or its arrays do not fit it."""
    return _open(bundle, KINDS)

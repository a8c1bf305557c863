"""Features: what is known of people and items by their events, the same in training rows and online."""

from __future__ import annotations

from headrace.features.feature import Column, Feature, count, item, last, list_columns, person, total

__all__ = ["Column", "Feature", "count", "item", "last", "list_columns", "person", "total"]

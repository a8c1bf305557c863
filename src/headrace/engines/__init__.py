"""Where SQL runs: names of tables and a SELECT go in, Arrow comes out. It knows files, and no lake."""

from __future__ import annotations

from pathlib import Path

from headrace.base.urls import Registry, Scheme, Url
from headrace.engines.engine import Engine, Parameters, Place, Result, Scanned, Source, SqlError, View, show_place

__all__ = [
    "SCHEMES",
    "Engine",
    "Parameters",
    "Place",
    "Result",
    "Scanned",
    "Source",
    "SqlError",
    "View",
    "open_engine",
    "show_place",
]

SCHEMES = Registry(
    noun="engine",
    group="headrace.engines",
    schemes={"duckdb": Scheme("headrace.engines.duckdb:DuckdbEngine")},
)


def open_engine(url: Url | str, *, root: Path | str = ".") -> Engine:
    """Returns the open engine of a URL; local paths are resolved against `root`."""
    engine: Engine = SCHEMES.open(url, root=root)
    return engine

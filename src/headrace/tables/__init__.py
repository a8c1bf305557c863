"""The lake: tables that rows enter exactly once, and that anybody's tools can read."""

from __future__ import annotations

from pathlib import Path

from headrace.base.urls import Registry, Scheme, Url
from headrace.tables.table import (
    Capabilities,
    Commit,
    File,
    Optimized,
    Pin,
    Scan,
    Table,
    Tables,
)

__all__ = [
    "SCHEMES",
    "Capabilities",
    "Commit",
    "File",
    "Optimized",
    "Pin",
    "Scan",
    "Table",
    "Tables",
    "open_tables",
]

SCHEMES = Registry(
    noun="table",
    group="headrace.tables",
    schemes={
        "file": Scheme("headrace.tables.delta_lake:FileTables"),
        "hdfs": Scheme("headrace.tables.delta_lake:HdfsTables"),
    },
)


def open_tables(url: Url | str, *, root: Path | str = ".") -> Tables:
    """Returns the open tables of a URL; local paths are resolved against `root`."""
    tables: Tables = SCHEMES.open(url, root=root)
    return tables

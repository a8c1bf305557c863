"""What the processes of a project tell of themselves: Prometheus metrics and structured logs.

Every label value is declared beforehand, so the number of series is fixed and a process keeps
them as numbers in one small mapped file. Any process answers /metrics for all of them by adding
the files up; a restarted worker opens its old file and goes on counting.
"""

from __future__ import annotations

import bisect
import itertools
import json
import logging
import mmap
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

_HEADER = struct.Struct("<Q")
_SUFFIX = ".metrics"

LATENCY_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@dataclass(frozen=True)
class Metric:
    """One metric with every label value it will ever have.

    >>> [series for series, _ in Metric("hits_total", "Hits.", labels={"door": ("a", "b")}).series()]
    ['hits_total{door="a"}', 'hits_total{door="b"}']
    """

    name: str
    help: str
    kind: str = "counter"
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()

    def series(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yields the text name of each series with its label values."""
        for values in itertools.product(*self.labels.values()):
            labels = [f'{name}="{value}"' for name, value in zip(self.labels, values, strict=True)]
            if not self.buckets:
                yield _series_name(self.name, labels), values
                continue
            for bound in (*(f"{b:g}" for b in self.buckets), "+Inf"):
                yield _series_name(f"{self.name}_bucket", [*labels, f'le="{bound}"']), (*values, bound)
            yield _series_name(f"{self.name}_sum", labels), (*values, "sum")
            yield _series_name(f"{self.name}_count", labels), (*values, "count")


def _series_name(name: str, labels: list[str]) -> str:
    return f"{name}{{{','.join(labels)}}}" if labels else name


class Series:
    """One number that this process counts."""

    __slots__ = ("_at", "_numbers")

    def __init__(self, numbers: memoryview[float], at: int) -> None:
        self._numbers = numbers
        self._at = at

    def add(self, amount: float = 1.0) -> None:
        """Adds to the number."""
        self._numbers[self._at] += amount

    def set(self, value: float) -> None:
        """Sets the number."""
        self._numbers[self._at] = value

    def value(self) -> float:
        """Returns the number."""
        return self._numbers[self._at]


class Distribution:
    """How often a measured value fell into each bucket."""

    __slots__ = ("_at", "_buckets", "_numbers")

    def __init__(self, numbers: memoryview[float], at: int, buckets: tuple[float, ...]) -> None:
        self._numbers = numbers
        self._at = at
        self._buckets = buckets

    def observe(self, value: float) -> None:
        """Counts one value."""
        size = len(self._buckets)
        for index in range(bisect.bisect_left(self._buckets, value), size + 1):
            self._numbers[self._at + index] += 1
        self._numbers[self._at + size + 1] += value
        self._numbers[self._at + size + 2] += 1


class _Header(msgspec.Struct):
    """How the file of a process begins."""

    metrics: list[tuple[str, str, str]]
    series: list[str]


class Metrics:
    """The metrics of one process, kept in `folder` beside those of the others, or in memory."""

    def __init__(self, metrics: Sequence[Metric], *, folder: Path | None = None, process: str = "main") -> None:
        self._metrics = {metric.name: metric for metric in metrics}
        self._folder = folder
        names: list[str] = []
        self._at: dict[tuple[str, ...], int] = {}
        for metric in metrics:
            for name, values in metric.series():
                self._at[(metric.name, *values)] = len(names)
                names.append(name)
        self._names = names
        header = msgspec.json.encode(_Header([(m.name, m.help, m.kind) for m in metrics], names))
        header += b" " * (-len(header) % _HEADER.size)
        self._numbers = self._map(process, header)

    def count(self, name: str, *values: str) -> Series:
        """Returns the series of a metric with these label values, in the order of its labels."""
        return Series(self._numbers, self._at[(name, *values)])

    def measure(self, name: str, *values: str) -> Distribution:
        """Returns the distribution of a metric with these label values."""
        buckets = self._metrics[name].buckets
        return Distribution(self._numbers, self._at[(name, *values, f"{buckets[0]:g}")], buckets)

    def text(self) -> str:
        """Returns the metrics of all processes in Prometheus' text format."""
        if self._folder is None:
            return _format([(m.name, m.help, m.kind) for m in self._metrics.values()], self.values())
        return read_text(self._folder)

    def values(self) -> dict[str, float]:
        """Returns this process's numbers by the text name of their series."""
        return dict(zip(self._names, self._numbers, strict=True))

    def _map(self, process: str, header: bytes) -> memoryview[float]:
        size = len(self._names) * 8
        if self._folder is None:
            return memoryview(bytearray(size)).cast("d")
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{process}{_SUFFIX}"
        start = _HEADER.pack(len(header)) + header
        if not _begins_with(path, start, size):
            # Renamed into place, so that nobody reads half a file. Real zeros, no hole: a mapped hole
            # on a full disk kills the process with SIGBUS.
            temporary = path.with_suffix(".new")
            temporary.write_bytes(start + bytes(size))
            temporary.replace(path)
        with path.open("r+b") as file:
            memory = mmap.mmap(file.fileno(), len(start) + size)
        return memoryview(memory)[len(start) :].cast("d")


def _begins_with(path: Path, start: bytes, size: int) -> bool:
    try:
        with path.open("rb") as file:
            return path.stat().st_size == len(start) + size and file.read(len(start)) == start
    except FileNotFoundError:
        return False


def read_values(folder: Path) -> dict[str, float]:
    """Returns the numbers of all processes that keep metrics in `folder`, added up."""
    return _read(folder)[1]


def read_text(folder: Path) -> str:
    """Returns the metrics of all processes in `folder` in Prometheus' text format."""
    return _format(*_read(folder))


def _read(folder: Path) -> tuple[list[tuple[str, str, str]], dict[str, float]]:
    metrics: dict[str, tuple[str, str, str]] = {}
    total: dict[str, float] = {}
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        try:
            header, numbers = _read_file(path)
        except (OSError, ValueError, struct.error, msgspec.MsgspecError):
            # One damaged file must not hide what the other processes tell.
            continue
        metrics.update({name: (name, text, kind) for name, text, kind in header.metrics})
        for series, number in zip(header.series, numbers, strict=True):
            total[series] = total.get(series, 0.0) + number
    return list(metrics.values()), total


def _read_file(path: Path) -> tuple[_Header, tuple[float, ...]]:
    data = path.read_bytes()
    (length,) = _HEADER.unpack_from(data)
    header = msgspec.json.decode(data[_HEADER.size : _HEADER.size + length], type=_Header)
    return header, struct.unpack(f"{len(header.series)}d", data[_HEADER.size + length :])


def _format(metrics: Iterable[tuple[str, str, str]], values: dict[str, float]) -> str:
    lines = []
    for name, text, kind in metrics:
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        parts = (f"{name}_bucket", f"{name}_sum", f"{name}_count") if kind == "histogram" else (name,)
        lines += [f"{s} {v:.17g}" for s, v in values.items() if s.partition("{")[0] in parts]
    return "\n".join([*lines, ""])


def quantile(values: dict[str, float], name: str, q: float) -> float | None:
    """Returns the upper bound of the bucket that holds quantile `q`, or None without values."""
    start = f"{name}_bucket{{"
    counts = [(series, count) for series, count in values.items() if series.startswith(start)]
    total = max((count for _, count in counts), default=0.0)
    for series, count in counts:
        if total and count >= q * total:
            bound = series.partition('le="')[2].partition('"')[0]
            return float(bound)
    return None


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def get_logger(name: str) -> logging.Logger:
    """Returns the logger of one part of Headrace."""
    return logging.getLogger(f"headrace.{name}")


def start_logging(level: str = "INFO", *, path: Path | None = None) -> None:
    """Sends the logs of this process to stderr or into a file, one JSON object per line."""
    handler = logging.FileHandler(path, encoding="utf-8") if path else logging.StreamHandler(sys.stderr)
    # Who logs into a file keeps the terminal clean, of what a full disk does to the log too.
    logging.raiseExceptions = path is None
    handler.setFormatter(_JsonFormatter())
    logger = logging.getLogger("headrace")
    logger.handlers[:] = [handler]
    logger.setLevel(level)

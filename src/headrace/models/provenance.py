"""What made a bundle, beside its rows: code, machine and seconds, as a row of the registry."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from headrace.base.errors import FormatError
from headrace.experiments.experiment import check_version
from headrace.models.metrics import SEED
from headrace.models.model import Model

FIT = "fit"
"""The kind of the registry's rows that say what made a bundle, by its hash."""

VERSION = 1

_ROOMS = ("models", "features")
_PACKAGES = ("headrace", "numpy", "duckdb", "pyarrow", "numba", "deltalake")


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """How a bundle came about; its rows, parameters and hashes stand in its own manifest."""

    version: int
    """The version of this contract."""
    model: str
    """The name of the model."""
    seconds: float
    """How long it took, by the machine's clock."""
    seed: int
    """What all chance of a fit and its gate follows from."""
    code: str
    """The hash of the source of headrace's models and features."""
    environment: dict[str, str]
    """Machine, Python and the packages that compute, with their versions."""
    features: dict[str, str]
    """The identity of each column that it reads, by name: columns of one identity have the same values."""


encode_fit = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(Fit).decode


def decode_fit(value: bytes) -> Fit:
    """Returns the fit in a row of the registry; raises FormatError for anything else."""
    check_version(value, "fit", VERSION)
    try:
        return _decode(value)
    except ValueError as error:
        raise FormatError(f"{value[:40]!r} is no fit: {error}") from error


def describe_fit(model: Model, seconds: float) -> Fit:
    """Returns how a model is fitted here and now."""
    return Fit(
        version=VERSION,
        model=model.name,
        seconds=round(seconds, 3),
        seed=SEED,
        code=hash_code(),
        environment=dict(describe_environment()),
        features={column.name: column.identity for feature in model.features for column in feature.columns},
    )


@lru_cache(maxsize=1)
def hash_code() -> str:
    """Returns the hash of the source of headrace's models and features."""
    digest = blake2b(digest_size=16)
    root = Path(__file__).parents[1]
    for path in sorted(path for room in _ROOMS for path in (root / room).glob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


@lru_cache(maxsize=1)
def describe_environment() -> Mapping[str, str]:
    """Returns machine, Python and the packages that compute, with their versions."""
    found = {"machine": platform.machine(), "system": platform.platform(), "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def list_differences(before: Fit, now: Fit) -> list[str]:
    """Returns what differs between two fits that may explain other bytes, in sentences."""
    found = []
    if before.code != now.code:
        found.append(f"the source of headrace's models and features: {before.code[:12]}, now {now.code[:12]}")
    names = sorted({*before.environment, *now.environment})
    pairs = [(name, before.environment.get(name, "none"), now.environment.get(name, "none")) for name in names]
    found += [f"{name}: {old}, now {new}" for name, old, new in pairs if old != new]
    if before.features != now.features:
        found.append("the features of the model, which project.py declares otherwise now")
    return found

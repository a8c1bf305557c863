"""Write keys: who may send events. They are hashed at rest and known by a name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from headrace.base.errors import ProjectError

_PREFIX = "sha256:"
_HASH = re.compile(_PREFIX + "[0-9a-fA-F]{64}")

DEV_KEY = "dev"


def hash_key(key: str) -> str:
    """Returns what headrace.toml holds instead of the key.

    >>> hash_key("dev")
    'sha256:ef260e9aa3c673af240d17a2660480361a8e081d1ffeca2a5ed0e3219fc18567'
    """
    return _PREFIX + hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True)
class Keys:
    """The write keys of a project, by their hash.

    >>> Keys.read({"dev": hash_key("dev")}).name_of("dev")
    'dev'
    """

    names: Mapping[str, str]

    @classmethod
    def read(cls, table: Mapping[str, str]) -> Keys:
        """Returns the keys of headrace.toml's table [keys]: name = "sha256:..."."""
        for name, value in table.items():
            if not _HASH.fullmatch(value):
                raise ProjectError(
                    f'headrace.toml [keys] {name}: found a plain text, write name = "sha256:HASH" with '
                    "the output of: printf %s THE-KEY | sha256sum"
                )
        return cls({value.lower(): name for name, value in table.items()})

    def name_of(self, key: str) -> str:
        """Returns the name of a key, or nothing for one that nobody made."""
        return self.names.get(hash_key(key), "") if key else ""

"""An outsider's package, installed as far as Python can tell: it stands on the path with its metadata."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def outsider(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the entry points of the package in `outsider/` known."""
    monkeypatch.syspath_prepend(str(Path(__file__).with_name("outsider")))

"""Lakes to test on: a folder, and a real HDFS."""

from __future__ import annotations

import itertools

import pytest

from headrace.tables import open_tables

_COUNT = itertools.count()


@pytest.fixture
def folder(tmp_path):
    """A folder whose name is awkward in a URL."""
    return tmp_path / "my läke"


@pytest.fixture(params=["file", pytest.param("hdfs", marks=pytest.mark.service("hdfs"))])
def lake(request, folder):
    """Opens the same lake each time it is called, as another process would."""
    if request.param == "file":
        url = f"file:///{folder.name}"
    else:
        url = f"{request.getfixturevalue('hdfs').url}/lake-{next(_COUNT)}?deadline_seconds=20"
    return lambda: open_tables(url, root=folder.parent)


@pytest.fixture
def local(folder):
    """Opens a lake in a folder."""
    return lambda: open_tables(f"file:///{folder.name}", root=folder.parent)

"""Fixtures of the fault tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import closing

import pytest

from survive.stream import make_project
from survive.yard import Yard


@pytest.fixture
def yard(tmp_path):
    """A project whose settlers and sinks are driven by hand."""
    make_project(tmp_path)
    with closing(Yard(tmp_path)) as made:
        yield made


@pytest.fixture
def disk(tmp_path):
    """A disk of 24 MB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root, to mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)

"""Copies of far files: made once, bounded, and safe with several processes at once."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from headrace.base.errors import FullError
from headrace.tables import open_tables
from headrace.tables.cache import Cache, Wanted
from tables.rows import SCHEMA, many


def wanted(name, size=100, copies=None):
    def copy(target):
        if copies is not None:
            copies.append(name)
        Path(target).write_bytes(b"x" * size)

    return Wanted(name, size, copy)


def test_a_file_is_copied_once(tmp_path):
    copies = []
    cache = Cache(tmp_path, max_bytes=1000)
    first = cache.fetch([wanted("t/a=%20 b/1", copies=copies), wanted("t/2", copies=copies)])
    assert Cache(tmp_path, max_bytes=1000).fetch([wanted("t/a=%20 b/1", copies=copies)]) == first[:1]
    assert copies == ["t/a=%20 b/1", "t/2"]
    assert [Path(path).read_bytes() for path in first] == [b"x" * 100] * 2


def test_a_copy_of_the_wrong_size_is_made_again(tmp_path):
    cache = Cache(tmp_path, max_bytes=1000)
    (path,) = cache.fetch([wanted("1")])
    Path(path).write_bytes(b"cut")
    assert cache.fetch([wanted("1")]) == [path]
    assert Path(path).stat().st_size == 100


def test_the_longest_unused_copies_go_and_the_busy_stay(tmp_path):
    cache = Cache(tmp_path, max_bytes=250)
    paths = cache.fetch([wanted(str(number)) for number in range(4)])
    assert all(Path(path).exists() for path in paths)
    hour_ago = time.time() - 3600
    for age, path in enumerate(paths):
        os.utime(path, (hour_ago - age, hour_ago - age))
    cache.fetch([wanted("3")])
    assert [Path(path).exists() for path in paths] == [True, False, False, True]


def test_a_full_disk_is_told_and_leaves_no_part(tmp_path):
    def copy(target):
        Path(target).write_bytes(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(FullError, match="no room for a copy of 1"):
        Cache(tmp_path, max_bytes=10).fetch([Wanted("1", 5, copy)])
    assert list(tmp_path.iterdir()) == []


def test_many_may_fetch_at_once(tmp_path):
    failures = []

    def fetch():
        for _ in range(20):
            paths = Cache(tmp_path, max_bytes=150).fetch([wanted(str(n)) for n in range(5)])
            failures.extend(path for path in paths if Path(path).stat().st_size != 100)

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_parts_that_come_and_go_beside_it_do_not_disturb(tmp_path):
    failures = []

    def fetch(name):
        # A size that never agrees makes each fetch write and rename a part of its own.
        one = Wanted(name, 7, lambda target: Path(target).write_bytes(b"x"))
        try:
            for _ in range(150):
                Cache(tmp_path, max_bytes=1).fetch([one])
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=fetch, args=(str(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.service("hdfs")
def test_files_on_hdfs_are_copied_to_the_projects_folder(hdfs, tmp_path):
    tables = open_tables(f"{hdfs.url}/copied?cache=copies&cache_bytes=1000000", root=tmp_path)
    table = tables.create("events", SCHEMA)
    table.append(many(100))
    (path,) = table.local_files()
    assert Path(path).is_relative_to(tmp_path / "copies")
    assert Path(path).parent.name == "received_date=2026-11-21"
    assert Path(path).stat().st_size == table.files()[0].size
    stamp = Path(path).stat().st_ino
    assert table.local_files() == [path]
    assert Path(path).stat().st_ino == stamp

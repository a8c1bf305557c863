"""The online store: what its contract says, and every way its file can be away."""

import contextlib
import sqlite3

import pytest

from features.traffic import COLUMNS
from headrace.base.errors import CallError, FencedError, FormatError, UnavailableError
from headrace.base.urls import Url
from headrace.features.online import State, open_online
from headrace.testing import check_online

FIRST = State(generation=1, definitions="d", incarnation="i", offsets=(0,), known=(0,), newest_us=(0,))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run dir" / "ønline.db"


@pytest.fixture
def open_one(path):
    """Opens the same store each time, as another process would; all are closed at the end."""
    with contextlib.ExitStack() as stack:

        def open_it():
            one = open_online(Url.parse("sqlite:///run dir/ønline.db", root=path.parent.parent))
            stack.callback(one.close)
            return one

        yield open_it


def test_store_keeps_the_contract(open_one):
    check_online(open_one)


def test_columns_come_back_as_they_were(open_one):
    open_one().begin(FIRST, COLUMNS)
    assert open_one().read_columns(1) == COLUMNS


def test_reading_makes_no_file(open_one, path):
    one = open_one()
    assert (one.read_state(), one.read_states()) == (None, [])
    with pytest.raises(UnavailableError, match=r"no online store at .* yet. Does the updater run"):
        one.snapshot((b"person\0ann",))
    assert not path.exists()


def test_file_that_was_taken_away_is_told_and_another_is_followed(open_one, path):
    one, reader = open_one(), open_one()
    one.begin(FIRST, COLUMNS)
    one.promote(FIRST)
    assert reader.snapshot(()).state == FIRST
    for left in path.parent.iterdir():
        left.unlink()
    with pytest.raises(UnavailableError, match="no online store"):
        reader.snapshot(())
    moved = State(generation=1, definitions="d", incarnation="i", revision=1)
    with pytest.raises(UnavailableError, match="taken away or replaced"):
        one.commit({}, moved, FIRST)
    with pytest.raises(FencedError, match="generation 1"):
        one.commit({}, moved, FIRST)
    second = State(generation=2, definitions="d", incarnation="i")
    one.begin(second, COLUMNS)
    one.promote(second)
    assert reader.snapshot(()).state == second


def test_file_that_is_none_of_ours_is_told(open_one, path):
    path.parent.mkdir()
    path.write_bytes(b"no database at all, and long enough to be looked at" * 50)
    with pytest.raises(FormatError, match="Remove the file: the updater makes it anew"):
        open_one().snapshot(())


def test_store_of_a_newer_headrace_is_told(open_one, path):
    open_one().begin(FIRST, COLUMNS)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("pragma user_version = 99")
    with pytest.raises(FormatError, match="format 99"):
        open_one().snapshot(())


def test_sweep_takes_many_blobs_in_portions_and_leaves_what_stands(open_one):
    one = open_one()
    one.begin(FIRST, COLUMNS)
    blobs = {(b"item\0%d" % number, 0): b"x" for number in range(4500)}
    moved = State(generation=1, definitions="d", incarnation="i", revision=1)
    one.commit(blobs, moved, FIRST)
    second = State(generation=2, definitions="d", incarnation="other")
    one.begin(second, COLUMNS)
    one.commit(blobs, State(generation=2, definitions="d", incarnation="other", revision=1), second)
    assert one.promote(State(generation=2, definitions="d", incarnation="other", revision=1))
    portions = 0
    while one.sweep():
        portions += 1
    assert portions == 3
    assert len(one.snapshot((), since=(0, 0)).changed) == 4500
    assert one.load(1, list(blobs)) == {}


@pytest.mark.parametrize("url", ["sqlite://host/x.db", "sqlite:///", "sqlite:///x.db?y=1"])
def test_url_that_names_no_file_is_refused(url, tmp_path):
    with pytest.raises(CallError):
        open_online(Url.parse(url, root=tmp_path))

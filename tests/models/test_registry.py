"""The registry: bundles that are found as they were put, rows that are written once, and every way it can be away."""

import contextlib
import os
import sqlite3
import threading
from random import Random

import pytest

from endpoints.door import make_popular, make_tastes
from headrace.base.errors import CallError, FencedError, FormatError, UnavailableError, UnknownNameError
from headrace.base.urls import Url
from headrace.models import registry_sqlite
from headrace.models.model import Bundle
from headrace.models.registry import Entry, open_registry


@pytest.fixture
def path(tmp_path):
    return tmp_path / "my règistry.db"


@pytest.fixture
def open_one(path):
    """Opens the same registry each time, as another process would; all are closed at the end."""
    with contextlib.ExitStack() as stack:

        def open_it():
            one = open_registry(Url.parse(f"sqlite:///{path.name}", root=path.parent))
            stack.callback(one.close)
            return one

        yield open_it


def _entry(number, *, name="home", value=b"{}", kind="trial"):
    return Entry(number, kind, name, value, 7, "ann")


def test_bundle_is_loaded_as_it_was_added(open_one):
    one, other = open_one(), open_one()
    for bundle in (make_popular(), make_tastes()):
        assert one.add(bundle) == bundle.hash
        assert other.load(bundle.hash).packed == bundle.packed
        assert one.add(bundle) == bundle.hash
    assert [found.name for found in other.bundles()] == ["tastes", "popular"]
    (found,) = other.bundles("popular")
    assert (found.hash, found.kind, found.size, found.manifest) == (
        make_popular().hash,
        "popularity",
        len(make_popular().packed),
        make_popular().manifest,
    )


def test_newest_bundle_of_a_name_comes_first(open_one):
    one = open_one()
    bundles = [make_popular(marked=number) for number in (3, 1, 2)]
    for bundle in bundles:
        one.add(bundle)
    assert [found.hash for found in one.bundles("popular")] == [bundle.hash for bundle in reversed(bundles)]


def test_unknown_bundle_is_told_with_those_that_are_there(open_one):
    one = open_one()
    with pytest.raises(UnknownNameError, match=r"no bundle 'ffff'.  known: none yet"):
        one.load("ffff")
    one.add(make_popular())
    with pytest.raises(UnknownNameError, match=make_popular().hash):
        one.load("ffff")


def test_stamp_changes_with_every_bundle_and_row(open_one):
    one, other = open_one(), open_one()
    stamps = [other.stamp()]
    one.add(make_popular())
    stamps.append(other.stamp())
    one.write(_entry(0))
    stamps.append(other.stamp())
    one.write(_entry(1))
    stamps.append(other.stamp())
    one.add(make_popular())
    assert len(set(stamps)) == 4
    assert other.stamp() == stamps[-1]


def test_row_is_written_only_on_top_of_the_newest(open_one):
    one, other = open_one(), open_one()
    (first,) = one.write(_entry(0, value=b"1"))
    (second,) = other.write(_entry(first.id, value=b"2"))
    for late in (0, first.id, second.id + 1):
        with pytest.raises(FencedError, match="the trial of 'home' was changed by somebody else meanwhile"):
            one.write(_entry(late, value=b"3"))
    assert one.newest("trial") == {"home": second}
    assert [row.value for row in other.entries("trial", "home")] == [b"1", b"2"]
    # Another name, and another kind, has a newest of its own.
    one.write(_entry(0, name="search"))
    one.write(_entry(0, kind="verdict"))
    assert sorted(other.newest("trial")) == ["home", "search"]


def test_of_many_who_write_at_once_each_row_has_one_winner(path, open_one):
    open_one()
    barrier, won = threading.Barrier(4), []

    def write(number):
        registry = open_registry(Url.parse(f"sqlite:///{path.name}", root=path.parent))
        barrier.wait()
        for _ in range(20):
            newest = registry.newest("trial").get("home")
            with contextlib.suppress(FencedError):
                won.append(registry.write(_entry(newest.id if newest else 0, value=str(number).encode()))[0].id)
        registry.close()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == sorted(set(won)) == [row.id for row in open_one().entries("trial", "home")]
    assert len(won) >= 20


def _damage(path, name_hash, change):
    """Changes the bytes of a bundle behind the registry's back."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (packed,) = connection.execute("select packed from bundles where hash = ?", (name_hash,)).fetchone()
        connection.execute("update bundles set packed = ? where hash = ?", (change(packed), name_hash))
        connection.commit()


@pytest.mark.parametrize("make", [make_popular, make_tastes])
def test_flipped_byte_makes_a_bundle_a_format_error_wherever_it_lies(path, open_one, make):
    registry, bundle, draw = open_one(), make(), Random(5)
    registry.add(bundle)
    packed = bundle.packed
    for place in [*range(0, 40, 3), *draw.sample(range(len(packed)), 60), len(packed) - 1]:
        damaged = bytearray(packed)
        damaged[place] ^= draw.randrange(1, 256)
        _damage(path, bundle.hash, lambda _, value=bytes(damaged): value)
        with pytest.raises(FormatError, match="bundle"):
            registry.load(bundle.hash)
    _damage(path, bundle.hash, lambda _: packed)
    assert registry.load(bundle.hash).hash == bundle.hash


def test_bundle_in_anothers_place_is_not_taken_for_it(path, open_one):
    registry = open_one()
    for bundle in (make_popular(), make_tastes()):
        registry.add(bundle)
    _damage(path, make_popular().hash, lambda _: make_tastes().packed)
    with pytest.raises(FormatError, match=f"the bundle {make_popular().hash} is damaged: its manifest has the hash"):
        registry.load(make_popular().hash)


def test_registry_that_cannot_be_opened_says_why(tmp_path, open_one, path):
    path.write_bytes(b"this is no database, whatever it is called" * 100)
    with pytest.raises(FormatError, match="cannot be read: file is not a database"):
        open_one()
    path.unlink()
    path.mkdir()
    with pytest.raises(UnavailableError, match="does not answer"):
        open_one()
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match="cannot make the folder of the registry"):
        open_registry(Url.parse("sqlite:///file/registry.db", root=tmp_path))
    for url in ("sqlite://", "sqlite://host/registry.db"):
        with pytest.raises(CallError, match=r"write sqlite:///path/of/file.db"):
            open_registry(Url.parse(url, root=tmp_path))


def test_registry_of_a_newer_format_is_refused(path, open_one):
    open_one().close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("pragma user_version = 9")
    with pytest.raises(FormatError, match="has format 9, this Headrace reads formats up to 1"):
        open_one()


def test_registry_that_somebody_locks_is_read_and_told_as_unavailable_to_writers(path, open_one, monkeypatch):
    monkeypatch.setattr(registry_sqlite, "_PATIENCE_SECONDS", 0.1)
    registry = open_one()
    registry.add(make_popular())
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("begin immediate")
        assert registry.load(make_popular().hash).hash == make_popular().hash
        with pytest.raises(UnavailableError, match="does not answer: database is locked"):
            registry.write(_entry(0))
        with pytest.raises(UnavailableError, match="does not answer: database is locked"):
            registry.add(make_tastes())
        other.execute("rollback")
    assert registry.write(_entry(0))[0].id == 1


def test_file_that_is_put_in_the_registrys_place_is_followed(path, open_one, tmp_path):
    registry = open_one()
    registry.add(make_popular())
    stamps = [registry.stamp()]
    for file in (path, *path.parent.glob(f"{path.name}-*")):
        file.rename(tmp_path / file.name.replace(path.name, "old.db"))
    for act in (registry.stamp, registry.bundles, lambda: registry.add(make_tastes())):
        with pytest.raises(UnavailableError, match=r"was opened and is gone: No such file or directory\. Put it back"):
            act()
    assert not path.exists(), "nothing stands in the way of the file that is put back"
    path.write_bytes(b"this is no database, whatever it is called" * 100)
    with pytest.raises(FormatError, match="cannot be read: file is not a database"):
        registry.stamp()
    path.unlink()
    open_one().add(make_tastes())
    stamps.append(registry.stamp())
    assert [found.name for found in registry.bundles()] == ["tastes"]
    assert len(set(stamps)) == 2, "of as many rows, and yet another one"
    registry.write(_entry(0))
    assert open_one().newest("trial")["home"] == _entry(1)


def test_bundle_that_is_too_large_is_refused_before_anything_is_written(open_one, monkeypatch):
    monkeypatch.setattr(registry_sqlite, "_MAX_BYTES", 100)
    registry = open_one()
    with pytest.raises(CallError, match=r"the bundle 'popular' has .* bytes, the registry takes 100"):
        registry.add(make_popular())
    assert registry.bundles() == []


def test_what_was_added_outlives_its_writer(path, open_one):
    open_one().add(make_popular())
    child = os.fork()
    if not child:
        registry = open_registry(Url.parse(f"sqlite:///{path.name}", root=path.parent))
        registry.add(make_tastes())
        registry.write(_entry(0))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    found = open_one()
    assert len(found.bundles()) == 2
    assert found.newest("trial")["home"] == _entry(1)


def test_source_and_parameters_may_hold_any_json(open_one):
    registry = open_one()
    source = {"table": "events", "version": 3, "positions": [1, 2], "deep": {"ä": [None, True, 0.1, "日本"]}}
    bundle = Bundle("one", "popularity", {"half_life_us": 259_200_000_000}, source, make_popular().arrays)
    found = registry.load(registry.add(bundle))
    assert found.source == source

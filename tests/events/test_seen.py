"""The index of seen ids against a plain dict, through kills, merges, repeats and damaged files."""

import random
import resource
import tempfile
from itertools import islice
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from headrace.base.errors import FormatError
from headrace.events.seen import SPILL, Seen


def make_keys(count, seed=0):
    """Returns keys as hashes are: random."""
    draw = random.Random(seed)
    return [draw.randbytes(16) for _ in range(count)]


def store(seen):
    """Saves, as a caller whose transaction went well."""
    manifest = seen.save()
    seen.saved()
    return manifest


def files(folder, kind="*"):
    return sorted(path.name for path in folder.glob(f"*.{kind}"))


# Half of them share their first half with forty others.
_KEYS = make_keys(400) + [one[:8] + other[:8] for one in make_keys(10, seed=1) for other in make_keys(40, seed=2)]


class SeenAndDict(RuleBasedStateMachine):
    """All that a settler does with an index, in any order; runs of 16 entries merge as runs of 32k do."""

    def __init__(self):
        super().__init__()
        self.held = tempfile.TemporaryDirectory()
        self.folder = Path(self.held.name) / "clicks-0"
        self.seen = Seen.open(self.folder, spill=16)
        self.expected, self.before, self.now, self.looks = {}, 0, 0, 0
        self.stored = (b"", {}, 0)

    def teardown(self):
        self.seen.close()
        self.held.cleanup()

    def take(self, entries):
        self.seen.add(entries)
        self.expected.update(entries)

    @rule(indexes=st.lists(st.integers(0, len(_KEYS) - 1), max_size=40), step=st.integers(0, 3))
    def add(self, indexes, step):
        self.now += step
        self.take({_KEYS[index]: self.now * 2 + index % 2 for index in indexes})

    @rule(seed=st.integers(0, 1000))
    def add_many(self, seed):
        self.now += 1
        self.take(dict.fromkeys(random.Random(seed).sample(_KEYS, 200), self.now * 2))

    @rule()
    def save(self):
        self.stored = (store(self.seen), dict(self.expected), self.before)

    @rule()
    def save_without_storing(self):
        self.seen.save()

    @rule()
    def store_without_deleting(self):
        self.stored = (self.seen.save(), dict(self.expected), self.before)

    @rule()
    def kill(self):
        self.seen.close()
        manifest, self.expected, self.before = self.stored[0], dict(self.stored[1]), self.stored[2]
        self.seen = Seen.open(self.folder, manifest, spill=16)

    @rule(back=st.integers(0, 20))
    def forget(self, back):
        self.before = max(self.before, (self.now - back) * 2)
        self.seen.forget(self.before)

    @rule()
    def clear(self):
        self.seen.clear()
        self.expected = {}

    @invariant()
    def agree(self):
        # Not all of them each time: most must be read from files.
        self.looks += 1
        keys = _KEYS[self.looks % 7 :: 7]
        found = self.seen.find(keys)
        expected = {key: self.expected[key] for key in keys if key in self.expected}
        assert {key: value for key, value in expected.items() if value >= self.before}.items() <= found.items()
        # What was forgotten is gone or has its newest value, never an older one.
        assert found.items() <= expected.items()


TestSeenAndDict = pytest.mark.slow(SeenAndDict.TestCase)
TestSeenAndDict.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


@pytest.fixture
def seen(tmp_path):
    """An empty index whose runs are small."""
    one = Seen.open(tmp_path, spill=16)
    yield one
    one.close()


def test_nothing_in_gives_nothing_out(tmp_path, seen):
    seen.add({})
    seen.forget(1 << 62)
    assert (len(seen), seen.find([]), seen.find(make_keys(3))) == (0, {}, {})
    again = Seen.open(tmp_path, store(seen))
    assert (len(again), again.find(make_keys(3)), files(tmp_path)) == (0, {}, [])


def test_newest_value_counts_in_every_layer(seen):
    key, *others = make_keys(3000)
    for value in range(1, len(others), 10):
        seen.add({key: value})
        seen.add(dict.fromkeys(others[value : value + 10], value))
        assert seen.find([key]) == {key: value}
    assert {run.row.level for run in seen._runs()} == {0, 1, 2}


def test_largest_value_comes_back(tmp_path, seen):
    entries = dict.fromkeys(make_keys(40), (1 << 63) - 1)
    seen.add(entries)
    again = Seen.open(tmp_path, store(seen))
    assert again.find(list(entries)) == entries
    again.close()


def test_equal_first_halves_stay_apart(tmp_path):
    seen = Seen.open(tmp_path, spill=1000)
    half = b"\x07" * 8
    keys = [half + key[8:] for key in make_keys(1000)]
    entries = {key: value for value, key in enumerate(keys)}
    seen.add(entries)
    assert files(tmp_path, "run")
    assert seen.find(keys) == entries
    assert seen.find([half + key[:8] for key in keys]) == {}
    seen.close()


def test_key_is_not_taken_from_the_bytes_between_two_entries(seen):
    first, second = (1 << 8).to_bytes(8, "little"), (2 << 8).to_bytes(8, "little")
    third = (77).to_bytes(8, "little")
    between = second + third
    entries = {first + second: 77, between: 5} | dict.fromkeys(make_keys(14), 1)
    seen.add(entries)
    assert seen.find(list(entries)) == entries


def test_forgets_old_runs_whole_and_nothing_newer(tmp_path, seen):
    keys = make_keys(64)
    for value in range(4):
        seen.add(dict.fromkeys(keys[16 * value : 16 * value + 16], value))
    first = store(seen)
    seen.forget(2)
    assert seen.find(keys) == dict.fromkeys(keys[32:48], 2) | dict.fromkeys(keys[48:], 3)
    assert len(files(tmp_path, "run")) == 4
    assert len(seen.save()) < len(first)
    seen.saved()
    assert len(files(tmp_path, "run")) == 2


def test_forgetting_brings_no_older_value_back(seen):
    keys = make_keys(16)
    seen.add(dict.fromkeys(keys, 9))
    seen.add(dict.fromkeys(keys, 3))
    seen.forget(5)
    assert seen.find(keys) == dict.fromkeys(keys, 3)


def test_many_at_once_become_runs_of_the_usual_size(seen):
    entries = {key: value for value, key in enumerate(make_keys(3000))}
    seen.add(entries)
    assert seen.find(list(entries)) == entries
    assert len(seen) == 3000
    assert [run.row.count for run in seen._sealed] == [16 * 8 * 8] * 2
    # A filter that was never emptied would in the end let everything through.
    assert all(run.words is not seen._active for run in seen._sealed)


def test_manifest_stays_small_and_each_entry_is_written_once(tmp_path):
    seen = Seen.open(tmp_path)
    keys = iter(make_keys(30_000))
    sizes = []
    while part := list(islice(keys, 700)):
        seen.add(dict.fromkeys(part, 1))
        sizes.append(len(store(seen)))
    assert max(sizes) < 30_000
    journal = tmp_path / files(tmp_path)[0]
    assert files(tmp_path) == [journal.name]
    assert 29_000 * 24 < journal.stat().st_size <= 30_000 * 24
    seen.close()


def test_same_keys_again_and_again_take_bounded_space(tmp_path):
    seen = Seen.open(tmp_path, spill=2000)
    keys = make_keys(1500)
    for value in range(20):
        seen.add(dict.fromkeys(keys, value))
        manifest = store(seen)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 6000 * 24
    seen.close()
    again = Seen.open(tmp_path, manifest)
    assert again.find(keys) == dict.fromkeys(keys, 19)
    again.close()


def test_files_of_the_stored_manifest_stay_until_the_next_is_stored(tmp_path, seen):
    keys = make_keys(16 * 8)
    seen.add(dict.fromkeys(keys[:112], 1))
    store(seen)
    before = set(files(tmp_path))
    seen.add(dict.fromkeys(keys[112:], 1))
    seen.save()
    assert before < set(files(tmp_path))
    seen.saved()
    assert len(files(tmp_path)) == 1


def test_opening_deletes_what_the_manifest_does_not_name_and_nothing_else(tmp_path, seen):
    foreign = tmp_path / "notes.run"
    foreign.write_text("mine")
    seen.add(dict.fromkeys(make_keys(16), 1))
    manifest = store(seen)
    named = files(tmp_path)
    seen.add(dict.fromkeys(make_keys(64, seed=1), 1))
    assert len(files(tmp_path)) > len(named)
    Seen.open(tmp_path, manifest).close()
    assert files(tmp_path) == named
    Seen.open(tmp_path).close()
    assert files(tmp_path) == [foreign.name]


def test_what_was_written_after_the_stored_manifest_is_not_read(tmp_path):
    first = Seen.open(tmp_path, spill=5000)
    keys = make_keys(4000)
    first.add(dict.fromkeys(keys[:2000], 1))
    manifest = store(first)
    first.add(dict.fromkeys(keys, 7))
    assert len(first.save()) == len(manifest)
    first.close()
    again = Seen.open(tmp_path, manifest, spill=5000)
    assert again.find(keys) == dict.fromkeys(keys[:2000], 1)
    again.close()


def test_frozen_predecessor_that_wakes_does_no_harm(tmp_path):
    old = Seen.open(tmp_path, spill=5000)
    keys = make_keys(4000)
    old.add(dict.fromkeys(keys[:2000], 1))
    new = Seen.open(tmp_path, store(old), spill=5000)
    new.add(dict.fromkeys(keys[2000:], 8))
    manifest = new.save()
    old.add(dict.fromkeys(keys[2000:], 7))
    old.save()
    old.clear()
    old.add(dict.fromkeys(keys, 6))
    old.save()
    old.close()
    new.close()
    again = Seen.open(tmp_path, manifest)
    assert again.find(keys) == dict.fromkeys(keys[:2000], 1) | dict.fromkeys(keys[2000:], 8)
    again.close()


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def _grow(path):
    path.write_bytes(path.read_bytes() + b"\0")


def _flip(place):
    def flip(path):
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)

    return flip


@pytest.mark.parametrize(
    ("kind", "damage", "message"),
    [
        ("run", Path.unlink, "it is missing"),
        ("run", _cut, "bytes instead of"),
        ("run", _grow, "bytes instead of"),
        ("run", _flip(-1), "its filter or index is not the one written"),
        ("run", _flip(16 * 1500 + 24 * 1000), "its filter or index is not the one written"),
        ("journal", Path.unlink, "it is missing"),
        ("journal", _cut, "entries are not those written"),
        ("journal", _flip(100), "entries are not those written"),
    ],
)
def test_damaged_file_is_named(tmp_path, kind, damage, message):
    seen = Seen.open(tmp_path, spill=2000)
    seen.add(dict.fromkeys(make_keys(2000), 1))
    seen.add(dict.fromkeys(make_keys(1500, seed=1), 1))
    manifest = store(seen)
    seen.close()
    (name,) = files(tmp_path, kind)
    damage(tmp_path / name)
    with pytest.raises(FormatError, match=f"{name}: .*{message}"):
        Seen.open(tmp_path, manifest)
    empty = Seen.open(tmp_path)
    assert (len(empty), files(tmp_path)) == (0, [])


def test_damaged_entries_are_found_when_they_are_read(tmp_path):
    seen = Seen.open(tmp_path, spill=2000)
    keys = make_keys(2000)
    seen.add(dict.fromkeys(keys, 1))
    manifest = store(seen)
    seen.close()
    (name,) = files(tmp_path)
    again = Seen.open(tmp_path, manifest, spill=2000)
    _flip(24 * 300)(tmp_path / name)
    with pytest.raises(FormatError, match=f"{name}: entries 256 to 384 are not those written"):
        again.find(keys)
    again.close()


@pytest.mark.parametrize("manifest", [b"{", b"\xc0", msgspec.msgpack.encode([2, [], None, b""])])
def test_foreign_manifest_is_refused(tmp_path, manifest):
    with pytest.raises(FormatError, match=r"its manifest is|version 2, this Headrace reads version 1"):
        Seen.open(tmp_path, manifest)


def test_failed_write_loses_nothing(tmp_path, seen):
    keys = make_keys(200)
    seen.add(dict.fromkeys(keys[:120], 1))
    before = files(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            seen.add(dict.fromkeys(keys[120:], 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(tmp_path) == before
    seen.add(dict.fromkeys(keys[120:], 1))
    assert seen.find(keys) == dict.fromkeys(keys, 1)


@pytest.mark.slow
def test_usual_size_merges_and_comes_back(tmp_path):
    seen = Seen.open(tmp_path)
    keys = make_keys(8 * SPILL + 1000)
    entries = {key: value for value, key in enumerate(keys)}
    for start in range(0, len(keys), 512):
        seen.add({key: entries[key] for key in keys[start : start + 512]})
    manifest = store(seen)
    seen.close()
    again = Seen.open(tmp_path, manifest)
    assert [run.row.level for run in again._runs()] == [1]
    assert again.find(keys[::50]) == dict(islice(entries.items(), 0, None, 50))
    assert again.find(make_keys(5000, seed=1)) == {}
    again.close()

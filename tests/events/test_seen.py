"""The index of seen ids against a plain dict, through kills, merges, repeats and damaged files."""

import os
import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

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


# Few first halves, so that many keys differ in their second half only.
_KEYS = [first + second for first in make_keys(12) for second in make_keys(40, seed=1)]
_KEYS = [key[:8] + key[16:24] for key in _KEYS] + make_keys(400, seed=2)


class SeenAndDict(RuleBasedStateMachine):
    """Everything that a settler does with an index, in any order; runs of 16 entries merge as runs of 32k do."""

    @initialize(tmp_path=st.builds(lambda: None))
    def start(self, tmp_path):
        import tempfile

        self.held = tempfile.TemporaryDirectory()
        from pathlib import Path

        self.folder = Path(self.held.name) / "clicks-0"
        self.seen = Seen.open(self.folder, spill=16)
        self.expected, self.before, self.now = {}, 0, 0
        self.stored = (b"", {}, 0)

    def teardown(self):
        self.seen.close()
        self.held.cleanup()

    @rule(indexes=st.lists(st.integers(0, len(_KEYS) - 1), max_size=40), step=st.integers(0, 3))
    def add(self, indexes, step):
        self.now += step
        entries = {_KEYS[index]: self.now * 2 + index % 2 for index in indexes}
        self.seen.add(entries)
        self.expected.update(entries)

    @rule(seed=st.integers(0, 1000))
    def add_many(self, seed):
        self.now += 1
        entries = dict.fromkeys(random.Random(seed).sample(_KEYS, 200), self.now * 2)
        self.seen.add(entries)
        self.expected.update(entries)

    @rule()
    def save(self):
        self.stored = (store(self.seen), dict(self.expected), self.before)

    @rule()
    def save_without_storing(self):
        self.seen.save()

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
        found = self.seen.find(_KEYS)
        assert {key: value for key, value in found.items() if value >= self.before} == {
            key: value for key, value in self.expected.items() if value >= self.before
        }
        # What was forgotten is gone or has its newest value, never an older one.
        assert found.items() <= self.expected.items()


TestSeenAndDict = SeenAndDict.TestCase
TestSeenAndDict.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)

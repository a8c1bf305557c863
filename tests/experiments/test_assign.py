"""Buckets are those of GrowthBook's SDKs, one at a time or a million."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import chdtrc

from headrace.base.errors import CallError
from headrace.experiments.assign import NUM_BUCKETS, arms_of, assign, bucket, buckets

# From the cases that all of GrowthBook's SDKs are tested with, and from its SDKs for JavaScript and Python.
PUBLISHED = [
    ("seed", "a", 505),
    ("seed", "b", 2696),
    ("foo", "ab", 2575),
    ("foo", "def", 2019),
    ("89123klj", "8952klfjas09ujkasdf", 1240),
    ("90850943850283058242805", "123", 7516),
    ("()**(%$##$%#$#", '___)((*":&', 128),
    ("exp-carousel", "u1", 1556),
    ("exp-carousel", "u2", 9812),
    ("exp-carousel", "u3", 4185),
    ("exp-carousel", "u4", 3523),
]

TEXT = st.text(st.characters(), max_size=40)


def _slow_bucket(seed, value, *, letters=lambda text: [ord(letter) for letter in text]):
    """The definition, as GrowthBook's Python SDK writes it down."""
    text = seed + value
    for _ in range(2):
        state = 0x811C9DC5
        for letter in letters(text):
            state = (state ^ letter) * 0x01000193 % 2**32
        text = str(state)
    return state % NUM_BUCKETS


def _code_units(text):
    data = text.encode("utf-16-le", "surrogatepass")
    return [int.from_bytes(data[i : i + 2], "little") for i in range(0, len(data), 2)]


@pytest.mark.parametrize(("seed", "value", "expected"), PUBLISHED)
def test_bucket_is_the_published_one(seed, value, expected):
    assert bucket(seed, value) == expected
    assert buckets(seed, [value]).tolist() == [expected]


@settings(derandomize=True, deadline=None)
@given(st.text(st.characters(max_codepoint=0xFFFF), max_size=20), st.text(st.characters(max_codepoint=0xFFFF)))
def test_bucket_of_text_in_the_basic_plane_is_that_of_python_and_javascript(seed, value):
    assert bucket(seed, value) == _slow_bucket(seed, value) == _slow_bucket(seed, value, letters=_code_units)


@settings(derandomize=True, deadline=None)
@given(TEXT, TEXT)
def test_bucket_of_any_text_is_that_of_javascript(seed, value):
    assert bucket(seed, value) == _slow_bucket(seed, value, letters=_code_units)


def test_lone_surrogates_and_emoji_have_a_bucket():
    values = ["\ud83d", "\ud83d\ude00", "\U0001f600", "ann\0", "ann", "", "\0"]
    found = [bucket("s", value) for value in values]
    assert found == [_slow_bucket("s", value, letters=_code_units) for value in values]
    assert buckets("s", values).tolist() == found
    assert found[1] == found[2]
    assert found[3] != found[4]


@settings(derandomize=True, deadline=None)
@given(
    st.lists(TEXT, max_size=4),
    st.lists(TEXT | st.text("ab\0é", min_size=250, max_size=300) | st.text(st.characters(max_codepoint=127))),
)
def test_buckets_at_once_are_those_one_by_one(seeds, values):
    found = buckets(seeds, values)
    assert found.dtype == np.uint16
    assert found.shape == (len(seeds), len(values))
    assert found.tolist() == [[bucket(seed, value) for value in values] for seed in seeds]
    for seed, row in zip(seeds, found, strict=True):
        assert buckets(seed, values).tolist() == row.tolist()


def test_buckets_at_once_are_those_one_by_one_across_blocks():
    values = [f"{'visitor' * (i % 7)}{i}" for i in range(9000)]
    seeds = [f"seed-{i}" for i in range(20)]
    found = buckets(seeds, values)
    for row, column in [(0, 0), (7, 8191), (8, 8192), (19, 8999), (13, 5000)]:
        assert found[row, column] == bucket(seeds[row], values[column])
    assert found[0].tolist() == [bucket(seeds[0], value) for value in values]
    assert found[:, -1].tolist() == [bucket(seed, values[-1]) for seed in seeds]


# The seeds are fixed: these two can raise no false alarm. Their bound is p > 1e-6.
def test_buckets_are_uniform():
    found = buckets("a-seed", [f"visitor-{i}" for i in range(200_000)])
    counts = np.bincount(found, minlength=NUM_BUCKETS)
    assert chdtrc(NUM_BUCKETS - 1, float(((counts - 20) ** 2 / 20).sum())) > 1e-6


def test_arms_of_two_experiments_are_independent():
    arms = arms_of(buckets(["one", "two"], [f"visitor-{i}" for i in range(100_000)]), (0.5, 0.5))
    counts = np.bincount(arms[0] * 2 + arms[1])
    assert chdtrc(3, float(((counts - 25_000) ** 2 / 25_000).sum())) > 1e-6


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
    st.lists(st.integers(0, 5000), min_size=1, max_size=6),
    st.integers(0, 20).map(lambda twentieths: twentieths / 20),
)
def test_arms_at_once_are_those_one_by_one(sizes, coverage):
    sizes = [size * 20 // max(1, sum(sizes)) for size in sizes]
    sizes[0] += 20 - sum(sizes)
    weights = [size / 20 for size in sizes]
    values = [f"u{i}" for i in range(100)]
    arms = [assign("s", value, weights, coverage=coverage) for value in values]
    assert arms_of(buckets("s", values), weights, coverage=coverage).tolist() == [
        -1 if arm is None else arm for arm in arms
    ]


def test_arms_take_the_ranges_of_growthbook():
    found = np.arange(NUM_BUCKETS, dtype=np.uint16)
    arms = arms_of(found, (0.2, 0.3, 0.5), coverage=0.2)
    ranges = [(0.0, 0.04), (0.2, 0.26), (0.5, 0.6)]
    for arm, (start, end) in enumerate(ranges):
        assert np.flatnonzero(arms == arm).tolist() == list(range(round(start * 10_000), round(end * 10_000)))


def test_assigned_visitors_keep_their_arm_when_coverage_grows():
    found = buckets("s", [f"u{i}" for i in range(5000)])
    before, after = (arms_of(found, (0.5, 0.5), coverage=coverage) for coverage in (0.1, 0.6))
    assert 0 < (before >= 0).sum() < (after >= 0).sum()
    assert (after[before >= 0] == before[before >= 0]).all()


def test_an_arm_without_weight_gets_nobody():
    found = np.arange(NUM_BUCKETS, dtype=np.uint16)
    assert set(arms_of(found, (0.0, 1.0, 0.0)).tolist()) == {1}
    assert {assign("s", f"u{i}", (1.0, 0.0)) for i in range(50)} == {0}


@pytest.mark.parametrize(
    ("weights", "coverage", "message"),
    [
        ((1 / 3, 1 / 3, 1 / 3), 1.0, "is 3333.3333 of 10,000 buckets: visitors are split in steps of 0.01 %"),
        ((0.5, 0.5), 0.0001, "coverage 0.0001 of the weight 0.5 is 0.5000 of 10,000 buckets"),
        ((0.5, 0.4), 1.0, r"sum to 0.9; they must sum to 1 \(to enrol fewer visitors, give a coverage\)"),
        ((0.5, 0.5), 1.1, "coverage is a share from 0 to 1, got 1.1"),
        ((0.5, 0.5), float("nan"), "coverage is a share from 0 to 1, got nan"),
        ((1.5, -0.5), 1.0, "the weight 1.5 is not a share from 0 to 1"),
        ((float("nan"), 1.0), 1.0, "the weight nan is not a share"),
        ((), 1.0, "1 to 127 arms, got 0 weights"),
    ],
)
def test_allocation_that_no_bucket_can_hold_is_refused(weights, coverage, message):
    with pytest.raises(CallError, match=message):
        assign("s", "u", weights, coverage=coverage)


def test_decimal_weights_are_whole_buckets():
    for size in range(NUM_BUCKETS + 1):
        assert len(np.flatnonzero(arms_of(np.arange(NUM_BUCKETS), (size / 1e4, 1 - size / 1e4)) == 0)) == size

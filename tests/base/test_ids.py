"""Ids sort by the time at which they were made."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.base.ids import make_id, read_time_us

TIMES = st.integers(0, (1 << 48) * 1000 - 1)
RANDOM = st.binary(min_size=10, max_size=10)


@given(TIMES, TIMES, RANDOM, RANDOM)
def test_ids_sort_by_time_and_give_it_back(first_us, second_us, a, b):
    first, second = make_id(first_us, a), make_id(second_us, b)
    assert len(first) == len(second) == 26
    assert read_time_us(first) == first_us // 1000 * 1000
    if first_us // 1000 != second_us // 1000:
        assert (first < second) == (first_us < second_us)
    else:
        assert (first < second) == (a < b)


def test_what_is_no_id_is_refused():
    for text in ("", "01HF7YAT00000000000000000", "01HF7YAT00000000000000000U", "01hf7yat000000000000000000"):
        with pytest.raises(ValueError, match="is not a Headrace id"):
            read_time_us(text)
    with pytest.raises(ValueError, match="needs 10 random bytes, got 9"):
        make_id(0, bytes(9))

"""A row of a page: frequencies that equal its propensities, and what it may and may not hold."""

import inspect
from collections import Counter, defaultdict
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from endpoints.door import Scores
from headrace.base.errors import FormatError
from headrace.endpoints import carousel
from headrace.endpoints.carousel import Rule, choose, find_best
from headrace.models import Bundle, open_bundle
from headrace.models.model import pack_texts
from headrace.models.taste import person_keys

FALSE_ALARM = 1e-6
"""How often one check of frequencies accuses a choice that does what its propensities say."""


def _scorer(num_items):
    """Returns a taste bundle in which "ann" and "bob" rank otherwise than others."""
    keys = person_keys(["ann", "bob"])
    order = np.argsort(keys)
    arrays = {
        "items": pack_texts([f"item-{number}" for number in range(num_items)]),
        "categories": pack_texts([f"genre-{number % 3}" for number in range(num_items)]),
        "counts": np.arange(num_items, dtype=float)[::-1] ** 2,
        "genres": pack_texts(["genre-0", "genre-1", "genre-2"]),
        "item_genres": np.arange(num_items, dtype=np.int32) % 3,
        "persons": keys[order],
        "genre_clicks": np.array([[1, 7, 2], [9, 0, 0]], np.float32)[order],
    }
    return open_bundle(Bundle("tastes", "taste", {"prior": 2.0}, {}, arrays))


def _find_misfit(choosing, *, rule, seen=(), num_items=8, seeds):
    """Returns what a request's replays show other than their propensities say, or nothing.

    Slot for slot, the replays that agree in the slots above are counted by their next item; each count is tested
    against its propensity by the exact binomial tails, all tests of a call together at `FALSE_ALARM`.
    """
    scorer = _scorer(num_items)
    draw = Random(11)
    counts, stated = defaultdict(Counter), {}
    for _ in range(seeds):
        row = choosing(scorer, "ann", seen, rule=rule, seed=draw.getrandbits(56))
        for slot, (item, propensity) in enumerate(zip(row.items, row.propensities, strict=True)):
            above = row.items[:slot]
            if stated.setdefault((above, item), propensity) != propensity:
                return f"{item} has other chances below {above}"
            counts[above][item] += 1
    cells = [(above, item) for above, found in counts.items() for item in found]
    least = FALSE_ALARM / (len(cells) + len(counts))
    for above, found in counts.items():
        total = sum(found.values())
        for item, count in found.items():
            if _surprise(count, total, stated[above, item]) < least:
                return f"{item} stands below {above} {count} of {total} times, not {stated[above, item]:.4f}"
        rest = 1 - sum(stated[above, item] for item in found)
        if rest < -1e-9 or (rest > 1e-9 and (1 - rest) ** total < least):
            return f"the chances below {above} leave {rest:.4f} to nothing"
    return None


def _surprise(count, total, chance):
    if chance >= 1:
        return float(count == total)
    below = special.bdtr(count, total, chance)
    above = special.bdtrc(count - 1, total, chance) if count else 1.0
    return min(1.0, 2 * min(float(below), float(above)))


CASES = {
    "as usual": {"rule": Rule(4, 0.1)},
    "with seen items": {"rule": Rule(4, 0.1), "seen": ("item-0", "item-4", "item-5", "gone")},
    "fewer items than slots": {"rule": Rule(10, 0.3), "num_items": 3},
    "all seen": {"rule": Rule(3, 0.2), "num_items": 3, "seen": ("item-0", "item-1", "item-2")},
    "no exploration": {"rule": Rule(4, 0.0)},
    "half exploration": {"rule": Rule(4, 0.5), "seen": ("item-0", "item-5")},
    "only exploration": {"rule": Rule(2, 1.0)},
    "one item": {"rule": Rule(3, 0.5), "num_items": 1},
}


@pytest.mark.parametrize("case", CASES)
def test_frequencies_equal_propensities_in_each_slot(case):
    assert _find_misfit(choose, **CASES[case], seeds=5_000) is None


@pytest.mark.slow
def test_frequencies_of_a_hundred_thousand_replays_equal_propensities():
    assert _find_misfit(choose, **CASES["with seen items"], seeds=100_000) is None


MUTANTS = {
    "the share of exploration is that of all items": ("rule.explore / left", "rule.explore / len(items)"),
    "the share of exploration does not shrink with the slots": ("left -= 1", "pass"),
    "the best one has no share of exploration": ("+ rule.explore / left", "+ (chosen != top) * rule.explore / left"),
    "explored items come from all that were not seen": (
        "_draw_left(len(items), used,",
        "_draw_left(len(items), excluded,",
    ),
    "explored items may have been seen": ("_draw_left(len(items), used,", "_draw_left(len(items), taken,"),
    "explored items are never the best one": ("_draw_left(len(items), used,", "_draw_left(len(items), {*used, top},"),
    "the best one stays the best one of the first slot": ("if top in used or top < 0:", "if top < 0:"),
    "exploration is rarer than it says": ("if draw() < rule.explore else", "if draw() < rule.explore * 0.9 else"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_planted_error_shows_in_the_frequencies(mutant):
    old, new = MUTANTS[mutant]
    source = inspect.getsource(choose)
    assert source.count(old) == 1
    scope = dict(vars(carousel))
    exec(source.replace(old, new), scope)
    assert _find_misfit(scope["choose"], **CASES["half exploration"], seeds=8_000) is not None


@settings(max_examples=150, deadline=None)
@given(
    num_items=st.integers(0, 12),
    seen=st.lists(st.integers(0, 13).map("item-{}".format), max_size=14),
    per_row=st.integers(1, 14),
    explore=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 2**56 - 1),
)
def test_row_holds_each_item_once_and_none_that_was_seen(num_items, seen, per_row, explore, seed):
    scorer = _scorer(num_items)
    row = choose(scorer, "ann", seen, rule=Rule(per_row, explore), seed=seed)
    free = set(scorer.items) - set(seen)
    allowed = free or set(scorer.items)
    assert len(set(row.items)) == len(row.items) == min(per_row, len(allowed)) == len(row.scores)
    assert set(row.items) <= allowed
    assert row.all_seen == (num_items > 0 and not free)
    assert row.num_candidates == len(allowed)
    assert all(0 < chance <= 1 for chance in row.propensities)
    assert row.categories == tuple(scorer.categories[scorer.places[item]] for item in row.items)
    assert row == choose(scorer, "ann", tuple(sorted(set(seen))), rule=Rule(per_row, explore), seed=seed)


def test_row_without_exploration_is_the_ranking_without_what_was_seen():
    scorer = _scorer(8)
    scores = scorer.scores("ann")
    ranked = sorted(range(8), key=lambda number: -scores[number])
    row = choose(scorer, "ann", ["item-1"], rule=Rule(5, 0.0), seed=3)
    assert row.items == tuple(f"item-{number}" for number in ranked if number != 1)[:5]
    assert row.scores == tuple(float(scores[int(item[5:])]) for item in row.items)
    assert row.propensities == (1.0,) * 5


def test_row_differs_by_person_and_seed():
    scorer, rule = _scorer(8), Rule(8, 0.5)
    rows = {choose(scorer, "ann", (), rule=rule, seed=seed).items for seed in range(20)}
    assert len(rows) > 10
    calm = replace(rule, explore=0.0)
    assert choose(scorer, "ann", (), rule=calm, seed=0).items != choose(scorer, "bob", (), rule=calm, seed=0).items


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_no_numbers_are_refused(wrong):
    for scorer in (Scores([0.1, wrong, 0.3, 0.2]), Scores([wrong] * 4), Scores([0.1] * 3), Scores([0.1] * 5)):
        with pytest.raises(FormatError, match="4 items were given"):
            choose(scorer, "ann", (), rule=Rule(2, 0.0), seed=1)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 45))
def test_best_are_those_of_a_stable_sort(scores, count):
    ranked = sorted(range(len(scores)), key=lambda number: -scores[number])
    assert find_best(np.array(scores, dtype=float), count).tolist() == ranked[: min(count, len(scores))]


def test_what_stands_above_is_left_out_even_where_all_was_seen():
    scorer = Scores([0.4, 0.3, 0.2, 0.1])
    rule = Rule(3, 0.0, above=("a", "of no bundle"))
    row = choose(scorer, "ann", ["b"], rule=rule, seed=1)
    assert (row.items, row.num_candidates, row.all_seen) == (("c", "d"), 2, False)
    row = choose(scorer, "ann", ["a", "b", "c", "d"], rule=rule, seed=1)
    assert (row.items, row.num_candidates, row.all_seen) == (("b", "c", "d"), 3, True)
    row = choose(scorer, "ann", ["b"], rule=Rule(3, 0.0, above=tuple("abcd")), seed=1)
    assert (row.items, row.num_candidates, row.all_seen) == ((), 0, False)

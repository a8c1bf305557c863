"""Trials in worlds whose truth is known: the interval holds it as often as it says, and an A/A finds nothing."""

from __future__ import annotations

import math

import pytest

from verify.worlds import Play, check_centre, check_coverage, check_false_positives, play_all

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def two_hundred() -> list[Play]:
    """Two hundred worlds of 5,000 pages."""
    return play_all(200, with_static=True)


def check(plays: list[Play]) -> None:
    """Asserts that the verdicts tell the truth."""
    assert all(5_000 <= one.pages < 5_100 for one in plays)
    lifts = [one.lift for one in plays]
    _tell(plays)
    check_coverage(lifts)
    check_centre(lifts)
    same = [one.same for one in plays]
    check_false_positives(same)
    check_centre(same)


def _tell(plays: list[Play]) -> None:
    """Prints what was found, for the figures in the documentation."""
    count = len(plays)
    missed = sum(not one.lift.truth.is_inside(one.lift.verdict) for one in plays)
    kinds = ("lift", "same", "lift_doubled", *(("static",) if plays[0].static else ()))
    means = {kind: f"{sum(getattr(one, kind).z for one in plays) / count:.2f}" for kind in kinds}
    significant = sum((one.same.verdict.p or 0) < 0.05 for one in plays)
    found = sum((one.lift.verdict.p or 1) < 0.05 for one in plays)
    errors = [one.lift.z for one in plays]
    spread = math.sqrt(sum((one - sum(errors) / count) ** 2 for one in errors) / (count - 1))
    print(
        f"{count} worlds: {missed} intervals miss, {found} lifts are found, {significant} A/A trials differ; "
        f"the errors told are {1 / spread:.2f} times those made; mean z {means}"
    )


def check_doubled_clicks_are_caught(plays: list[Play]) -> None:
    with pytest.raises(AssertionError, match="A/A trials differ"):
        check_false_positives([one.same_doubled for one in plays])
    with pytest.raises(AssertionError, match="miss the truth"):
        check_coverage([one.lift_doubled for one in plays])
    with pytest.raises(AssertionError, match="err by"):
        check_centre([one.lift_doubled for one in plays])


def test_intervals_hold_the_truth_in_two_hundred_worlds(two_hundred):
    check(two_hundred)


def test_faults_are_caught_in_two_hundred_worlds(two_hundred):
    check_doubled_clicks_are_caught(two_hundred)
    # Both arms' pages at one instant leave out what a page does to those that follow it.
    with pytest.raises(AssertionError, match="err by"):
        check_centre([one.static for one in two_hundred if one.static is not None])

"""Evidence that may be looked at after every visitor."""

import math

import numpy as np
import pytest

from headrace.base.errors import CallError
from headrace.stats.sequential import multinomial_evidence

RANDOM = np.random.default_rng(7)


def test_evidence_of_healthy_counts_seldom_ever_reaches_its_bound():
    """Of 400 healthy trials 20 may ever reach 1 / 0.05 at the very most; 45 have a chance of 1e-7."""
    reached = 0
    for _ in range(400):
        treated = np.cumsum(RANDOM.random(1500) < 0.5)[24::25]
        whole = np.arange(25, 1501, 25)
        evidence = [
            multinomial_evidence((n - t, t), (0.5, 0.5)) for n, t in zip(whole.tolist(), treated.tolist(), strict=True)
        ]
        reached += max(evidence) >= -np.log(0.05)
    assert reached <= 45


def test_evidence_begins_at_one_and_its_mean_stays_there():
    assert multinomial_evidence((0, 0, 0), (0.2, 0.3, 0.5)) == pytest.approx(0)
    # All outcomes of ten visitors, each with its chance: a martingale.
    chances = [float(np.exp(multinomial_evidence((10 - k, k), (0.7, 0.3)))) for k in range(11)]
    mean = sum(math.comb(10, k) * 0.7 ** (10 - k) * 0.3**k * chance for k, chance in enumerate(chances))
    assert mean == pytest.approx(1)


def test_visitors_of_one_arm_alone_are_found_soon():
    assert multinomial_evidence((300, 240), (0.5, 0.5)) < -np.log(1e-5) < multinomial_evidence((500, 300), (0.5, 0.5))


@pytest.mark.parametrize(("counts", "weights"), [((1, 2), (1.0,)), ((1, 2), (1.0, 0.0))])
def test_weights_that_are_none_are_refused(counts, weights):
    with pytest.raises(CallError, match="one weight above 0 per count"):
        multinomial_evidence(counts, weights)

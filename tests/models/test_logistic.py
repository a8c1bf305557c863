"""The regression: what scipy finds, and the same bytes whatever number of threads a library takes."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import minimize

from headrace.models.logistic import chance_of, fit_logistic

FIT = """
import hashlib, numpy as np
from headrace.models.logistic import fit_logistic
draw = np.random.default_rng(3)
columns = [draw.normal(size=60_000) for _ in range(6)]
clicked = draw.random(60_000) < 0.1
found = fit_logistic(columns, clicked, weights=draw.uniform(1, 10, 60_000), ridge=[30.0] * 6)
print(hashlib.sha256(found.weights.tobytes()).hexdigest())
"""


def _make(rows=2_000, columns=4):
    draw = np.random.default_rng(7)
    inputs = [draw.normal(size=rows) for _ in range(columns)]
    odds = -2.0 + 0.8 * inputs[0] - 0.5 * inputs[-1]
    return inputs, draw.random(rows) < chance_of(odds), draw.uniform(1, 10, rows)


def test_weights_are_those_that_a_general_optimiser_finds():
    inputs, clicked, weights = _make()
    found = fit_logistic(inputs, clicked, weights=weights, ridge=[0.0, 1.0, 5.0, 50.0])
    table, sign = np.column_stack([np.ones(len(clicked)), *inputs]), np.where(clicked, -1.0, 1.0)
    ridge = np.array([0.0, 0.0, 1.0, 5.0, 50.0])

    def loss(point):
        return (weights * np.logaddexp(0, sign * (table @ point))).sum() + 0.5 * (ridge * point**2).sum()

    best = minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-4})
    assert loss(np.r_[found.intercept, found.weights]) <= best.fun + 1e-6
    assert [found.intercept, *found.weights] == pytest.approx(best.x, abs=1e-4)


def test_columns_that_say_the_same_share_their_weight():
    inputs, clicked, weights = _make(columns=1)
    found = fit_logistic([*inputs, *inputs], clicked, weights=weights, ridge=[1e-9, 1e-9])
    alone = fit_logistic(inputs, clicked, weights=weights, ridge=[1e-9])
    assert np.isfinite(found.weights).all()
    assert found.weights.sum() == pytest.approx(alone.weights[0], rel=1e-3)


def test_clicks_that_a_column_tells_for_certain_are_fitted_all_the_same():
    column = np.r_[np.full(50, -1.0), np.full(50, 1.0)]
    found = fit_logistic([column], column > 0, weights=np.ones(100), ridge=[1.0])
    assert 1 < found.weights[0] < 10


def test_number_of_threads_changes_no_byte():
    hashes = set()
    for threads in ("1", "4"):
        names = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        done = subprocess.run([sys.executable, "-c", FIT], env=os.environ | names, capture_output=True, check=True)
        hashes.add(done.stdout)
    assert len(hashes) == 1
    assert len(hashes.pop().strip()) == hashlib.sha256().digest_size * 2

"""Adjusted p values, by hand and against statsmodels."""

import math

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from rlhf_lightning.experiment.statistics.multiplicity import adjusted


def test_without_margins_it_is_holms_procedure():
    p = np.random.default_rng(0).beta(0.3, 2, size=9)
    found = adjusted(np.stack([p, np.full(9, math.nan)], axis=1))
    assert found[:, 0] == pytest.approx(multipletests(p, method="holm")[1])
    assert np.isnan(found[:, 1]).all()


def test_a_claim_counts_until_both_of_its_hypotheses_are_rejected():
    # .01 × 2 claims, .02 × 2 (the first claim still has its .3), .3 × 2, and .6 × 1 is below what came before
    found = adjusted(np.array([[0.01, 0.3], [0.02, 0.6]]))
    assert found == pytest.approx(np.array([[0.02, 0.6], [0.04, 0.6]]))


def test_a_claim_with_both_hypotheses_rejected_counts_no_more():
    # .001 × 2, .002 × 2, .03 × 1
    found = adjusted(np.array([[0.001, 0.002], [0.03, math.nan]]))
    assert found == pytest.approx(np.array([[0.002, 0.004], [0.03, math.nan]]), nan_ok=True)


def test_nothing_to_test_is_adjusted_to_nothing():
    assert adjusted(np.empty((0, 2))).shape == (0, 2)

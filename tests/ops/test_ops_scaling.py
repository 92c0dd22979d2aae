"""Maps of scores against numpy."""

import math

import numpy as np
import pytest
import torch

from rlhf_lightning.ops.scaling import magnitude, mean_and_std, min_max, signed_log, standardized

RNG = np.random.default_rng(0)
BATCHES = [
    np.array([1.0, 2.0, 6.0]),
    np.array([-3.0]),
    RNG.normal(5.0, 0.2, 17),
    1000 + 0.5 * RNG.normal(size=64),
    RNG.standard_cauchy(33),
]


def test_magnitude_by_hand():
    values = torch.tensor([[3.0, -5.0], [0.75, 0.1], [0.0, 0.0], [-8.0, 1.0]])
    assert magnitude(values, each_row=True).tolist() == [[4.0], [0.5], [1.0], [8.0]]
    assert magnitude(values).item() == 8.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_magnitude_at_both_ends_of_the_numbers(dtype):
    limits = torch.finfo(dtype)
    for value in (limits.max, limits.tiny, limits.smallest_normal / 4):
        scale = magnitude(torch.tensor([value, -value / 2], dtype=dtype)).item()
        assert math.frexp(scale)[0] == 0.5
        assert scale <= value < 2 * scale or scale <= value / 2 < scale


@pytest.mark.parametrize("values", BATCHES)
def test_mean_and_std_are_those_of_the_population(values):
    mean, std = mean_and_std(torch.tensor(values))
    assert mean.item() == pytest.approx(np.mean(values), abs=1e-12)
    assert std.item() == pytest.approx(np.std(values), abs=1e-12)


def test_standardized_by_hand():
    scores = torch.tensor([1.0, 4.0])
    mean, std = torch.tensor(3.0).double(), torch.tensor(2.0).double()
    assert standardized(scores, mean, std, center=True).tolist() == [-1.0, 0.5]
    assert standardized(scores, mean, std, center=False).tolist() == [0.5, 2.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -0.1, 1e-30, 12345.678, 1e30])
@pytest.mark.parametrize("count", [1, 3, 7, 100])
def test_equal_scores_become_0_or_stay_as_they_are(value, count, dtype):
    scores = torch.full((count,), value, dtype=dtype)
    moments = mean_and_std(scores)
    assert standardized(scores, *moments, center=False).tolist() == scores.tolist()
    centered = standardized(scores, *moments, center=True).abs().max().item()
    assert centered <= 1e-12 * abs(value)
    assert dtype is torch.float64 or centered == 0
    assert min_max(scores).tolist() == [0.0] * count


def test_scores_that_differ_by_little_are_still_told_apart():
    scores = torch.tensor([1.0, 1.0 + 1e-5, 1.0 + 2e-5], dtype=torch.float64)
    found = standardized(scores, *mean_and_std(scores), center=True)
    assert found.tolist() == pytest.approx([-math.sqrt(1.5), 0.0, math.sqrt(1.5)], abs=1e-5)


def test_min_max_by_hand():
    assert min_max(torch.tensor([3.0, -1.0, 0.0, 7.0])).tolist() == [0.5, 0.0, 0.125, 1.0]  # over a range of 8


def test_signed_log_by_hand():
    found = signed_log(torch.tensor([0.0, math.e - 1, 1 - math.e, -1e-6, 99.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([0.0, 1.0, -1.0, -1e-6, math.log(100)], rel=1e-6)


@pytest.mark.parametrize("values", BATCHES)
def test_order_is_kept(values):
    scores = torch.tensor(values)
    order = scores.argsort()
    moments = mean_and_std(scores)
    for found in (standardized(scores, *moments, center=True), min_max(scores), signed_log(scores)):
        assert found.dtype == scores.dtype
        assert (found[order].diff() > 0).all()

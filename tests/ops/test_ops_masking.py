import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.ops.masking import (
    explained_variance,
    masked,
    masked_mean_and_variance,
    masked_sum,
    scattered,
    selected,
    sequence_sum,
    whiten,
)

NAN = float("nan")
VALUES = torch.tensor([[1.0, 2.0, NAN], [4.0, NAN, NAN]])
MASK = torch.tensor([[True, True, False], [True, False, False]])

seeds = st.integers(0, 2**32 - 1)
lengths = st.lists(st.integers(0, 6), min_size=1, max_size=6)
some_lengths = st.lists(st.integers(1, 6), min_size=2, max_size=6)


def ragged(seed: int, lengths: list[int], *, width: int = 6, dtype: torch.dtype = torch.float64):
    """Random values with NaN wherever the mask is False."""
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    values = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.where(mask, 3 * values + 1, NAN).to(dtype), mask


def pad(values, mask, columns: int):
    return (
        torch.cat([values, torch.full((len(values), columns), NAN, dtype=values.dtype)], 1),
        torch.cat([mask, torch.zeros(len(mask), columns, dtype=torch.bool)], 1),
    )


def counted(values, mask) -> np.ndarray:
    """The values that count, picked one by one."""
    rows, columns = mask.shape
    return np.array([values[b, t].item() for b in range(rows) for t in range(columns) if mask[b, t]])


# masked


@pytest.mark.parametrize("hidden", [NAN, math.inf, -math.inf])
def test_masked_by_hand(hidden):
    values = torch.where(MASK, VALUES, hidden).requires_grad_()
    result = masked(values, MASK)
    assert result.tolist() == [[1, 2, 0], [4, 0, 0]]
    result.sum().backward()
    assert torch.equal(values.grad, MASK.float())


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.bfloat16, torch.float64])
def test_masked_keeps_the_type(dtype):
    result = masked(torch.ones(2, 3, dtype=dtype), MASK)
    assert result.dtype == dtype
    assert torch.equal(result, MASK.to(dtype))


# selected


def test_selected_is_selection_by_the_mask_with_the_same_gradient():
    values = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(int(MASK.sum()), 4, dtype=torch.float64)
    assert torch.equal(selected(values, MASK), values[MASK])
    ways = (selected(values, MASK), values[MASK])
    found, expected = (torch.autograd.grad((way * weights).sum(), values)[0] for way in ways)
    assert torch.equal(found, expected)


# scattered


def test_scattered_by_hand():
    mask = torch.tensor([[False, True, False], [True, False, True]])
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    result = scattered(values, mask)
    assert result.tolist() == [[0, 1, 0], [2, 0, 3]]
    (result * torch.tensor([[7.0, 5.0, 7.0], [3.0, 7.0, 4.0]])).sum().backward()
    assert values.grad.tolist() == [5, 3, 4]


@given(seeds, lengths)
def test_scattered_is_the_inverse_of_selection(seed, lengths):
    values, mask = ragged(seed, lengths)
    result = scattered(values[mask], mask)
    assert torch.equal(result, masked(values, mask))
    assert torch.equal(result[mask], values[mask])


# masked_sum


def test_masked_sum_by_hand():
    assert masked_sum(VALUES, MASK).item() == 1 + 2 + 4


def test_masked_sum_accepts_any_shape():
    assert masked_sum(torch.tensor([1.0, NAN, 5.0]), torch.tensor([True, False, True])).item() == 6
    assert masked_sum(torch.ones(2, 3, 4), torch.ones(2, 3, 4, dtype=torch.bool)).item() == 24


@pytest.mark.parametrize("poison", [NAN, math.inf, -math.inf])
def test_masked_sum_gradient_is_the_mask(poison):
    values = torch.where(MASK, VALUES, poison).requires_grad_()
    masked_sum(values, MASK).backward()
    assert torch.equal(values.grad, MASK.float())


def test_masked_sum_of_nothing_is_zero():
    values = torch.full((2, 3), NAN, requires_grad=True)
    total = masked_sum(values, torch.zeros(2, 3, dtype=torch.bool))
    total.backward()
    assert total.item() == 0
    assert torch.equal(values.grad, torch.zeros(2, 3))


def test_masked_sum_keeps_a_nan_that_counts():
    assert masked_sum(torch.tensor([NAN, 1.0]), torch.tensor([True, True])).isnan()


# sequence_sum


def test_sequence_sum_by_hand():
    values = torch.cat([VALUES, torch.full((1, 3), NAN)])
    mask = torch.cat([MASK, torch.zeros(1, 3, dtype=torch.bool)])
    assert sequence_sum(values, mask).tolist() == [1 + 2, 4, 0]


def test_sequence_sum_gradient_is_the_mask():
    values = VALUES.clone().requires_grad_()
    (sequence_sum(values, MASK) * torch.tensor([10.0, 100.0])).sum().backward()
    assert values.grad.tolist() == [[10, 10, 0], [100, 0, 0]]


@given(seeds, lengths, st.integers(1, 4))
def test_sequence_sum_ignores_padding_and_adds_up_to_masked_sum(seed, lengths, columns):
    values, mask = ragged(seed, lengths)
    sums = sequence_sum(values, mask)
    torch.testing.assert_close(sums, sequence_sum(*pad(values, mask, columns)))
    torch.testing.assert_close(sums.sum(), masked_sum(values, mask))


# masked_mean_and_variance


def test_masked_mean_and_variance_by_hand():
    # mean 7/3; variance (1 + 4 + 16)/3 − 49/9 = 63/9 − 49/9 = 14/9
    mean, variance = masked_mean_and_variance(VALUES, MASK)
    assert mean.item() == pytest.approx(7 / 3)
    assert variance.item() == pytest.approx(14 / 9)


@given(seeds, some_lengths)
def test_masked_mean_and_variance_against_numpy(seed, lengths):
    values, mask = ragged(seed, lengths)
    mean, variance = masked_mean_and_variance(values, mask)
    assert mean.item() == pytest.approx(counted(values, mask).mean())
    assert variance.item() == pytest.approx(counted(values, mask).var())


def test_masked_mean_and_variance_of_one_value():
    mean, variance = masked_mean_and_variance(torch.tensor([NAN, 3.5]), torch.tensor([False, True]))
    assert (mean.item(), variance.item()) == (3.5, 0)


def test_masked_mean_and_variance_of_nothing_are_nan():
    mean, variance = masked_mean_and_variance(VALUES, torch.zeros_like(MASK))
    assert mean.isnan()
    assert variance.isnan()


def test_masked_mean_and_variance_survive_a_large_offset():
    # 10⁶ + {0, 1, 2}: mean 1000001, variance 2/3. E[x²] − E[x]² in float32 would lose it (10¹² has a spacing of 65536).
    mean, variance = masked_mean_and_variance(1e6 + torch.tensor([0.0, 1.0, 2.0]), torch.ones(3, dtype=torch.bool))
    assert mean.item() == 1_000_001
    assert variance.item() == pytest.approx(2 / 3)


def test_masked_mean_and_variance_in_bfloat16_lose_only_the_rounding():
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0)).bfloat16()
    mean, variance = masked_mean_and_variance(values + 1, torch.ones(5000, dtype=torch.bool))
    exact = (values + 1).double()
    assert mean.dtype == torch.bfloat16
    assert abs(mean.item() - exact.mean().item()) <= 2**-8
    assert abs(variance.item() - exact.var(correction=0).item()) <= 2**-7


def test_masked_mean_and_variance_gradients_by_hand():
    # ∂mean/∂x = 1/n, ∂variance/∂x = 2 (x − mean)/n, with n = 3 and mean 7/3; 0 where the mask is False
    values = VALUES.clone().requires_grad_()
    mean, variance = masked_mean_and_variance(values, MASK)
    (gradient,) = torch.autograd.grad(mean, values, retain_graph=True)
    torch.testing.assert_close(gradient, MASK / 3)
    (gradient,) = torch.autograd.grad(variance, values)
    torch.testing.assert_close(gradient, torch.tensor([[-8 / 9, -2 / 9, 0], [10 / 9, 0, 0]]))


# whiten


def test_whiten_by_hand():
    # 1 and 5: mean 3, standard deviation 2
    whitened = whiten(torch.tensor([[1.0, NAN], [5.0, NAN]]), torch.tensor([[True, False], [True, False]]), eps=0.0)
    assert whitened.tolist() == [[-1, 0], [1, 0]]


def test_whiten_adds_eps_to_the_standard_deviation():
    # (5 − 3) / (2 + 0.5) = 0.8
    assert whiten(torch.tensor([1.0, 5.0]), torch.tensor([True, True]), eps=0.5)[1].item() == pytest.approx(0.8)


@given(seeds, some_lengths, st.floats(-100, 100), st.floats(0.01, 100))
def test_whiten_gives_mean_0_and_variance_1_whatever_shift_and_scale(seed, lengths, shift, scale):
    values, mask = ragged(seed, lengths)
    whitened = whiten(values, mask, eps=0.0)
    assert counted(whitened, mask).mean() == pytest.approx(0, abs=1e-10)
    assert counted(whitened, mask).var() == pytest.approx(1)
    assert torch.equal(whitened[~mask], torch.zeros(int((~mask).sum()), dtype=torch.float64))
    torch.testing.assert_close(whiten(values * scale + shift, mask, eps=0.0), whitened, atol=1e-9, rtol=1e-7)


@given(seeds, some_lengths, st.integers(1, 4))
def test_whiten_ignores_padding(seed, lengths, columns):
    values, mask = ragged(seed, lengths)
    whitened = whiten(*pad(values, mask, columns), eps=1e-8)
    torch.testing.assert_close(whitened[:, :6], whiten(values, mask, eps=1e-8))
    assert torch.equal(whitened[:, 6:], torch.zeros(len(lengths), columns, dtype=torch.float64))


@pytest.mark.parametrize("value", [0.0, 0.1, -3.3, 7.7, 1000.1, 1e-6, -12345.678])
@pytest.mark.parametrize("count", [1, 7, 100, 4096])
def test_whiten_makes_equal_values_zero(value, count):
    # A mean that misses them by one rounding error would come out as ±1, not as 0.
    whitened = whiten(torch.full((count,), value), torch.ones(count, dtype=torch.bool), eps=1e-8)
    assert torch.equal(whitened, torch.zeros(count))


def test_whiten_of_nothing_is_zero():
    assert torch.equal(whiten(VALUES, torch.zeros_like(MASK), eps=1e-8), torch.zeros(2, 3))


def test_whiten_gradient_against_finite_differences():
    values = torch.tensor([[1.0, 2.0, 7.0], [4.0, 9.0, 9.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: whiten(v, MASK, eps=1e-3), values)


def test_whiten_gradient_does_not_see_nan_in_the_padding():
    clean = torch.where(MASK, VALUES, 0.0).requires_grad_()
    poisoned = VALUES.clone().requires_grad_()
    weights = torch.arange(6.0).view(2, 3) ** 2
    (whiten(clean, MASK, eps=1e-8) * weights).sum().backward()
    (whiten(poisoned, MASK, eps=1e-8) * weights).sum().backward()
    assert torch.equal(poisoned.grad, clean.grad)
    assert torch.equal(poisoned.grad[~MASK], torch.zeros(3))
    assert poisoned.grad[MASK].abs().min() > 0


@pytest.mark.parametrize("size", [1e19, 3e38])
def test_whiten_huge_values(size):
    # one of four: mean 1/4, variance 3/16; (1 − 1/4) / (√3/4) = √3, −1/4 / (√3/4) = −1/√3
    whitened = whiten(torch.tensor([size, 0, 0, 0, NAN]), torch.tensor([True] * 4 + [False]), eps=1e-8)
    assert whitened.tolist() == pytest.approx([3**0.5, *[-(3**-0.5)] * 3, 0])


# explained_variance


def test_explained_variance_of_huge_values():
    # residuals 0, 0, −1 of variance 2/9, targets 1, 2, 4 of variance 14/9, in units of 1e30
    predictions = 1e30 * torch.tensor([[1.0, 2.0, NAN], [5.0, NAN, NAN]])
    assert explained_variance(predictions, 1e30 * VALUES, MASK).item() == pytest.approx(6 / 7)


def test_explained_variance_by_hand():
    # targets 1 2 4 (variance 14/9), predictions 1 3 4: residuals 0 −1 0, variance 1/3 − 1/9 = 2/9; 1 − 2/14 = 6/7
    predictions = torch.tensor([[1.0, 3.0, NAN], [4.0, NAN, NAN]])
    assert explained_variance(predictions, VALUES, MASK).item() == pytest.approx(6 / 7)


def test_explained_variance_of_perfect_constant_and_opposite_predictions():
    assert explained_variance(VALUES, VALUES, MASK).item() == 1
    assert explained_variance(torch.full_like(VALUES, 9.0), VALUES, MASK).item() == pytest.approx(0, abs=1e-6)
    # the residual 2x has four times the variance: 1 − 4
    assert explained_variance(-VALUES, VALUES, MASK).item() == pytest.approx(-3)


@given(seeds, st.lists(st.integers(2, 6), min_size=1, max_size=5))
def test_explained_variance_against_numpy(seed, lengths):
    targets, mask = ragged(seed, lengths)
    predictions, _ = ragged(seed + 1, lengths)
    t, p = counted(targets, mask), counted(predictions, mask)
    expected = 1 - np.var(t - p) / np.var(t)
    assert explained_variance(predictions, targets, mask).item() == pytest.approx(expected)
    assert explained_variance(*(torch.where(mask, x, 0) for x in (predictions, targets)), mask).item() == pytest.approx(
        expected
    )


def test_explained_variance_gradient_does_not_see_nan_in_the_padding():
    predictions = (1.5 * VALUES + 0.1).requires_grad_()
    explained_variance(predictions, VALUES, MASK).backward()
    # residuals e = t − p = −0.6 −1.1 −2.1, mean −3.8/3; ∂/∂p = (2/n)(e − ē)/(14/9)
    residuals = torch.tensor([-0.6, -1.1, -2.1])
    expected = 2 / 3 * (residuals - residuals.mean()) / (14 / 9)
    torch.testing.assert_close(predictions.grad[MASK], expected)
    assert torch.equal(predictions.grad[~MASK], torch.zeros(3))

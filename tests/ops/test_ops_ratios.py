import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.ops.ratios import mean_log_ratio, sequence_log_ratio

NAN = float("nan")
LOGPROBS = torch.tensor([[-1.0, -2.0, NAN], [-0.5, NAN, NAN], [NAN, NAN, NAN]])
OLD_LOGPROBS = torch.tensor([[-1.5, -4.0, NAN], [-0.25, NAN, NAN], [NAN, NAN, NAN]])
MASK = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])

seeds = st.integers(0, 2**32 - 1)
lengths = st.lists(st.integers(0, 6), min_size=1, max_size=5)
RATIOS = [sequence_log_ratio, mean_log_ratio]


def ragged(seed: int, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random logprobs of two policies with NaN wherever the mask is False."""
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    both = -torch.rand(2, *mask.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    new, old = torch.where(mask, both, NAN)
    return new, old, mask


def test_ratios_by_hand():
    # 0.5 and 2 in the first row, −0.25 in the second, none in the third
    assert sequence_log_ratio(LOGPROBS, OLD_LOGPROBS, MASK).tolist() == [2.5, -0.25, 0]
    assert mean_log_ratio(LOGPROBS, OLD_LOGPROBS, MASK).tolist() == [1.25, -0.25, 0]


@given(seeds, lengths)
def test_ratios_against_products_of_probabilities(seed, lengths):
    new, old, mask = ragged(seed, lengths)
    products = [
        math.prod(math.exp(new[b, t]) / math.exp(old[b, t]) for t in range(length)) for b, length in enumerate(lengths)
    ]
    roots = [product ** (1 / max(length, 1)) for product, length in zip(products, lengths, strict=True)]
    assert sequence_log_ratio(new, old, mask).exp().tolist() == pytest.approx(products)
    assert mean_log_ratio(new, old, mask).exp().tolist() == pytest.approx(roots)


@pytest.mark.parametrize("ratio", RATIOS)
@given(seeds, lengths)
def test_ratios_ignore_more_padding(ratio, seed, lengths):
    new, old, mask = ragged(seed, lengths)
    wider = [torch.nn.functional.pad(x, (0, 2), value=NAN) for x in (new, old)]
    result = ratio(*wider, torch.nn.functional.pad(mask, (0, 2), value=False))
    torch.testing.assert_close(result, ratio(new, old, mask))


@pytest.mark.parametrize("ratio", RATIOS)
@given(seeds, lengths, st.randoms(use_true_random=False))
def test_ratios_are_per_row(ratio, seed, lengths, random):
    new, old, mask = ragged(seed, lengths)
    order = random.sample(range(len(lengths)), len(lengths))
    assert torch.equal(ratio(new[order], old[order], mask[order]), ratio(new, old, mask)[order])


@pytest.mark.parametrize("ratio", RATIOS)
def test_ratios_of_equal_policies_are_one(ratio):
    assert (ratio(LOGPROBS, LOGPROBS, MASK) == 0).all()


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (sequence_log_ratio, [[1, 1, 0], [1, 0, 0], [0, 0, 0]]),
        (mean_log_ratio, [[0.5, 0.5, 0], [1, 0, 0], [0, 0, 0]]),
    ],
)
def test_ratios_let_no_gradient_into_the_padding(ratio, expected):
    new, old = LOGPROBS.clone().requires_grad_(), OLD_LOGPROBS.clone().requires_grad_()
    ratio(new, old, MASK).sum().backward()
    assert new.grad.tolist() == expected
    assert torch.equal(old.grad, -new.grad)


def test_the_gradient_of_a_sequence_ratio_is_the_ratio_times_the_score_function():
    new, old, mask = ragged(0, [4, 2])
    new.requires_grad_()
    ratio = sequence_log_ratio(new, old, mask).exp()
    (gradient,) = torch.autograd.grad(ratio.sum(), new)
    torch.testing.assert_close(gradient, torch.where(mask, ratio.detach()[:, None], 0.0))

"""Losses of rankings and ratings."""

import math
from itertools import combinations, permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.ops.preference import (
    all_pairs_loss,
    bradley_terry_loss,
    centering_penalty,
    plackett_luce_loss,
    regression_loss,
)

NAN = math.nan
scores = st.floats(-20, 20)
rankings = st.lists(scores, min_size=2, max_size=5)


def full(*rows: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores, all of which count."""
    values = torch.tensor(rows, dtype=torch.float64)
    return values, torch.ones_like(values, dtype=torch.bool)


def one(loss, row: list[float]) -> float:
    return loss(*full(row)).item()


def probability_of_order(worths: list[float]) -> float:
    """Choose the best of all, then the best of the rest, and so on."""
    left, probability = list(worths), 1.0
    while left:
        probability *= left[0] / sum(left)
        left.pop(0)
    return probability


def pair_losses(row: list[float]) -> list[float]:
    return [math.log1p(math.exp(-(first - second))) for first, second in combinations(row, 2)]


def test_plackett_luce_loss_by_hand():
    # worths 3, 2, 1: first of all 3/6, then 2/3, then 1
    assert one(plackett_luce_loss, [math.log(3), math.log(2), 0.0]) == pytest.approx(-math.log(3 / 6 * 2 / 3))
    # the other way round: 1/6, then 2/5
    assert one(plackett_luce_loss, [0.0, math.log(2), math.log(3)]) == pytest.approx(-math.log(1 / 6 * 2 / 5))
    # four alike: every order is as likely, 1/4!
    assert one(plackett_luce_loss, [5.0] * 4) == pytest.approx(math.log(24))


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_plackett_luce_loss_against_every_permutation(count):
    worths = [0.3, 1.7, 0.9, 4.0, 0.05][:count]
    orders = list(permutations(worths))
    losses = plackett_luce_loss(*full(*[[math.log(worth) for worth in order] for order in orders]))
    assert losses.neg().exp().sum().item() == pytest.approx(1)
    assert losses.neg().exp().tolist() == pytest.approx([probability_of_order(order) for order in orders])


@given(scores, scores)
def test_lists_of_two_are_bradley_terry_pairs(chosen, rejected):
    pair = torch.tensor([chosen], dtype=torch.float64), torch.tensor([rejected], dtype=torch.float64)
    expected = bradley_terry_loss(*pair, margin=0.0, label_smoothing=0.0).item()
    for loss in (plackett_luce_loss, all_pairs_loss):
        assert one(loss, [chosen, rejected]) == pytest.approx(expected, rel=1e-12)


def test_all_pairs_loss_by_hand():
    # worths 3, 2, 1: σ of the differences 3/5, 3/4, 2/3
    expected = -(math.log(3 / 5) + math.log(3 / 4) + math.log(2 / 3)) / 3
    assert one(all_pairs_loss, [math.log(3), math.log(2), 0.0]) == pytest.approx(expected)


@given(rankings)
def test_all_pairs_loss_against_a_loop(row):
    losses = pair_losses(row)
    assert one(all_pairs_loss, row) == pytest.approx(sum(losses) / len(losses), rel=1e-9)


@pytest.mark.parametrize("loss", [plackett_luce_loss, all_pairs_loss])
@given(rankings, st.floats(-5, 5))
def test_losses_of_lists_ignore_the_level_of_scores(loss, row, shift):
    assert one(loss, [score + shift for score in row]) == pytest.approx(one(loss, row), rel=1e-9, abs=1e-9)


def test_regression_loss_by_hand():
    values = torch.tensor([[1.0, 4.0], [2.0, NAN]])
    ratings = torch.tensor([[3.0, 1.0], [1.5, NAN]])
    # (2² + 3²) / 2 and 0.5² / 1
    assert regression_loss(values, ratings, ~values.isnan()).tolist() == [6.5, 0.25]


def test_centering_penalty_by_hand():
    # (1 − 3 + 4)², (1 − 3)²
    values = torch.tensor([[1.0, -3.0, 4.0], [1.0, -3.0, NAN]])
    assert centering_penalty(values, ~values.isnan()).tolist() == [4.0, 4.0]


LISTWISE = [
    plackett_luce_loss,
    all_pairs_loss,
    centering_penalty,
    lambda values, mask: regression_loss(values, values.detach() + 1.5 * values.detach() ** 2, mask),
]
NAMES = ["plackett_luce", "all_pairs", "centering", "regression"]


@pytest.mark.parametrize("loss", LISTWISE, ids=NAMES)
@given(st.lists(rankings, min_size=1, max_size=4))
def test_what_the_mask_hides_changes_neither_losses_nor_gradients(loss, rows):
    width = max(map(len, rows)) + 1
    padded = torch.tensor([row + [NAN] * (width - len(row)) for row in rows], dtype=torch.float64, requires_grad=True)
    losses = loss(padded, ~padded.isnan())
    losses.sum().backward()
    for number, row in enumerate(rows):
        alone = torch.tensor([row], dtype=torch.float64, requires_grad=True)
        expected = loss(alone, torch.ones_like(alone, dtype=torch.bool))
        expected.sum().backward()
        torch.testing.assert_close(losses[number : number + 1], expected)
        torch.testing.assert_close(padded.grad[number : number + 1, : len(row)], alone.grad)
        assert (padded.grad[number, len(row) :] == 0).all()


@pytest.mark.parametrize("loss", LISTWISE, ids=NAMES)
def test_masks_may_have_gaps_and_be_empty(loss):
    gaps = torch.tensor([[NAN, 1.0, NAN, -0.5], [NAN] * 4], dtype=torch.float64, requires_grad=True)
    losses = loss(gaps, ~gaps.isnan())
    losses.sum().backward()
    assert losses[0].item() == pytest.approx(loss(*full([1.0, -0.5])).item())
    assert losses[1].item() == 0
    assert gaps.grad.isfinite().all()


@pytest.mark.parametrize("loss", [plackett_luce_loss, all_pairs_loss, centering_penalty])
def test_gradients_of_lists_against_finite_differences(loss):
    values = torch.tensor([[0.3, -1.2, 2.0, 0.7], [1.0, 1.0, NAN, NAN]], dtype=torch.float64)
    mask = ~values.isnan()
    values = values.nan_to_num(0.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda given: loss(given, mask), values)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        # the first ties with the third, ln 2; then the second against the third, 20,000
        (plackett_luce_loss, 20_000 + math.log(2)),
        # first and third ln 2, second and third 20,000, second and fourth 10,000, the others 0
        (all_pairs_loss, (30_000 + math.log(2)) / 6),
    ],
)
def test_losses_of_extreme_lists_do_not_overflow(loss, expected):
    values = torch.tensor([[1e4, -1e4, 1e4, 0.0]], requires_grad=True)
    losses = loss(values, torch.ones_like(values, dtype=torch.bool))
    losses.sum().backward()
    assert losses.item() == pytest.approx(expected)
    assert values.grad.isfinite().all()

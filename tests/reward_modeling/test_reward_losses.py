"""Which loss reads which feedback, and what it takes from it."""

import math

import pytest
import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.reward_modeling.losses import AllPairs, BradleyTerry, PlackettLuce, Regression
from rlhf_lightning.types import OVERALL, PreferencePair, Ranking, Rating

NAN = math.nan
PAIRS = [PreferencePair("p", "a", "b"), PreferencePair("p", "a", "b", margin=1.5)]
SCORES = torch.tensor([[1.0, 0.0], [2.0, 0.5]], dtype=torch.float64)
LISTS = [Ranking("p", ("a", "b", "c")), Ranking("p", ("a", "b"))]


def cost(difference):
    return math.log1p(math.exp(-difference))


def of(loss, scores, examples):
    return loss.of(scores, ~scores.isnan(), examples).tolist()


def test_bradley_terry_by_hand():
    # margins: none and 1.5 = 2 − 0.5
    assert of(BradleyTerry(), SCORES, PAIRS) == pytest.approx([cost(1), cost(0)])
    assert of(BradleyTerry(margin=False), SCORES, PAIRS) == pytest.approx([cost(1), cost(1.5)])
    smoothed = [0.9 * cost(1) + 0.1 * cost(-1), cost(0)]
    assert of(BradleyTerry(label_smoothing=0.1), SCORES, PAIRS) == pytest.approx(smoothed)


def test_losses_of_rankings_by_hand():
    scores = torch.tensor([[math.log(3), math.log(2), 0.0], [math.log(3), 0.0, NAN]], dtype=torch.float64)
    assert of(PlackettLuce(), scores, LISTS) == pytest.approx([-math.log(3 / 6 * 2 / 3), -math.log(3 / 4)])
    pairs = -(math.log(3 / 5) + math.log(3 / 4) + math.log(2 / 3)) / 3
    assert of(AllPairs(), scores, LISTS) == pytest.approx([pairs, -math.log(3 / 4)])


def test_regression_by_hand():
    scores = torch.tensor([[1.0, 2.0], [0.5, NAN]])
    examples = [Rating("p", "a", {"helpful": 3.0, "concise": 2.5}), Rating("p", "b", {OVERALL: 1.0})]
    # (2² + 0.5²) / 2, 0.5²
    assert of(Regression(), scores, examples) == pytest.approx([2.125, 0.25])


@pytest.mark.parametrize(
    ("loss", "kinds"),
    [
        (BradleyTerry(), {PreferencePair}),
        (PlackettLuce(), {PreferencePair, Ranking}),
        (AllPairs(), {PreferencePair, Ranking}),
        (Regression(), {Rating}),
    ],
)
def test_every_loss_says_what_it_reads(loss, kinds):
    assert set(loss.kinds) == kinds


@pytest.mark.parametrize("smoothing", [-0.1, 0.5, NAN])
def test_a_smoothing_that_turns_labels_round_is_refused(smoothing):
    with pytest.raises(UserError, match=r"model\.init_args\.loss\.label_smoothing must be at least 0 and below 0\.5"):
        BradleyTerry(label_smoothing=smoothing)

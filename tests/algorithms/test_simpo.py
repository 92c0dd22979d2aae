"""SimPO: its loss by hand, its gradient against plain forward passes, and that it learns without a reference."""

import math

import pytest
import torch
from preference_helpers import build, pairs, token_logprobs
from training_helpers import AtHook, Letters, fit

from rlhf_lightning.algorithms.simpo import SimPO
from rlhf_lightning.errors import UserError
from rlhf_lightning.training.offline import Part
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import PreferencePair


def test_losses_of_pairs_by_hand():
    module = build(SimPO, Letters(), beta=2.0, gamma=0.5)
    # β/|y| log π(y): 2 · (−3)/3 = −2 and 2 · (−2)/4 = −1 of the chosen; 2 · (−6)/4 = −3 and −1 of the rejected
    module._rewards = lambda part: torch.tensor([-2.0, -1.0, -3.0, -1.0])
    total, sums = module.loss_sum(Part([PreferencePair("a", "b", "c")] * 2, None))
    # −log σ(1 − 0.5) = 0.474077, −log σ(0 − 0.5) = 0.974077
    assert total.item() == pytest.approx(0.474077 + 0.974077, abs=1e-6)
    assert (sums["margin"].item(), sums["accuracy"].item()) == (1.0, 1.5)


def test_gradient_and_row_are_those_of_single_responses():
    task, expected = Letters(), []

    def compare(trainer, module):
        examples = trainer.datamodule.train_batch(trainer.global_step)
        assert len({len(pair.chosen.split()) for pair in examples}) > 1, "lengths differ"
        gradients = [p.grad.clone() for p in module.policy.parameters()]
        with torch.enable_grad():
            losses, margins = [], []
            for pair in examples:
                chosen, rejected = (
                    3.0 * token_logprobs(module.policy.model, module.policy.tokenizer, pair.prompt, response).mean()
                    for response in (pair.chosen, pair.rejected)
                )
                losses.append(torch.log1p((0.7 - (chosen - rejected)).exp()))
                margins.append((chosen - rejected).item())
            wanted = torch.autograd.grad(sum(losses) / len(examples), list(module.policy.parameters()))
        for gradient, right in zip(gradients, wanted, strict=True):
            assert torch.allclose(gradient, right, rtol=1e-7, atol=1e-10)
        expected.append((sum(one.item() for one in losses) / len(examples), sum(margins) / len(examples)))

    optimization = Optimization(1e-2, max_grad_norm=1e-3, microbatch_size=3)
    module = build(SimPO, task, beta=3.0, gamma=0.7, optimization=optimization)
    hook = AtHook("on_before_optimizer_step", compare)
    rows = fit(module, pairs(task), hook, max_steps=3, limit_val_batches=0, precision="64-true").rows
    assert len(expected) == 3
    for row, (loss, margin) in zip(rows, expected, strict=True):
        assert (row["simpo/loss"], row["simpo/margin"]) == pytest.approx((loss, margin), abs=1e-9)


def test_simpo_learns_and_its_distance_from_the_start_is_measured():
    task = Letters(pairs=40)
    rows = fit(build(SimPO, task), pairs(task, 8), max_steps=30, num_sanity_val_steps=0).rows
    assert rows[-1]["eval/accuracy"] > 0.95
    assert rows[-1]["eval/gold"] > rows[0]["eval/gold"] + 0.2
    assert rows[-1]["eval/kl_ref_sequence"] > rows[0]["eval/kl_ref_sequence"] == 0


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"beta": 0.0}, "model.init_args.beta must be above 0, got 0.0"),
        ({"gamma": -0.1}, "model.init_args.gamma must be 0 or more, got -0.1"),
        ({"gamma": math.nan}, "model.init_args.gamma must be 0 or more, got nan"),
    ],
)
def test_bad_arguments_are_refused(settings, line):
    with pytest.raises(UserError, match=line):
        build(SimPO, Letters(), **settings)

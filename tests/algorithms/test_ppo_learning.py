"""PPO on a bandit whose best policy is known."""

import pytest
import torch
from training_helpers import OneToken, PaysFor, fit, tiny

from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.data.rollouts import RolloutDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.training.optimization import Optimization

A = 2  # token id of the only prompt, "a"
B = 3  # token id of the only answer that pays


def trained(task, *, iterations, size, tokens, **settings):
    module = PPO(task, tiny(), minibatch_size=size, eval_every=1000, **settings)
    data = RolloutDataModule(task, PaysFor("b"), rollout_batch_size=size, max_new_tokens=tokens)
    return module, fit(module, data, max_epochs=iterations)


def first_token(policy):
    """Distribution over the four tokens after the prompt."""
    with torch.no_grad():
        return policy.model(torch.tensor([[A]])).logits[0, -1].softmax(-1)


@pytest.mark.parametrize("tokens", [1, 2], ids=["one token", "two tokens"])
def test_ppo_reaches_the_optimum_of_a_bandit(tokens):
    # with two tokens the answer that pays is "b" and then the end: nothing else may follow
    optimization = Optimization(lr=1e-2, schedule="linear")
    module, rows = trained(
        OneToken(), iterations=20, size=64, tokens=tokens, optimization=optimization, kl=KLControl(0.0)
    )
    assert rows.rows[0]["eval/score"] < 0.5
    assert rows.rows[-1]["eval/score"] > 0.95
    assert rows.rows[-1]["objective/score"] > 0.95
    assert first_token(module.policy)[B] > 0.95
    assert first_token(module.reference.policy)[B] < 0.4


def test_ppo_with_kl_penalty_approaches_the_regularized_optimum():
    beta = 0.5
    module, rows = trained(
        OneToken(),
        iterations=40,
        size=256,
        tokens=1,
        optimization=Optimization(lr=1e-2, schedule="linear"),
        kl=KLControl(beta),
    )
    reference = first_token(module.reference.policy)
    # π* = π_ref e^{r/β} / Z, where only b pays: e² = 7.39 times its weight
    optimum = reference * torch.tensor([1.0, 1.0, 1.0, 7.389056])
    optimum = optimum / optimum.sum()
    assert torch.allclose(first_token(module.policy), optimum, atol=0.02)
    divergence = (optimum * (optimum / reference).log()).sum().item()
    assert rows.rows[-1]["eval/kl_ref_sequence"] == pytest.approx(divergence, abs=0.03)


def test_ppo_refuses_a_penalty_that_no_action_can_change():
    # the exact KL of a state is the same whatever is drawn there: in a reward it is a constant
    with pytest.raises(UserError, match=r"kl\.estimator"):
        PPO(OneToken(), tiny(), kl=KLControl(0.5, "exact"))

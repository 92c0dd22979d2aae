"""What PPO's variants have in common: with A2C, with each other, and with the policy gradient at the old policy."""

import math

import pytest
import torch
from placed import placed
from training_helpers import AtHook, Iterations, Letters, distance, fit, ppo, rollouts, snapshot, tiny

from rlhf_lightning.algorithms.a2c import A2C
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.algorithms.parts.surrogates import (
    Clip,
    MeanRatio,
    Penalty,
    SequenceRatio,
    Surrogate,
    TokenRatio,
)
from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.data.rollouts import RolloutDataModule
from rlhf_lightning.models.tabular import TabularBackbone
from rlhf_lightning.proofs.expectation import batch_gradient, scored_batch
from rlhf_lightning.proofs.instance import Instance
from rlhf_lightning.tasks.bandit import Bandit
from rlhf_lightning.tasks.bandit.exact import flat_gradient, log_probabilities, probabilities
from rlhf_lightning.tasks.bandit.tree import as_rollout
from rlhf_lightning.training.optimization import Optimization

COMMON = {"kl": KLControl(0.3), "lam": 0.7, "optimization": Optimization(lr=1e-2), "eval_every": 1000}
AT = Instance()


def letters():
    return Letters(), tiny(), rollouts(Letters(), size=8)


def bandit():
    return Bandit(), TabularBackbone(), RolloutDataModule(Bandit(), rollout_batch_size=8, max_new_tokens=3)


def trained(module, data):
    """Gradients before each step of a run, and the parameters at its end."""
    gradients = []

    def look(trainer, module):
        names = ("policy", "critic")
        found = {name: p.grad.clone() for name, p in module.named_parameters() if name.split(".")[0] in names}
        gradients.append(found)

    fit(module, data, AtHook("on_before_optimizer_step", look), max_epochs=3, precision="64-true")
    return gradients, snapshot(module)


@pytest.mark.parametrize("problem", [letters, bandit])
def test_ppo_without_a_clip_trains_as_a2c_does(problem):
    """One full batch, no whitening, the same λ: the same gradients of policy and critic, iteration by iteration."""
    task, backbone, data = problem()
    settings = {"surrogate": Clip(math.inf), "inner_epochs": 1, "minibatch_size": 8, "whiten_advantages": False}
    gradients, parameters = trained(PPO(task, backbone, **settings, **COMMON), data)
    task, backbone, data = problem()
    others, other_parameters = trained(A2C(task, backbone, **COMMON), data)
    assert len(gradients) == len(others) == 3
    for found, expected in zip(gradients, others, strict=True):
        assert distance(found, expected) < 1e-12
        for network in ("policy", "critic"):
            assert max(one.abs().max() for name, one in found.items() if name.startswith(network)) > 1e-3
    assert distance(parameters, other_parameters) < 1e-9


def test_ratio_of_a_response_is_the_product_of_its_tokens_ratios():
    task, seen = Letters(), Iterations()
    module = ppo(task, ratio=SequenceRatio(), surrogate=Surrogate(), lam=1.0, whiten_advantages=False)
    fit(module, rollouts(task), seen, max_epochs=2, precision="64-true")
    batch = seen.batch
    mask = batch.action_mask
    with torch.no_grad():  # after the step: the policy is no longer the one that sampled
        logprobs = module.policy.evaluate(batch.context, batch.actions, mask).logprobs
    tokens, responses, means = (
        kind.log_ratio(logprobs, batch.old_logprobs, mask).exp()
        for kind in (TokenRatio(), SequenceRatio(), MeanRatio())
    )
    by_response = tokens.split(mask.sum(-1).tolist())
    products = torch.stack([ratios.prod() for ratios in by_response])
    assert len({len(ratios) for ratios in by_response}) > 1
    assert (products - 1).abs().max() > 0.01
    torch.testing.assert_close(responses, products)
    torch.testing.assert_close(means, torch.stack([ratios.prod() ** (1 / len(ratios)) for ratios in by_response]))

    whole = module.as_one_minibatch(batch)
    found = module.loss(batch, whole).value - module.critic.loss(module.policy, batch, whole).value
    torch.testing.assert_close(found.detach(), -(products * batch.advantages[:, 0]).mean())


def penalized(kl_coef):
    return placed(AT, PPO, surrogate=Penalty(kl_coef=kl_coef), whiten_advantages=False)


def test_penalty_has_no_gradient_at_the_old_policy():
    every, numbers = as_rollout(AT.policy), [9, 0, 9, 1, 5]
    with_it, without = (batch_gradient(penalized(c), scored_batch(every, AT.scores, numbers)) for c in (50.0, 0.0))
    assert without.norm() > 0.1
    torch.testing.assert_close(with_it, without, rtol=0, atol=1e-12)


def test_penalty_away_from_the_old_policy_has_the_gradient_of_the_kl():
    """Over responses of π_old the estimate's gradient is β ∇ Σ p_old log p_old / p: the KL of whole responses."""
    shift = torch.randn(7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = probabilities(AT.policy).detach()

    def expected(kl_coef):
        module, total = penalized(kl_coef), 0.0
        with torch.no_grad():
            every = [module.prepare(scored_batch(as_rollout(AT.policy), AT.scores, [n])).batch for n in range(len(p))]
            module.policy.logits += shift
        for weight, batch in zip(p, every, strict=True):
            total = total + weight * flat_gradient(
                module.loss(batch, module.as_one_minibatch(batch)).value, module.policy
            )
        return total, module.policy

    with_it, policy = expected(0.7)
    without, _ = expected(0.0)
    kl = (p * (p.log() - log_probabilities(policy))).sum()
    assert kl > 0.1
    torch.testing.assert_close(with_it - without, 0.7 * flat_gradient(kl, policy), rtol=0, atol=1e-12)

"""Where a penalized KL leads: DPO, REINFORCE, PPO and NPG all end at π_ref e^{r/β} / Z.

Distances are total variations, and start at 0.3 to 0.7. Below 1e-5 DPO's minimum, below 1e-4 REINFORCE along exact
gradients, below 1e-9 NPG; from samples below 0.02 PPO and below 0.04 REINFORCE, whose one step per batch is noisier.
"""

import itertools
from dataclasses import dataclass

import pytest
import torch
from bandit_oracles import exact_optimum, log_partition, trajectory_fisher
from placed import placed
from training_helpers import fit

from rlhf_lightning.algorithms.dpo import DPO, IPOLoss, SigmoidLoss
from rlhf_lightning.algorithms.npg import NPG
from rlhf_lightning.algorithms.parts.baselines import NoBaseline
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.algorithms.reinforce import REINFORCE
from rlhf_lightning.data.rollouts import RolloutDataModule
from rlhf_lightning.models.tabular import TabularBackbone
from rlhf_lightning.proofs.expectation import expected_gradient
from rlhf_lightning.proofs.instance import Instance
from rlhf_lightning.tasks.bandit import Bandit
from rlhf_lightning.tasks.bandit.exact import Objective, probabilities
from rlhf_lightning.tasks.bandit.tree import PROMPT, RESPONSES
from rlhf_lightning.training.offline import Part
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import PreferencePair

BETA = 0.5
INSTANCES = pytest.mark.parametrize("seed", [0, 1])


def total_variation(first, second):
    return 0.5 * (first - second).abs().sum().item()


def tilted(reference, worth):
    """π_ref e^{worth} / Z."""
    weights = reference * worth.exp()
    return weights / weights.sum()


# -- from preferences ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Weighted(SigmoidLoss):
    """How often each pair is seen."""

    weights: torch.Tensor | None = None

    def per_pair(self, chosen_log_ratio, rejected_log_ratio):
        return self.weights * super().per_pair(chosen_log_ratio, rejected_log_ratio)


@dataclass(frozen=True, eq=False)
class WeightedIPO(IPOLoss):
    weights: torch.Tensor | None = None

    def per_pair(self, chosen_log_ratio, rejected_log_ratio):
        return self.weights * super().per_pair(chosen_log_ratio, rejected_log_ratio)


def preferred_policy(at, kind):
    """Minimum of DPO's own loss over all ordered pairs, weighted by the Bradley–Terry model; the start, the odds."""
    pairs = list(itertools.permutations(range(len(RESPONSES)), 2))
    wins = 1 / (1 + (at.scores[None] - at.scores[:, None]).exp())
    weights = torch.stack([wins[winner, loser] for winner, loser in pairs])
    module = DPO(at.task, at.backbone, loss=kind(BETA, weights=weights))
    module.configure_model()
    module.double()
    with torch.no_grad():
        for policy in (module.policy, module.reference.policy):
            policy.logits.copy_(at.reference.logits)
    examples = [PreferencePair(PROMPT, RESPONSES[winner], RESPONSES[loser]) for winner, loser in pairs]
    part = Part(examples, module.encode(examples))
    optimizer = torch.optim.LBFGS(
        [module.policy.logits],
        max_iter=500,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        loss, _ = module.loss_sum(part)
        loss.backward()
        return loss

    optimizer.step(closure)
    reference = probabilities(module.reference.policy).detach()
    return probabilities(module.policy).detach(), reference, wins


@INSTANCES
def test_dpo_on_bradley_terry_preferences_reaches_the_tilted_reference(seed):
    at = Instance(seed=seed)
    reached, reference, _ = preferred_policy(at, Weighted)
    optimum = tilted(reference, at.scores / BETA)
    assert total_variation(reference, optimum) > 0.3
    assert total_variation(reached, optimum) < 1e-5
    exact = exact_optimum(Objective(at.scores, at.reference, BETA))
    torch.testing.assert_close(optimum, exact, rtol=0, atol=1e-12)


@INSTANCES
def test_ipo_reaches_the_reference_tilted_by_how_often_a_response_wins(seed):
    """π_ref e^{p(y ≻ μ)/β} / Z, opponents drawn from all responses alike: what Azar et al. 2024 derive IPO from."""
    at = Instance(seed=seed)
    reached, reference, wins = preferred_policy(at, WeightedIPO)
    optimum = tilted(reference, wins.mean(-1) / BETA)  # of itself a response wins half the time
    assert total_variation(reference, optimum) > 0.05
    assert total_variation(reached, optimum) < 1e-5


# -- from rewards -------------------------------------------------------------------------------------------------


def test_reinforce_ascends_to_the_regularized_optimum():
    """Along expected gradients, which are exact, so that nothing but the number of steps is in the way."""
    at = Instance(seed=1, kl_coef=BETA)
    module = placed(at, REINFORCE, baseline=NoBaseline())
    optimizer = torch.optim.LBFGS([module.policy.logits], max_iter=40, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        module.policy.logits.grad = expected_gradient(module, at.scores, batch_size=1).mean.view(7, 3)
        return -at.objective.value(module.policy).detach()

    assert total_variation(probabilities(at.policy), exact_optimum(at.objective)) > 0.3
    optimizer.step(closure)
    assert total_variation(probabilities(module.policy), exact_optimum(at.objective)) < 1e-4
    best = at.objective.kl_coef * log_partition(at.objective)
    torch.testing.assert_close(at.objective.value(module.policy), best, rtol=0, atol=1e-5)


@INSTANCES
def test_natural_steps_of_one_over_beta_reach_it_in_as_many_steps_as_a_response_has_tokens(seed):
    """F⁻¹ ∇J / β replaces each state's policy by the best answer to the values behind it, the last states first."""
    at = Instance(seed=seed, kl_coef=BETA)
    module = placed(at, NPG)
    distances = []
    for _ in range(3):
        objective = at.objective
        with torch.no_grad():
            module.critic.network.table.copy_(objective.values(module.policy, gamma=1.0))
        gradient = -expected_gradient(module, at.scores, batch_size=1).mean
        step = torch.linalg.pinv(trajectory_fisher(module.policy), rtol=1e-9) @ gradient / BETA
        with torch.no_grad():
            module.policy.logits += step.view(7, 3)
        distances.append(total_variation(probabilities(module.policy), exact_optimum(objective)))
    assert distances[1] > 1e-3
    assert distances[2] < 1e-9


def fitted(algorithm, *, iterations, **settings):
    """Distance from the optimum before and after training on sampled batches of 256 responses."""
    task = Bandit()
    optimization = Optimization(lr=0.2, schedule="cosine", max_grad_norm=None, betas=(0.9, 0.99))
    module = algorithm(task, TabularBackbone(), optimization, kl=KLControl(BETA), eval_every=iterations + 1, **settings)
    data = RolloutDataModule(task, rollout_batch_size=256, max_new_tokens=3, eval_prompts=1)
    fit(module, data, max_epochs=iterations, precision="64-true")
    optimum = exact_optimum(Objective(task.scores().double(), module.reference.policy, BETA))
    return [total_variation(probabilities(policy), optimum) for policy in (module.reference.policy, module.policy)]


def test_ppo_trains_to_the_regularized_optimum():
    """There every response has the return β log Z, so that with a good critic nothing pulls the policy away again."""
    before, after = fitted(PPO, iterations=40, whiten_advantages=False, minibatch_size=256)
    assert before > 0.5
    assert after < 0.02


def test_reinforce_trains_to_the_regularized_optimum():
    before, after = fitted(REINFORCE, iterations=60)
    assert before > 0.5
    assert after < 0.04

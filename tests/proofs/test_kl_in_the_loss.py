"""What a KL in the loss pulls at: by enumeration over the tree, beside the KL in the reward and the KL itself."""

import math

import pytest
import torch
from placed import placed
from tree_oracle import STEPS, Tree

from rlhf_lightning.algorithms.a2c import A2C
from rlhf_lightning.algorithms.cpi import CPI
from rlhf_lightning.algorithms.grpo import GRPO, ResponseSum
from rlhf_lightning.algorithms.npg import NPG
from rlhf_lightning.algorithms.parts.baselines import NoBaseline
from rlhf_lightning.algorithms.parts.kl_control import KLControl, KLLoss
from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.algorithms.raft import RAFT
from rlhf_lightning.algorithms.reinforce import REINFORCE
from rlhf_lightning.algorithms.rloo import RLOO
from rlhf_lightning.algorithms.trpo import TRPO
from rlhf_lightning.errors import UserError
from rlhf_lightning.proofs.expectation import batch_gradient, expected_gradient, scored_batch
from rlhf_lightning.proofs.instance import Instance
from rlhf_lightning.tasks.bandit.tree import as_rollout
from rlhf_lightning.training.optimization import Optimization

AT = Instance(seed=0)
TREE = Tree(AT)
FREE = Tree(Instance(seed=0, kl_coef=0.0)).gradient()
LOSSES = {
    "k2": KLLoss("k2"),
    "k3": KLLoss("k3"),
    "k3_ratio": KLLoss("k3_ratio"),
    "exact": KLLoss("exact"),
    "forward": KLLoss("exact", "forward"),
}


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


def with_kl_loss(algorithm, loss, **settings):
    """With the KL in the loss, measured by k1."""
    return placed(AT, algorithm, kl=KLControl(AT.kl_coef, "k1", loss), **settings)


def reinforce(**settings):
    return lambda loss: with_kl_loss(REINFORCE, loss, baseline=NoBaseline(), **settings)


# -- by prefix: what each token's ∇ log π is multiplied with, summed over the vocabulary -----------------------------


def reverse(s):
    """∇ Σₐ π log(π/q) = Σₐ π log(π/q) ∇ log π, Σₐ π ∇ log π being 0."""
    return [p * math.log(p / q) for p, q in zip(TREE.rows[s], TREE.reference_rows[s], strict=True)]


def forward(s):
    """∇ Σₐ q log(q/π) = −Σₐ q ∇ log π."""
    return [-q for q in TREE.reference_rows[s]]


def at_prefix(weights, s):
    return sum(weights(s)[a] * TREE.log_gradient(s, a) for a in range(3))


def over_states(weights):
    """E[Σₜ g(sₜ)] over trajectories."""
    return sum(p * at_prefix(weights, s) for p, path in zip(TREE.p, STEPS, strict=True) for s, _ in path)


def kl_gradient(module):
    """What the KL in the loss adds to the gradient of REINFORCE without a baseline, over β."""
    return (expected_gradient(module, AT.scores, batch_size=1).mean + FREE) / AT.kl_coef


@pytest.mark.parametrize(
    ("name", "weights"),
    [("k2", reverse), ("k3_ratio", reverse), ("exact", reverse), ("k3", forward), ("forward", forward)],
)
def test_gradient_is_that_of_the_kl_in_the_states_that_were_met(name, weights):
    """E[Σₜ ∇KL(sₜ)]: of KL(π‖ref) with k2, k3 times the ratio and exact, of KL(ref‖π) with k3 and exact forward."""
    close(kl_gradient(reinforce()(LOSSES[name])), over_states(weights))


def test_those_are_different_gradients_and_neither_is_that_of_the_kl_of_responses():
    whole = TREE.expected(lambda i: [sum(TREE.log_ratios[i])] * TREE.length(i))  # ∇ Σ_y π(y) log π(y)/π_ref(y)
    assert (over_states(reverse) - whole).norm() > 0.05
    assert (over_states(forward) - over_states(reverse)).norm() > 0.05


def test_k1_would_have_no_gradient_in_expectation():
    """E[Σₜ ∇(log π − log π_ref)(aₜ|sₜ)] = E[Σₜ ∇ log π(aₜ|sₜ)] = 0: this is why it is refused."""
    close(TREE.expected(lambda i: [1.0] * TREE.length(i)), torch.zeros(21, dtype=torch.float64))
    with pytest.raises(UserError, match=r"kl\.loss\.estimator k1"):
        KLLoss("k1")


# -- beside the KL in the reward -------------------------------------------------------------------------------------


def gradient(module, numbers, group_size=1):
    return batch_gradient(module, scored_batch(as_rollout(AT.policy), AT.scores, numbers, group_size))


@pytest.mark.parametrize("numbers", [[0], [9], [14, 3, 3]])
def test_k1_in_the_reward_and_k2_in_the_loss_agree_where_an_action_pays_for_itself_alone(numbers):
    """With γ = 0 each action's own −β log(π/π_ref) is its whole price: both give −β Δₜ ∇ log π(aₜ), in every batch."""
    in_reward = placed(AT, REINFORCE, baseline=NoBaseline(), gamma=0.0)
    in_loss = reinforce(gamma=0.0)(LOSSES["k2"])
    close(gradient(in_reward, numbers), gradient(in_loss, numbers))
    assert (gradient(in_loss, numbers) - gradient(reinforce()(LOSSES["k3"]), numbers)).norm() > 1e-3


def test_k1_in_the_reward_also_counts_what_actions_lead_to():
    """At γ = 1 it adds E[Σₜ ∇ log π(aₜ) Σ_{k>t} Δₖ], the KL that an action leads to: ∇ of the whole KL."""
    later = TREE.expected(lambda i: [sum(TREE.log_ratios[i][t + 1 :]) for t in range(TREE.length(i))])
    whole = TREE.expected(lambda i: [sum(TREE.log_ratios[i])] * TREE.length(i))
    close(kl_gradient(reinforce()(LOSSES["k2"])) + later, whole)
    close(FREE - AT.kl_coef * whole, AT.objective.gradient(AT.policy))
    assert later.norm() > 0.05


# -- every optimizer -------------------------------------------------------------------------------------------------

OPTIMIZERS = {
    REINFORCE: {},
    A2C: {},
    PPO: {},
    TRPO: {},
    NPG: {},
    CPI: {},
    RLOO: {},
    GRPO: {"average": ResponseSum()},
    RAFT: {},
}


def own(name, s, a):
    """What the estimator's term at one action has for a gradient."""
    if name in ("exact", "forward"):
        return at_prefix(reverse if name == "exact" else forward, s)
    log_ratio = math.log(TREE.rows[s][a] / TREE.reference_rows[s][a])
    # k3 times a ratio r that is 1: k3 ∇r + r ∇k3 = (e^−Δ − 1 + Δ + 1 − e^−Δ) ∇ log π = Δ ∇ log π
    return (1 - math.exp(-log_ratio) if name == "k3" else log_ratio) * TREE.log_gradient(s, a)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("algorithm", OPTIMIZERS, ids=lambda algorithm: algorithm.__name__)
def test_every_optimizer_adds_the_same_term(algorithm, name):
    """β Σₜ ∇k(aₜ) of each response, averaged over responses: also in microbatches of one."""
    settings = OPTIMIZERS[algorithm] | {"optimization": Optimization(microbatch_size=1)}
    if algorithm is RAFT and name in ("k2", "k3", "k3_ratio"):
        with pytest.raises(UserError, match=f"estimator {name} .* expected exact"):
            with_kl_loss(RAFT, LOSSES[name], **settings)
        return
    numbers = [9, 1, 4, 0]
    priced = with_kl_loss(algorithm, LOSSES[name], **settings)
    free = placed(AT, algorithm, kl=KLControl(0.0), **settings)
    found = (gradient(priced, numbers, 2) - gradient(free, numbers, 2)) / AT.kl_coef
    kept = [max(pair, key=lambda i: AT.scores[i]) for pair in ((9, 1), (4, 0))] if algorithm is RAFT else numbers
    close(found, sum(own(name, s, a) for i in kept for s, a in STEPS[i]) / len(kept))
    assert found.norm() > 0.05

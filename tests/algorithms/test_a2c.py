"""A2C: gradients against a loop that shares no code with it, and against PPO; what must not change it."""

import math

import pytest
import torch
from plain_forward import sequences, share_of_b, state_values, token_logprobs, trained_parameters, value_weight
from run_checks import (
    compared_gradients,
    microbatches_change_nothing,
    padding_changes_nothing,
    policy_waits_for_the_critic,
    resumed_run_is_identical,
)
from training_helpers import (
    AtHook,
    BeforeUpdate,
    Iterations,
    Letters,
    OneToken,
    PaysFor,
    fit,
    ppo,
    rollouts,
    tiny,
)

from rlhf_lightning.algorithms.a2c import A2C
from rlhf_lightning.algorithms.parts.critic import CriticOptions
from rlhf_lightning.algorithms.parts.kl_control import AdaptiveKLControl, KLControl
from rlhf_lightning.algorithms.parts.surrogates import Clip
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.critic import ValueNetwork
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import ObservationContext, Rollout, ScoredRollout

BETA, GAMMA, ENTROPY = 0.3, 0.9, 0.5


def a2c(task, **settings):
    return A2C(task, tiny(), **{"optimization": Optimization(lr=1e-2), "eval_every": 1000, **settings})


# -- gradients ----------------------------------------------------------------------------------------------------


def by_hand(module, prepared, old):
    """The loss on the batch, by a loop over rows and tokens."""
    batch = prepared.batch
    loss = torch.zeros((), dtype=torch.float64)
    for prompt, actions in sequences(batch):
        logprobs, values = token_logprobs(module.policy, prompt, actions), state_values(module, prompt, actions)
        with torch.no_grad():
            reference = token_logprobs(module.reference.policy, prompt, actions)
        old = [*values.tolist(), 0.0]
        rewards = [BETA * (reference[t, a] - logprobs[t, a]).item() for t, a in enumerate(actions)]
        rewards[-1] += share_of_b(module.policy, actions)
        errors = [rewards[t] + GAMMA * old[t + 1] - old[t] for t in range(len(actions))]
        for t, action in enumerate(actions):
            advantage = sum((GAMMA * module.critic.lam) ** (k - t) * errors[k] for k in range(t, len(actions)))
            loss = loss - advantage * logprobs[t, action] + ENTROPY * (logprobs[t].exp() * logprobs[t]).sum()
            loss = loss + value_weight(module) * (values[t] - (advantage + old[t])) ** 2 / 2
    return loss / len(batch)


@pytest.mark.parametrize("shared", [False, True], ids=["separate critic", "shared trunk"])
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_a2c_gradient_by_hand(lam, shared):
    task = Letters()
    module = a2c(
        task,
        optimization=Optimization(lr=1e-2, microbatch_size=3, max_grad_norm=1e-3),
        critic=CriticOptions(shared=shared, coef=0.3),
        kl=KLControl(BETA),
        gamma=GAMMA,
        lam=lam,
        entropy_coef=ENTROPY,
        temperature=0.8,
    )
    assert compared_gradients(module, rollouts(task), by_hand) == 3


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("shared", [False, True], ids=["separate critic", "shared trunk"])
def test_a2c_gradient_is_that_of_ppo_without_a_clip(shared, whiten):
    task, checked, seen = Letters(), [], Iterations()
    settings = {
        "critic": CriticOptions(shared=shared),
        "kl": KLControl(BETA),
        "gamma": GAMMA,
        "lam": 0.6,
        "whiten_advantages": whiten,
        "entropy_coef": 0.1,
        "temperature": 0.8,
    }
    other = ppo(task, surrogate=Clip(clip_range=math.inf), minibatch_size=8, inner_epochs=1, **settings)

    def compare(trainer, module, prepared):
        other.configure_model()
        other.double().load_state_dict(module.state_dict())
        found = []
        for algorithm in (module, other):
            with torch.no_grad():
                whole = algorithm.as_one_minibatch(algorithm.prepare(seen.scored[-1]).batch)
            assert len(whole.parts) == 1
            with torch.enable_grad():
                value = algorithm.loss(whole.parts[0], whole).value
                found.append(torch.autograd.grad(value, list(trained_parameters(algorithm).values())))
        for gradient, wanted in zip(*found, strict=True):
            assert torch.allclose(gradient, wanted, rtol=1e-10, atol=1e-13)
        assert max(g.abs().max() for g in found[0]) > 1e-3
        checked.append(trainer.current_epoch)

    fit(a2c(task, **settings), rollouts(task), seen, BeforeUpdate(compare), max_epochs=2, precision="64-true")
    assert checked == [0, 1]


# -- several episodes in a row ------------------------------------------------------------------------------------


class Steps(Task):
    """An environment of which only the numbers in a rollout are known."""

    provides = frozenset({"environments"})


class AsObserved(ValueNetwork):
    """The value of an observation is the observation."""

    def values(self, part, trunk=None):
        return part.context.observations[..., 0]

    def next_values(self, part, values):
        return torch.where(part.terminated, 0.0, part.context.next_observations[..., 0])


@pytest.mark.parametrize(
    ("lam", "expected"),
    [
        # one step: 1 + 2/2 − 1, 2 − 2 | 4 + 4/2 − 3, 8 + 10/2 − 4 || 3 + 6/2 − 5, 6 + 20/2 − 6 | 5 − 7
        (0.0, [1, 0, 3, 9, 1, 10, -2]),
        # to the end: 1 + 2/2 − 1, 2 − 2 | 4 + 8/2 + 10/4 − 3, 8 + 10/2 − 4 || 3 + 6/2 + 20/4 − 5, 6 + 20/2 − 6 | 5 − 7
        (1.0, [1, 0, 7.5, 9, 6, 10, -2]),
    ],
)
def test_a2c_bootstraps_where_an_episode_goes_on(lam, expected):
    module = a2c(Steps(), kl=KLControl(0.0), gamma=0.5, lam=lam)
    module.policy, module.critic.network = None, AsObserved()  # nothing here asks the policy
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    # the first row's second episode goes on after the rollout; the second row's first is cut by a time limit
    following = torch.tensor([[2.0, 90.0, 4.0, 10.0], [6.0, 20.0, 90.0, math.nan]])
    rollout = Rollout(
        context=ObservationContext(values[..., None], following[..., None]),
        actions=torch.zeros(2, 4, dtype=torch.long),
        action_mask=torch.tensor([[True] * 4, [True, True, True, False]]),
        old_logprobs=torch.zeros(2, 4),
        terminated=torch.tensor([[False, True, False, False], [False, False, True, False]]),
        truncated=torch.tensor([[False] * 4, [False, True, False, False]]),
        rows=torch.arange(2),
    )
    rewards = torch.tensor([[1.0, 2.0, 4.0, 8.0], [3.0, 6.0, 5.0, math.nan]])
    batch = module.prepare(ScoredRollout(rollout, rewards, torch.zeros(2))).batch
    counted = values[rollout.action_mask].tolist()
    assert batch.advantages[batch.action_mask].tolist() == expected
    assert batch.returns[batch.action_mask].tolist() == [a + v for a, v in zip(expected, counted, strict=True)]


# -- what must not change it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("critic", [CriticOptions(clip_range=0.1), CriticOptions(shared=True)])
def test_padding_changes_nothing_in_a2c(critic):
    padding_changes_nothing(
        lambda: a2c(Letters(), critic=critic, entropy_coef=0.1, whiten_advantages=True), lambda: rollouts(Letters())
    )


def test_microbatches_change_nothing_in_a2c():
    def build(size):
        optimization = Optimization(3e-3, max_grad_norm=0.1, microbatch_size=size)
        return a2c(Letters(), optimization=optimization, lam=0.5, entropy_coef=0.1)

    microbatches_change_nothing(build, lambda: rollouts(Letters()))


@pytest.mark.parametrize("shared", [False, True], ids=["separate critic", "shared trunk"])
def test_resumed_a2c_is_bit_identical(tmp_path, shared):
    def build():
        optimization = Optimization(1e-2, "cosine", warmup=0.25, weight_decay=0.01)
        critic = CriticOptions(shared=shared, warmup=1)
        return a2c(Letters(), critic=critic, optimization=optimization, kl=AdaptiveKLControl(0.1, target=0.05))

    resumed_run_is_identical(build, lambda: rollouts(Letters()), tmp_path)


def test_a2c_warms_its_critic_up_before_the_policy_moves():
    policy_waits_for_the_critic(a2c(Letters(), critic=CriticOptions(warmup=1)), rollouts(Letters()), warmup=1)


# -- what it says and what it learns ------------------------------------------------------------------------------


def test_rows_of_a2c_have_the_documented_names():
    task = Letters()
    row = fit(a2c(task), rollouts(task), max_epochs=2).rows[-1]
    assert {name for name in row if name.startswith(("policy/", "value/"))} == {
        "policy/loss",
        "policy/grad_norm",
        "policy/weight_change",
        "value/loss",
        "value/grad_norm",
        "value/weight_change",
        "value/explained_variance",
    }
    assert row["objective/entropy"] > 0
    assert 0 <= row["rollout/logprob_gap"] <= 1e-4
    assert all(type(value) in (int, float) and math.isfinite(value) for value in row.values())


def test_entropy_bonus_of_a2c_raises_entropy():
    task, entropy = Letters(), {}
    for coef in (0.0, 2.0):
        module = a2c(task, entropy_coef=coef, kl=KLControl(0.0))
        # sharpen the start, so that there is entropy to gain
        sharpen = AtHook("on_fit_start", lambda _, module: module.policy.model.transformer.ln_f.weight.data.mul_(30))
        entropy[coef] = fit(module, rollouts(task), sharpen, max_epochs=10).rows[-1]["objective/entropy"]
    assert entropy[2.0] > entropy[0.0] + 0.1


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_a2c_reaches_the_optimum_of_a_bandit(lam):
    # with two tokens the answer that pays is "b" and then the end: nothing else may follow
    task = OneToken()
    module = a2c(task, lam=lam, kl=KLControl(0.0), critic=CriticOptions(lr=5e-2))
    rows = fit(module, rollouts(task, PaysFor("b"), size=64, max_new_tokens=2, eval_prompts=32), max_epochs=40).rows
    assert rows[0]["eval/score"] < 0.5
    assert rows[-1]["eval/score"] > 0.9


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"lam": 1.5}, "lam"),
        ({"lam": -0.1}, "lam"),
        ({"gamma": 1.1}, "gamma"),
        ({"entropy_coef": -1.0}, "entropy_coef"),
        ({"entropy_coef": math.nan}, "entropy_coef"),
        ({"kl": KLControl(0.5, "exact")}, r"kl\.estimator"),
    ],
)
def test_bad_arguments_of_a2c_are_named_in_one_line(settings, named):
    with pytest.raises(UserError, match=rf"^model\.init_args\.{named} [^\n]*$"):
        a2c(Letters(), **settings)

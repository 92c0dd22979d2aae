"""REINFORCE: gradients against a loop that shares no code with it, its baselines, and what must not change it."""

import math
from functools import partial

import pytest
import torch
from plain_forward import sequences, share_of_b, state_values, token_logprobs, value_weight
from run_checks import (
    compared_gradients,
    microbatches_change_nothing,
    padding_changes_nothing,
    policy_waits_for_the_critic,
    resumed_run_is_identical,
)
from training_helpers import (
    Letters,
    OneToken,
    PaysFor,
    Rows,
    fit,
    rollouts,
    same,
    snapshot,
    tiny,
)

from rlhf_lightning.algorithms.a2c import A2C
from rlhf_lightning.algorithms.parts.baselines import BatchMean, MovingAverage, NoBaseline, ValueBaseline
from rlhf_lightning.algorithms.parts.critic import CriticOptions
from rlhf_lightning.algorithms.parts.kl_control import AdaptiveKLControl, KLControl
from rlhf_lightning.algorithms.reinforce import REINFORCE
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.critic import ValueNetwork
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import ObservationContext, Rollout, ScoredRollout

BETA, GAMMA, ENTROPY = 0.3, 0.9, 0.5
BASELINES = {
    "none": NoBaseline(),
    "batch mean": BatchMean(),
    "moving average": MovingAverage(decay=0.5),
    "value": ValueBaseline(),
    "value on a shared trunk": ValueBaseline(CriticOptions(shared=True, coef=0.3)),
}


def reinforce(task, **settings):
    return REINFORCE(task, tiny(), **{"optimization": Optimization(lr=1e-2), "eval_every": 1000, **settings})


# -- gradients ----------------------------------------------------------------------------------------------------


def returns_by_hand(module, prompt, actions):
    """The rewards to go of one response, as numbers."""
    with torch.no_grad():
        own = token_logprobs(module.policy, prompt, actions)
        reference = token_logprobs(module.reference.policy, prompt, actions)
    rewards = [-BETA * (own[t, a] - reference[t, a]).item() for t, a in enumerate(actions)]
    rewards[-1] += share_of_b(module.policy, actions)
    return [sum(GAMMA ** (k - t) * rewards[k] for k in range(t, len(actions))) for t in range(len(actions))]


def by_hand(module, prepared, old, *, means):
    """The loss on the batch, by a loop over rows and tokens; its mean return joins those of the batches before."""
    if old is None:
        return True  # nothing to keep: there is one step
    rows = list(sequences(prepared.batch))
    returns = [returns_by_hand(module, *row) for row in rows]
    before = {0: 0.0, 1: means[0] if means else 0.0, 2: (means[0] + 2 * means[-1]) / 3 if means else 0.0}[len(means)]
    means.append(sum(row[0] for row in returns) / len(rows))
    scalar = {NoBaseline: 0.0, BatchMean: means[-1], MovingAverage: before}.get(type(module.baseline))

    policy_loss = value_loss = torch.zeros((), dtype=torch.float64)
    for row, rewards_to_go in zip(rows, returns, strict=True):
        logprobs, values = token_logprobs(module.policy, *row), state_values(module, *row)
        for t, action in enumerate(row[1]):
            start = t if module.reward_to_go else 0
            baseline = scalar if values is None else values[start].item()
            policy_loss = policy_loss - (rewards_to_go[start] - baseline) * logprobs[t, action]
            policy_loss = policy_loss + ENTROPY * (logprobs[t].exp() * logprobs[t]).sum()
            if values is not None:
                value_loss = value_loss + (values[t] - rewards_to_go[t]) ** 2 / 2
    return (policy_loss + value_weight(module) * value_loss) / len(rows)


@pytest.mark.parametrize("reward_to_go", [True, False], ids=["reward to go", "whole return"])
@pytest.mark.parametrize("baseline", BASELINES.values(), ids=BASELINES)
def test_reinforce_gradient_by_hand(baseline, reward_to_go):
    task, means, rows = Letters(), [], Rows()
    module = reinforce(
        task,
        optimization=Optimization(lr=1e-2, microbatch_size=3, max_grad_norm=1e-3),
        baseline=baseline,
        kl=KLControl(BETA),
        reward_to_go=reward_to_go,
        gamma=GAMMA,
        entropy_coef=ENTROPY,
        temperature=0.8,
    )
    assert compared_gradients(module, rollouts(task), partial(by_hand, means=means), rows) == 3
    assert len(means) == 3
    if isinstance(baseline, MovingAverage):
        expected = [0, means[0], (means[0] + 2 * means[1]) / 3]
        assert [row["policy/baseline"] for row in rows.rows[1:]] == pytest.approx(expected)


@pytest.mark.parametrize("shared", [False, True], ids=["separate critic", "shared trunk"])
def test_value_baseline_is_a2c_with_whole_returns(shared):
    task, runs = Letters(), []
    critic = CriticOptions(lr=3e-3, shared=shared)
    settings = {"optimization": Optimization(lr=1e-2), "kl": KLControl(BETA), "gamma": GAMMA, "entropy_coef": 0.1}
    for module in (
        REINFORCE(task, tiny(), baseline=ValueBaseline(critic), **settings),
        A2C(task, tiny(), critic=critic, lam=1.0, **settings),
    ):
        runs.append((fit(module, rollouts(task), max_epochs=3).untimed(), snapshot(module)))
    assert runs[0][0] == runs[1][0]
    assert same(runs[0][1], runs[1][1])


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


def judged(**settings):
    """Two environments: an episode that ends and one that goes on; one that is cut, and one of a single step."""
    module = reinforce(Steps(), kl=KLControl(0.0), gamma=0.5, **settings)
    module.policy, module.critic.network = None, AsObserved()  # nothing here asks the policy
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
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
    prepared = module.prepare(ScoredRollout(rollout, rewards, torch.zeros(2)))
    return module, prepared, prepared.batch.advantages[prepared.batch.action_mask].tolist()


def test_rewards_to_go_stop_where_an_episode_ends():
    _, prepared, advantages = judged(baseline=NoBaseline())
    # 1 + 2/2, 2 | 4 + 8/2, 8 seen so far || 3 + 6/2, 6 cut | 5
    assert advantages == [2, 2, 8, 8, 6, 6, 5]
    assert prepared.batch.returns is None  # no critic to fit


def test_whole_return_is_that_of_the_own_episode():
    _, _, advantages = judged(baseline=NoBaseline(), reward_to_go=False)
    assert advantages == [2, 2, 8, 8, 6, 6, 5]


@pytest.mark.parametrize("reward_to_go", [True, False])
def test_batch_mean_weighs_every_episode_the_same(reward_to_go):
    _, prepared, advantages = judged(baseline=BatchMean(), reward_to_go=reward_to_go)
    mean = (2 + 8 + 6 + 5) / 4
    assert prepared.metrics["policy/baseline"] == mean
    assert advantages == [r - mean for r in (2, 2, 8, 8, 6, 6, 5)]


def test_moving_average_learns_after_the_batch_was_judged():
    module, prepared, advantages = judged(baseline=MovingAverage())
    assert prepared.metrics["policy/baseline"] == 0
    assert advantages == [2, 2, 8, 8, 6, 6, 5]
    assert module.baseline.value(torch.zeros(1)) == 5.25


def test_value_baseline_continues_what_was_cut():
    # the rollout ends inside the second episode, worth 10 from there; a time limit cuts the third, worth 20
    _, prepared, advantages = judged(baseline=ValueBaseline())
    returns = prepared.batch.returns[prepared.batch.action_mask].tolist()
    assert returns == [2, 2, 4 + 8 / 2 + 10 / 4, 8 + 10 / 2, 3 + 6 / 2 + 20 / 4, 6 + 20 / 2, 5]
    assert advantages == [2 - 1, 2 - 2, 10.5 - 3, 13 - 4, 11 - 5, 16 - 6, 5 - 7]


def test_value_baseline_of_the_whole_return_is_the_value_at_the_start():
    _, _, advantages = judged(baseline=ValueBaseline(), reward_to_go=False)
    assert advantages == [1, 1, 7.5, 7.5, 6, 6, -2]


def test_whitened_advantages_have_mean_0_and_variance_1():
    _, _, plain = judged(baseline=NoBaseline())
    _, _, advantages = judged(baseline=NoBaseline(), whiten_advantages=True)
    mean = sum(plain) / 7
    deviation = (sum((r - mean) ** 2 for r in plain) / 7) ** 0.5
    assert advantages == pytest.approx([(r - mean) / deviation for r in plain], abs=1e-6)


# -- what must not change it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", [BatchMean(), ValueBaseline(CriticOptions(clip_range=0.1))], ids=["mean", "value"])
def test_padding_changes_nothing_in_reinforce(baseline):
    padding_changes_nothing(
        lambda: reinforce(Letters(), baseline=baseline, entropy_coef=0.1, whiten_advantages=True),
        lambda: rollouts(Letters()),
    )


@pytest.mark.parametrize("baseline", [MovingAverage(), ValueBaseline()], ids=["average", "value"])
def test_microbatches_change_nothing_in_reinforce(baseline):
    def build(size):
        optimization = Optimization(3e-3, max_grad_norm=0.1, microbatch_size=size)
        settings = {"baseline": baseline, "optimization": optimization, "entropy_coef": 0.1, "reward_to_go": False}
        return reinforce(Letters(), **settings)

    microbatches_change_nothing(build, lambda: rollouts(Letters()))


@pytest.mark.parametrize("baseline", [MovingAverage(0.5), ValueBaseline()], ids=["average", "value"])
def test_resumed_reinforce_is_bit_identical(tmp_path, baseline):
    def build():
        optimization = Optimization(1e-2, "cosine", warmup=0.25, weight_decay=0.01)
        kl = AdaptiveKLControl(0.1, target=0.05)
        return reinforce(Letters(), baseline=baseline, optimization=optimization, kl=kl)

    whole, resumed, _ = resumed_run_is_identical(build, lambda: rollouts(Letters()), tmp_path)
    state = whole.baseline.state_dict()
    assert resumed.baseline.state_dict() == state
    assert torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)["baseline"] != state or not state


def test_two_modules_do_not_share_a_baseline():
    task, baseline = Letters(), MovingAverage()
    fit(reinforce(task, baseline=baseline), rollouts(task), max_epochs=1)
    assert baseline.state_dict() == MovingAverage().state_dict()


def test_value_baseline_warms_up_before_the_policy_moves():
    module = reinforce(Letters(), baseline=ValueBaseline(CriticOptions(warmup=1)))
    policy_waits_for_the_critic(module, rollouts(Letters()), warmup=1)


# -- what it says and what it learns ------------------------------------------------------------------------------

ALWAYS = {"policy/loss", "policy/grad_norm", "policy/weight_change", "objective/entropy", "rollout/logprob_gap"}
SCALAR = ALWAYS | {"policy/baseline"}
VALUE = ALWAYS | {"value/loss", "value/grad_norm", "value/weight_change", "value/explained_variance"}


@pytest.mark.parametrize("baseline", BASELINES.values(), ids=BASELINES)
def test_rows_of_reinforce_have_the_documented_names(baseline):
    task = Letters()
    row = fit(reinforce(task, baseline=baseline), rollouts(task), max_epochs=2).rows[-1]
    own = {name for name in row if name.startswith(("policy/", "value/"))} | (set(row) & ALWAYS)
    assert own == (VALUE if isinstance(baseline, ValueBaseline) else SCALAR)
    assert all(type(value) in (int, float) and math.isfinite(value) for value in row.values())
    assert row["rollout/logprob_gap"] <= 1e-4


def test_exported_value_baseline_lies_beside_the_policy(tmp_path):
    for name, baseline in (("average", MovingAverage()), ("value", ValueBaseline())):
        module = reinforce(Letters(), baseline=baseline)
        module.configure_model()
        module.export(tmp_path / name)
        assert (tmp_path / name / "critic").is_dir() == isinstance(baseline, ValueBaseline)


@pytest.mark.parametrize("reward_to_go", [True, False], ids=["reward to go", "whole return"])
def test_reinforce_reaches_the_optimum_of_a_bandit(reward_to_go):
    # with two tokens the answer that pays is "b" and then the end: nothing else may follow
    task = OneToken()
    module = reinforce(task, reward_to_go=reward_to_go, kl=KLControl(0.0), optimization=Optimization(2e-2))
    rows = fit(module, rollouts(task, PaysFor("b"), size=64, max_new_tokens=2, eval_prompts=32), max_epochs=40).rows
    assert rows[0]["eval/score"] < 0.5
    assert rows[-1]["eval/score"] > 0.95


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"entropy_coef": -1.0}, "entropy_coef"),
        ({"entropy_coef": math.inf}, "entropy_coef"),
        ({"gamma": 1.1}, "gamma"),
        ({"kl": KLControl(0.5, "exact")}, r"kl\.estimator"),
    ],
)
def test_bad_arguments_of_reinforce_are_named_in_one_line(settings, named):
    with pytest.raises(UserError, match=rf"^model\.init_args\.{named} [^\n]*$"):
        reinforce(Letters(), **settings)


def test_reinforce_takes_no_critic_but_that_of_its_baseline():
    with pytest.raises(TypeError, match="critic"):
        reinforce(Letters(), critic=CriticOptions())

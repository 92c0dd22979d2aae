"""REINFORCE: gradients against a loop that shares no code with it, its baselines, and what must not change it."""

import itertools
import math

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from training_helpers import (
    AtHook,
    Letters,
    OneToken,
    PaysFor,
    distance,
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
from rlhf_lightning.models.critic import Critic
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


def token_logprobs(policy, prompt, actions):
    """Log-probabilities of all tokens at each action, [T, V]."""
    logits = policy.model(torch.tensor([prompt + actions])).logits[0, len(prompt) - 1 : -1]
    return (logits / policy.temperature).log_softmax(-1)


def state_values(module, prompt, actions):
    """Values before each action; none without a critic."""
    options = module.critic_options
    if options is None:
        return None
    trunk = (module.policy if options.shared else module.critic).model.base_model
    score = module.critic.score if options.shared else module.critic.model.score
    hidden = trunk(torch.tensor([prompt + actions])).last_hidden_state[0, len(prompt) - 1 : -1]
    return score(hidden).squeeze(-1)


def returns_by_hand(module, prompt, actions):
    """The rewards to go of one response, as numbers."""
    words = [module.policy.tokenizer.convert_ids_to_tokens(a) for a in actions if a > 1]
    with torch.no_grad():
        own = token_logprobs(module.policy, prompt, actions)
        reference = token_logprobs(module.reference, prompt, actions)
    rewards = [-BETA * (own[t, a] - reference[t, a]).item() for t, a in enumerate(actions)]
    rewards[-1] += words.count("b") / max(len(words), 1)
    return [sum(GAMMA ** (k - t) * rewards[k] for k in range(t, len(actions))) for t in range(len(actions))]


def by_hand(module, batch, means):
    """The loss on the batch, by a loop over rows and tokens; its mean return joins those of the batches before."""
    rows = [
        (batch.context.input_ids[i][batch.context.attention_mask[i]].tolist(), row[batch.action_mask[i]].tolist())
        for i, row in enumerate(batch.actions)
    ]
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
    weight = module.critic_options.coef if module.critic_options and module.critic_options.shared else 1.0
    return (policy_loss + weight * value_loss) / len(rows)


def trained_parameters(module):
    """The parameters that training moves, by name."""
    return {name: p for name, p in module.named_parameters() if not name.startswith("reference.")}


@pytest.mark.parametrize("reward_to_go", [True, False], ids=["reward to go", "whole return"])
@pytest.mark.parametrize("baseline", BASELINES.values(), ids=BASELINES)
def test_reinforce_gradient_by_hand(baseline, reward_to_go):
    task, means = Letters(), []
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

    def compare(trainer, module):
        gradients = {name: p.grad.clone() for name, p in trained_parameters(module).items()}
        with torch.enable_grad():
            parameters = trained_parameters(module)
            expected = torch.autograd.grad(by_hand(module, module.batch, means), list(parameters.values()))
        for (name, gradient), wanted in zip(gradients.items(), expected, strict=True):
            assert torch.allclose(gradient, wanted, rtol=1e-8, atol=1e-11), name
        assert max(g.abs().max() for g in expected) > 1e-3

    # callbacks run before the module clips
    rows = fit(module, rollouts(task), AtHook("on_before_optimizer_step", compare), max_epochs=3, precision="64-true")
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


class AsObserved(Critic):
    """The value of an observation is the observation."""

    def values(self, context, actions, action_mask, trunk=None):
        return context.observations[..., 0]

    def next_values(self, part, values):
        return torch.where(part.terminated, 0.0, part.context.next_observations[..., 0])


def prepared(**settings):
    """Two environments: an episode that ends and one that goes on; one that is cut, and one of a single step."""
    module = reinforce(Steps(), kl=KLControl(0.0), gamma=0.5, **settings)
    module.reference, module.critic = None, AsObserved()
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
    batch = module.prepare(ScoredRollout(rollout, rewards, torch.zeros(2)))
    counted = batch.action_mask
    return module, batch.advantages[counted].tolist(), batch.returns[counted].tolist()


def test_rewards_to_go_stop_where_an_episode_ends():
    _, advantages, returns = prepared(baseline=NoBaseline())
    # 1 + 2/2, 2 | 4 + 8/2, 8 seen so far || 3 + 6/2, 6 cut | 5
    assert returns == [2, 2, 8, 8, 6, 6, 5]
    assert advantages == returns


def test_whole_return_is_that_of_the_own_episode():
    _, advantages, returns = prepared(baseline=NoBaseline(), reward_to_go=False)
    assert advantages == [2, 2, 8, 8, 6, 6, 5]
    assert returns == [2, 2, 8, 8, 6, 6, 5]


@pytest.mark.parametrize("reward_to_go", [True, False])
def test_batch_mean_weighs_every_episode_the_same(reward_to_go):
    module, advantages, _ = prepared(baseline=BatchMean(), reward_to_go=reward_to_go)
    mean = (2 + 8 + 6 + 5) / 4
    assert module.row["policy/baseline"] == mean
    assert advantages == [r - mean for r in (2, 2, 8, 8, 6, 6, 5)]


def test_moving_average_learns_after_the_batch_was_judged():
    module, advantages, _ = prepared(baseline=MovingAverage())
    assert module.row["policy/baseline"] == 0
    assert advantages == [2, 2, 8, 8, 6, 6, 5]
    assert module.baseline.value(torch.zeros(1)) == 5.25


def test_value_baseline_continues_what_was_cut():
    # the rollout ends inside the second episode, worth 10 from there; a time limit cuts the third, worth 20
    _, advantages, returns = prepared(baseline=ValueBaseline())
    assert returns == [2, 2, 4 + 8 / 2 + 10 / 4, 8 + 10 / 2, 3 + 6 / 2 + 20 / 4, 6 + 20 / 2, 5]
    assert advantages == [2 - 1, 2 - 2, 10.5 - 3, 13 - 4, 11 - 5, 16 - 6, 5 - 7]


def test_value_baseline_of_the_whole_return_is_the_value_at_the_start():
    _, advantages, _ = prepared(baseline=ValueBaseline(), reward_to_go=False)
    assert advantages == [1, 1, 7.5, 7.5, 6, 6, -2]


def test_whitened_advantages_have_mean_0_and_variance_1():
    _, plain, _ = prepared(baseline=NoBaseline())
    _, advantages, _ = prepared(baseline=NoBaseline(), whiten_advantages=True)
    mean = sum(plain) / 7
    deviation = (sum((r - mean) ** 2 for r in plain) / 7) ** 0.5
    assert advantages == pytest.approx([(r - mean) / deviation for r in plain], abs=1e-6)


# -- what must not change it --------------------------------------------------------------------------------------


def poison(trainer, module):
    """NaN, and tokens that were never drawn, wherever the batch only pads."""
    batch = module.batch
    hidden = ~batch.action_mask
    assert hidden.any()
    for name in ("old_logprobs", "old_values", "advantages", "returns"):
        setattr(batch, name, getattr(batch, name).masked_fill(hidden, float("nan")))
    batch.actions = torch.where(hidden, 7, batch.actions)


@pytest.mark.parametrize("baseline", [BatchMean(), ValueBaseline(CriticOptions(clip_range=0.1))], ids=["mean", "value"])
def test_padding_changes_nothing_in_reinforce(baseline):
    task, states = Letters(), []
    for callbacks in ([], [AtHook("on_train_batch_start", poison)]):
        module = reinforce(task, baseline=baseline, entropy_coef=0.1, whiten_advantages=True)
        rows = fit(module, rollouts(task), *callbacks, max_epochs=2)
        states.append((snapshot(module), rows.untimed()))
    assert same(states[0][0], states[1][0])
    assert states[0][1] == states[1][1]


@pytest.mark.parametrize("baseline", [MovingAverage(), ValueBaseline()], ids=["average", "value"])
def test_microbatches_change_nothing_in_reinforce(baseline):
    task, states, rows = Letters(), [], []
    for size in (None, 1, 3):
        optimization = Optimization(3e-3, max_grad_norm=0.1, microbatch_size=size)
        module = reinforce(task, baseline=baseline, optimization=optimization, entropy_coef=0.1, reward_to_go=False)
        rows.append(fit(module, rollouts(task), max_epochs=2, precision="64-true").untimed())
        states.append(snapshot(module))
    assert max(distance(states[0], other) for other in states[1:]) < 1e-9
    for one, other in itertools.product(rows[:1], rows[1:]):
        assert [pytest.approx(row, abs=1e-9) for row in one] == other


@pytest.mark.parametrize("baseline", [MovingAverage(0.5), ValueBaseline()], ids=["average", "value"])
def test_resumed_reinforce_is_bit_identical(tmp_path, baseline):
    def run(*callbacks, **settings):
        task = Letters()
        optimization = Optimization(1e-2, "cosine", warmup=0.25, weight_decay=0.01)
        module = reinforce(task, baseline=baseline, optimization=optimization, kl=AdaptiveKLControl(0.1, target=0.05))
        rows = fit(module, rollouts(task), *callbacks, max_epochs=4, **settings)
        return rows.untimed(), snapshot(module), module.baseline.state_dict()

    whole = run(ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True))
    resumed = run(ckpt_path=tmp_path / "epoch=1.ckpt")
    assert resumed[0] == whole[0][3:]
    assert same(resumed[1], whole[1])
    assert resumed[2] == whole[2]
    assert torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)["baseline"] != whole[2] or not whole[2]


def test_two_modules_do_not_share_a_baseline():
    task, baseline = Letters(), MovingAverage()
    fit(reinforce(task, baseline=baseline), rollouts(task), max_epochs=1)
    assert baseline.state_dict() == MovingAverage().state_dict()


def test_value_baseline_warms_up_before_the_policy_moves():
    task, states = Letters(), []
    module = reinforce(task, baseline=ValueBaseline(CriticOptions(warmup=1)))
    record = AtHook("on_train_epoch_end", lambda _, m: states.append((snapshot(m.policy), snapshot(m.critic))))
    fit(module, rollouts(task), record, max_epochs=2)
    reference = snapshot(module.reference)
    assert same(states[0][0], reference)
    assert distance(states[1][0], reference) > 1e-3
    assert distance(states[0][1], states[1][1]) > 1e-3


# -- what it says and what it learns ------------------------------------------------------------------------------

ALWAYS = {"policy/loss", "policy/grad_norm", "objective/entropy", "rollout/logprob_gap"}
SCALAR = ALWAYS | {"policy/baseline"}
VALUE = ALWAYS | {"value/loss", "value/grad_norm", "value/explained_variance"}


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

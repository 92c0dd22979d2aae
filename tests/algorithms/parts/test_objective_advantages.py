"""Policy and critic with one value for each objective of the reward."""

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from training_helpers import (
    AtHook,
    CountsB,
    Iterations,
    Letters,
    distance,
    fit,
    ppo,
    rollouts,
    same,
    snapshot,
    tiny,
)
from transformers import AutoModelForSequenceClassification

from rlhf_lightning.algorithms.a2c import A2C
from rlhf_lightning.algorithms.cpi import CPI
from rlhf_lightning.algorithms.npg import NPG
from rlhf_lightning.algorithms.parts.baselines import ValueBaseline
from rlhf_lightning.algorithms.parts.critic import CriticOptions
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.algorithms.reinforce import REINFORCE
from rlhf_lightning.algorithms.trpo import TRPO
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.control.policy import ControlCritic
from rlhf_lightning.models.tabular import TabularBackbone, TabularCritic
from rlhf_lightning.rewards.objectives import DeclaredWeights, Lagrangian
from rlhf_lightning.rewards.source import RewardSource
from rlhf_lightning.tasks.bandit.exact import as_rollout
from rlhf_lightning.tasks.bandit.task import Bandit
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import ObservationContext, Trajectories

WEIGHTS = {"b": 0.75, "short": 0.5}
KL_COEF, EOS_PENALTY, GAMMA, LAM = 0.3, 0.25, 0.9, 0.8
PER_OBJECTIVE = CriticOptions(lr=1e-2, per_objective=True)


class BAndShort(RewardSource):
    """Share of the words that are ``b``, and a price of each word that is spread more widely."""

    objectives = WEIGHTS

    def score(self, prompts, responses):
        words = [response.split() for response in responses]
        return torch.tensor([[row.count("b") / max(len(row), 1), -3.0 * len(row)] for row in words])


class OnlyB(CountsB):
    """The same as its base class, as an objective."""

    objectives = {"b": 1.0}  # noqa: RUF012

    def score(self, prompts, responses):
        return super().score(prompts, responses)[:, None]


def trained(reward=None, *, epochs=2, callbacks=(), ckpt_path=None, data=(), **settings):
    """PPO after some iterations, what each of them collected and prepared, and the rows it reported."""
    task, seen = Letters(), Iterations()
    defaults = {"critic": PER_OBJECTIVE, "kl": KLControl(KL_COEF), "gamma": GAMMA, "lam": LAM}
    module = ppo(task, **{**defaults, "whiten_advantages": False, **settings})
    collecting = rollouts(task, reward or BAndShort(), missing_eos_penalty=EOS_PENALTY, **dict(data))
    reported = fit(module, collecting, seen, *callbacks, max_epochs=epochs, ckpt_path=ckpt_path)
    return module, seen, reported.untimed()


@pytest.fixture(scope="module")
def run():
    return trained()[:2]


@torch.no_grad()
def price_of_kl(module, scored):
    """At each action, by hand: k1, whose mean is the KL."""
    rollout = scored.rollout
    reference = module.reference.policy.evaluate(rollout.context, rollout.actions, rollout.action_mask).logprobs
    return KL_COEF * (rollout.old_logprobs - reference).numpy()


def columns(batch, name):
    return getattr(batch, name).detach().double().numpy()


def advantages_by_loops(module, seen, objective, column, weights):
    """One response and one objective at a time; next to nothing shared with the code."""
    scored, price = seen.scored[-1], price_of_kl(module, seen.scored[-1])
    values = columns(seen.batch, "old_values")
    found = np.full(scored.rollout.action_mask.shape, np.nan)
    for row, length in enumerate(scored.rollout.lengths().tolist()):
        rewards = [-price[row, t] / sum(weights.values()) for t in range(length)]
        penalty = EOS_PENALTY if scored.rollout.truncated[row].any() else 0.0
        rewards[-1] += scored.objectives[objective][row].item() - penalty / sum(weights.values())
        running = 0.0
        for t in reversed(range(length)):
            following = values[row, t + 1, column] if t + 1 < length else 0.0
            running = rewards[t] + GAMMA * following - values[row, t, column] + GAMMA * LAM * running
            found[row, t] = running
    return found


def normalized(values):
    return (values - np.nanmean(values)) / np.nanstd(values)


def test_advantages_are_those_of_loops_over_objectives(run):
    module, seen = run
    scored, batch = seen.scored[-1], seen.batch
    mask = batch.action_mask.numpy()
    assert np.abs(price_of_kl(module, scored)[mask]).max() > 1e-3
    assert 0 < scored.rollout.truncated.any(-1).sum() < len(scored)
    assert np.ptp(columns(batch, "old_values")[mask], axis=0).min() > 1e-4
    by_objective = {o: advantages_by_loops(module, seen, o, i, WEIGHTS) for i, o in enumerate(WEIGHTS)}
    expected = sum(weight * normalized(by_objective[name]) for name, weight in WEIGHTS.items())
    np.testing.assert_allclose(columns(batch, "advantages")[mask], expected[mask], atol=2e-5)
    returns = columns(batch, "returns")
    for column, name in enumerate(WEIGHTS):
        plain = by_objective[name] + columns(batch, "old_values")[..., column]
        np.testing.assert_allclose(returns[mask][:, column], plain[mask], atol=1e-5)


def test_returns_weighed_are_those_of_the_whole_reward():
    """At λ = 1 a return has no value in it: weighed, those of the objectives are what was paid from there on."""
    module, seen, _ = trained(lam=1.0, gamma=1.0)
    mask, scored = seen.batch.action_mask.numpy(), seen.scored[-1]
    paid = np.where(mask, scored.rewards.numpy() - price_of_kl(module, scored), 0)
    weighed = columns(seen.batch, "returns") @ np.array(list(WEIGHTS.values()))
    np.testing.assert_allclose(weighed[mask], paid[:, ::-1].cumsum(1)[:, ::-1][mask], atol=1e-5)


def test_value_loss_is_the_mean_over_objectives(run):
    module, seen = run
    batch = seen.batch
    with torch.no_grad():
        found = module.critic.loss(module.policy, batch, module.as_one_minibatch(batch)).value.item()
        values = module.critic.network.values(batch).double().numpy()
    returns, mask = columns(batch, "returns"), batch.action_mask.numpy()
    squares = [
        (values[row, t, column] - returns[row, t, column]) ** 2
        for row, t, column in np.ndindex(values.shape)
        if mask[row, t]
    ]
    assert found == pytest.approx(0.5 * sum(squares) / 2 / len(batch), rel=1e-5)


@pytest.mark.parametrize("shared", [False, True], ids=["separate critic", "shared trunk"])
def test_one_objective_of_weight_1_is_a_plain_normalized_score(shared):
    """Down to the parameters: the heads differ only in their shape."""
    settings = {"minibatch_size": 4, "epochs": 3, "optimization": Optimization(lr=1e-2, eps=1e-3)}
    options = {"lr": 1e-2, "shared": shared, "clip_range": 0.2}
    one, seen, rows = trained(OnlyB(), critic=CriticOptions(**options, per_objective=True), **settings)
    settings |= {"critic": CriticOptions(**options), "whiten_advantages": True}
    plain, plain_seen, plain_rows = trained(CountsB(), **settings)
    assert seen.batch.returns.shape == (*plain_seen.batch.returns.shape, 1)
    assert distance(snapshot(one.policy), snapshot(plain.policy)) < 1e-5
    assert distance(snapshot(one.critic), snapshot(plain.critic)) < 1e-5
    shares = [row["value/explained_variance_b"] for row in rows[1:]]
    assert shares == pytest.approx([row["value/explained_variance"] for row in plain_rows[1:]], abs=1e-4)
    assert rows[-1]["value/clip_fraction"] == pytest.approx(plain_rows[-1]["value/clip_fraction"], abs=1e-6)


@pytest.mark.parametrize("shared", [False, True], ids=["separate critic", "shared trunk"])
def test_microbatches_change_nothing(shared):
    critic = CriticOptions(lr=1e-2, shared=shared, per_objective=True)
    (whole, seen, _), (parts, parts_seen, _) = (
        trained(critic=critic, optimization=Optimization(lr=1e-2, microbatch_size=size, eps=1e-3)) for size in (None, 3)
    )
    torch.testing.assert_close(parts_seen.batch.returns, seen.batch.returns, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts_seen.batch.advantages, seen.batch.advantages, rtol=1e-4, atol=1e-5)
    assert distance(snapshot(parts), snapshot(whole)) < 1e-5


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        (A2C, {"critic": PER_OBJECTIVE}),
        (TRPO, {"critic": PER_OBJECTIVE}),
        (NPG, {"critic": PER_OBJECTIVE}),
        (CPI, {"critic": PER_OBJECTIVE, "minibatch_size": 4}),
        (REINFORCE, {"baseline": ValueBaseline(PER_OBJECTIVE)}),
    ],
)
def test_every_algorithm_with_a_critic_trains(algorithm, settings):
    task = Letters()
    module = algorithm(task, tiny(), **settings)
    starts, seen = [], Iterations()
    start = AtHook("on_train_start", lambda trainer, module: starts.append(snapshot(module)))
    rows = fit(module, rollouts(task, BAndShort()), start, seen, max_epochs=2).rows
    assert seen.batch.old_values.shape == (*seen.batch.action_mask.shape, 2)
    assert rows[2]["value/loss"] > 0
    moved = {name.partition(".")[0] for name, value in snapshot(module).items() if not value.equal(starts[0][name])}
    assert moved == {"policy", "critic"}


def test_learned_weights_are_those_of_the_iteration():
    """λ of b after the first iteration is 2 + 0.5 · (0.9 − its mean); the weights are 1 / (1 + λ) and λ / (1 + λ)."""
    weights = Lagrangian("short", {"b": 0.9}, lr=0.5, initial=2.0)
    module, seen, rows = trained(data={"weights": weights})
    multiplier = 2 + 0.5 * (0.9 - rows[1]["objective/score_b"])
    expected = {"b": multiplier / (1 + multiplier), "short": 1 / (1 + multiplier)}
    assert seen.scored[-1].weights == pytest.approx(expected)
    assert expected["b"] != pytest.approx(2 / 3)
    by_objective = {o: advantages_by_loops(module, seen, o, i, expected) for i, o in enumerate(WEIGHTS)}
    mask = seen.batch.action_mask.numpy()
    found = sum(expected[name] * normalized(by_objective[name]) for name in expected)
    np.testing.assert_allclose(columns(seen.batch, "advantages")[mask], found[mask], atol=2e-5)


def test_a_resumed_run_is_bit_identical_and_the_critic_is_exported(tmp_path):
    every = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True)
    whole, _, rows = trained(callbacks=[every], epochs=3)
    resumed, _, rest = trained(ckpt_path=tmp_path / "epoch=0.ckpt", epochs=3)
    assert rest == rows[2:]
    assert same(snapshot(resumed), snapshot(whole))
    whole.export(tmp_path / "export")
    critic = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export" / "critic")
    assert critic.config.num_labels == 2
    torch.testing.assert_close(critic.score.weight, whole.critic.network.model.score.weight)
    assert critic.score.weight.abs().min() > 0


def test_a_table_has_a_value_for_each_objective():
    policy = TabularBackbone().policy(Bandit().tokenizer)
    rollout = as_rollout(policy, [0, 4, 11])
    critic = TabularCritic(torch.arange(30.0, dtype=torch.float64).reshape(15, 2))
    columns = [TabularCritic(critic.table[:, column].detach()) for column in (0, 1)]
    values = critic.values(rollout)
    expected = [one.values(rollout) for one in columns]
    assert torch.equal(values, torch.stack(expected, dim=-1))
    following = [one.next_values(rollout, column) for one, column in zip(columns, expected, strict=True)]
    assert torch.equal(critic.next_values(rollout, values), torch.stack(following, dim=-1))
    assert TabularBackbone().critic(policy, outputs=2).table.shape == (15, 2)


def test_a_perceptron_has_a_value_for_each_objective():
    critic = ControlCritic(3, (5,), "tanh", outputs=2)
    mask = torch.tensor([[True, True], [True, False]])
    observations = torch.full((2, 2, 3), torch.nan).masked_fill(mask[..., None], 0.5)
    values = critic.values(
        Trajectories(ObservationContext(observations, observations), torch.zeros(2, 2), mask, torch.zeros(2, 2))
    )
    assert values.shape == (2, 2, 2)
    assert torch.equal(values[1, 1], torch.zeros(2))
    expected = critic.score(critic.trunk(torch.full((3,), 0.5)))
    torch.testing.assert_close(values[0, 0], expected)
    assert expected[0] != expected[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: trained(CountsB(), epochs=1), "critic.per_objective is true, and the reward gives one score only"),
        (lambda: CriticOptions(per_objective=True, init="runs/x"), "critic.init is runs/x, .* with critic.per_obj"),
        (
            lambda: trained(data={"weights": DeclaredWeights({"short": -0.75})}, epochs=1),
            r"their weights are b 0\.75, short -0\.75; expected a sum above 0 \(at iteration 1;",
        ),
    ],
)
def test_bad_input_is_one_line(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)

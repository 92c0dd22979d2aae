"""A2C: gradients against a loop that shares no code with it, and against PPO; what must not change it."""

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
    ppo,
    rollouts,
    same,
    snapshot,
    tiny,
)

from rlhf_lightning.algorithms.a2c import A2C
from rlhf_lightning.algorithms.parts.critic import CriticOptions
from rlhf_lightning.algorithms.parts.kl_control import AdaptiveKLControl, KLControl
from rlhf_lightning.algorithms.parts.surrogates import Clip
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.critic import Critic
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import ObservationContext, Rollout, ScoredRollout

BETA, GAMMA, ENTROPY = 0.3, 0.9, 0.5


def a2c(task, **settings):
    return A2C(task, tiny(), **{"optimization": Optimization(lr=1e-2), "eval_every": 1000, **settings})


def trained_parameters(module):
    """The parameters that training moves, by name."""
    return {name: p for name, p in module.named_parameters() if not name.startswith("reference.")}


# -- gradients ----------------------------------------------------------------------------------------------------


def token_logprobs(policy, prompt, actions):
    """Log-probabilities of all tokens at each action, [T, V]."""
    logits = policy.model(torch.tensor([prompt + actions])).logits[0, len(prompt) - 1 : -1]
    return (logits / policy.temperature).log_softmax(-1)


def state_values(module, prompt, actions):
    """Values before each action."""
    shared = module.critic_options.shared
    trunk = (module.policy if shared else module.critic).model.base_model
    score = module.critic.score if shared else module.critic.model.score
    return score(trunk(torch.tensor([prompt + actions])).last_hidden_state[0, len(prompt) - 1 : -1]).squeeze(-1)


def by_hand(module, batch):
    """The loss on the batch, by a loop over rows and tokens."""
    loss = torch.zeros((), dtype=torch.float64)
    for row in range(len(batch)):
        prompt = batch.context.input_ids[row][batch.context.attention_mask[row]].tolist()
        actions = batch.actions[row][batch.action_mask[row]].tolist()
        words = [module.policy.tokenizer.convert_ids_to_tokens(a) for a in actions if a > 1]
        logprobs, values = token_logprobs(module.policy, prompt, actions), state_values(module, prompt, actions)
        with torch.no_grad():
            reference = token_logprobs(module.reference, prompt, actions)
        old = [*values.tolist(), 0.0]
        rewards = [BETA * (reference[t, a] - logprobs[t, a]).item() for t, a in enumerate(actions)]
        rewards[-1] += words.count("b") / max(len(words), 1)
        errors = [rewards[t] + GAMMA * old[t + 1] - old[t] for t in range(len(actions))]
        for t, action in enumerate(actions):
            advantage = sum((GAMMA * module.lam) ** (k - t) * errors[k] for k in range(t, len(actions)))
            loss = loss - advantage * logprobs[t, action] + ENTROPY * (logprobs[t].exp() * logprobs[t]).sum()
            weight = module.critic_options.coef if module.critic_options.shared else 1.0
            loss = loss + weight * (values[t] - (advantage + old[t])) ** 2 / 2
    return loss / len(batch)


@pytest.mark.parametrize("shared", [False, True], ids=["separate critic", "shared trunk"])
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_a2c_gradient_by_hand(lam, shared):
    task, checked = Letters(), []
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

    def compare(trainer, module):
        gradients = {name: p.grad.clone() for name, p in trained_parameters(module).items()}
        with torch.enable_grad():
            parameters = trained_parameters(module)
            expected = torch.autograd.grad(by_hand(module, module.batch), list(parameters.values()))
        for (name, gradient), wanted in zip(gradients.items(), expected, strict=True):
            assert torch.allclose(gradient, wanted, rtol=1e-8, atol=1e-11), name
        assert max(g.abs().max() for g in expected) > 1e-3
        checked.append(trainer.current_epoch)

    # callbacks run before the module clips
    fit(module, rollouts(task), AtHook("on_before_optimizer_step", compare), max_epochs=3, precision="64-true")
    assert checked == [0, 1, 2]


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("shared", [False, True], ids=["separate critic", "shared trunk"])
def test_a2c_gradient_is_that_of_ppo_without_a_clip(shared, whiten):
    task, checked = Letters(), []
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

    def compare(trainer, module):
        other.configure_model()
        other.double().load_state_dict(module.state_dict())
        found = []
        for algorithm in (module, other):
            with torch.no_grad():
                whole = algorithm.whole(algorithm.prepare(module.scored))
            assert len(whole.parts) == 1
            with torch.enable_grad():
                value = algorithm.loss(whole.parts[0], whole).value
                found.append(torch.autograd.grad(value, list(trained_parameters(algorithm).values())))
        for gradient, wanted in zip(*found, strict=True):
            assert torch.allclose(gradient, wanted, rtol=1e-10, atol=1e-13)
        assert max(g.abs().max() for g in found[0]) > 1e-3
        checked.append(trainer.current_epoch)

    fit(
        a2c(task, **settings),
        rollouts(task),
        AtHook("on_train_batch_start", compare),
        max_epochs=2,
        precision="64-true",
    )
    assert checked == [0, 1]


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
    module.reference, module.critic = None, AsObserved()
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
    batch = module.prepare(ScoredRollout(rollout, rewards, torch.zeros(2)))
    mask = batch.action_mask
    assert batch.advantages[mask].tolist() == expected
    assert batch.returns[mask].tolist() == [a + v for a, v in zip(expected, values[mask].tolist(), strict=True)]


# -- what must not change it --------------------------------------------------------------------------------------


def poison(trainer, module):
    """NaN, and tokens that were never drawn, wherever the batch only pads."""
    batch = module.batch
    hidden = ~batch.action_mask
    assert hidden.any()
    for name in ("old_logprobs", "old_values", "advantages", "returns"):
        setattr(batch, name, getattr(batch, name).masked_fill(hidden, float("nan")))
    batch.actions = torch.where(hidden, 7, batch.actions)


@pytest.mark.parametrize("critic", [CriticOptions(clip_range=0.1), CriticOptions(shared=True)])
def test_padding_changes_nothing_in_a2c(critic):
    task, states = Letters(), []
    for callbacks in ([], [AtHook("on_train_batch_start", poison)]):
        module = a2c(task, critic=critic, entropy_coef=0.1, whiten_advantages=True)
        rows = fit(module, rollouts(task), *callbacks, max_epochs=2)
        states.append((snapshot(module), rows.untimed()))
    assert same(states[0][0], states[1][0])
    assert states[0][1] == states[1][1]


def test_microbatches_change_nothing_in_a2c():
    task, states, rows = Letters(), [], []
    for size in (None, 1, 3):
        optimization = Optimization(3e-3, max_grad_norm=0.1, microbatch_size=size)
        module = a2c(task, optimization=optimization, lam=0.5, entropy_coef=0.1)
        rows.append(fit(module, rollouts(task), max_epochs=2, precision="64-true").untimed())
        states.append(snapshot(module))
    assert max(distance(states[0], other) for other in states[1:]) < 1e-9
    for other in rows[1:]:
        assert [pytest.approx(row, abs=1e-9) for row in rows[0]] == other


@pytest.mark.parametrize("shared", [False, True], ids=["separate critic", "shared trunk"])
def test_resumed_a2c_is_bit_identical(tmp_path, shared):
    def run(*callbacks, **settings):
        task = Letters()
        optimization = Optimization(1e-2, "cosine", warmup=0.25, weight_decay=0.01)
        critic = CriticOptions(shared=shared, warmup=1)
        module = a2c(task, critic=critic, optimization=optimization, kl=AdaptiveKLControl(0.1, target=0.05))
        rows = fit(module, rollouts(task), *callbacks, max_epochs=4, **settings)
        return rows.untimed(), snapshot(module)

    whole = run(ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True))
    resumed = run(ckpt_path=tmp_path / "epoch=1.ckpt")
    assert resumed[0] == whole[0][3:]
    assert same(resumed[1], whole[1])


def test_a2c_warms_its_critic_up_before_the_policy_moves():
    task, states = Letters(), []
    module = a2c(task, critic=CriticOptions(warmup=1))
    record = AtHook("on_train_epoch_end", lambda _, m: states.append((snapshot(m.policy), snapshot(m.critic))))
    fit(module, rollouts(task), record, max_epochs=2)
    reference = snapshot(module.reference)
    assert same(states[0][0], reference)
    assert distance(states[1][0], reference) > 1e-3
    assert distance(states[0][1], states[1][1]) > 1e-3


# -- what it says and what it learns ------------------------------------------------------------------------------


def test_rows_of_a2c_have_the_documented_names():
    task = Letters()
    row = fit(a2c(task), rollouts(task), max_epochs=2).rows[-1]
    assert {name for name in row if name.startswith(("policy/", "value/"))} == {
        "policy/loss",
        "policy/grad_norm",
        "value/loss",
        "value/grad_norm",
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

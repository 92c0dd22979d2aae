"""One PPO update: gradients against a loop that shares no code with it, and what must not change them."""

import pytest
import torch
from plain_forward import sequences, share_of_b, state_values, token_logprobs, value_weight
from run_checks import compared_gradients, padding_changes_nothing, policy_waits_for_the_critic
from training_helpers import (
    AtHook,
    BeforeUpdate,
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

from rlhf_lightning.algorithms.parts.critic import CriticOptions
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.training.optimization import Optimization

BETA, GAMMA, LAM = 0.3, 0.9, 0.7


def by_hand(module, prepared, old):
    """The loss of a plain actor-critic on the batch, by a loop over rows and tokens."""
    batch = prepared.batch
    all_advantages, all_returns = [], []
    for prompt, actions in sequences(batch):
        with torch.no_grad():
            own = token_logprobs(module.policy, prompt, actions)
            reference = token_logprobs(module.reference.policy, prompt, actions)
            values = state_values(module, prompt, actions).tolist()
        rewards = [-BETA * (own[t, a] - reference[t, a]).item() for t, a in enumerate(actions)]
        rewards[-1] += share_of_b(module.policy, actions)
        advantages, running, following = [], 0.0, 0.0
        for t in reversed(range(len(actions))):
            running = rewards[t] + GAMMA * following - values[t] + GAMMA * LAM * running
            following = values[t]
            advantages.insert(0, running)
        all_advantages.append(advantages)
        all_returns.append([a + v for a, v in zip(advantages, values, strict=True)])

    flat = torch.tensor([a for row in all_advantages for a in row])
    mean, deviation = flat.mean(), flat.var(unbiased=False).sqrt()
    policy_loss = value_loss = 0.0
    for (prompt, actions), advantages, returns in zip(sequences(batch), all_advantages, all_returns, strict=True):
        logprobs = token_logprobs(module.policy, prompt, actions)
        values = state_values(module, prompt, actions)
        for t, action in enumerate(actions):
            entropy = -(logprobs[t].exp() * logprobs[t]).sum()
            policy_loss = policy_loss - (advantages[t] - mean) / (deviation + 1e-8) * logprobs[t, action]
            policy_loss = policy_loss - module.entropy_coef * entropy
            value_loss = value_loss + (values[t] - returns[t]) ** 2 / 2
    return (policy_loss + value_weight(module) * value_loss) / len(batch)


@pytest.mark.parametrize("shared", [False, True], ids=["separate critic", "shared trunk"])
@pytest.mark.parametrize("entropy_coef", [0.0, 0.5])
def test_ppo_gradient_at_the_old_policy_is_the_policy_gradient(shared, entropy_coef):
    task = Letters()
    module = ppo(
        task,
        optimization=Optimization(lr=1e-2, microbatch_size=3, max_grad_norm=1e-3),
        critic=CriticOptions(shared=shared, coef=0.3),
        kl=KLControl(BETA),
        gamma=GAMMA,
        lam=LAM,
        entropy_coef=entropy_coef,
        temperature=0.8,
    )
    # in the first iteration the policy is the reference and every value is 0
    assert compared_gradients(module, rollouts(task), by_hand, start=1) == 2


def test_entropy_bonus_raises_entropy():
    task = Letters()
    entropy = {}
    for coef in (0.0, 2.0):
        module = ppo(task, entropy_coef=coef, inner_epochs=4, kl=KLControl(0.0))
        # sharpen the start, so that there is entropy to gain
        sharpen = AtHook(
            "on_fit_start", lambda trainer, module: module.policy.model.transformer.ln_f.weight.data.mul_(30)
        )
        rows = fit(module, rollouts(task), sharpen, max_epochs=6)
        entropy[coef] = rows.rows[-1]["objective/entropy"]
    assert entropy[2.0] > entropy[0.0] + 0.1


@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_first_log_ratio_is_zero_in_float32(style):
    task, gaps = Letters(), []
    module = ppo(
        task, backbone=tiny(style=style, width=32, layers=2), temperature=0.7, minibatch_size=16, inner_epochs=2
    )

    def measure(trainer, module, prepared):
        batch = prepared.batch
        with torch.no_grad():
            now = module.policy.evaluate(batch.context, batch.actions, batch.action_mask).logprobs
        gaps.append((now - batch.old_logprobs)[batch.action_mask].abs().max().item())

    data = rollouts(task, size=16, decode_batch_size=5, max_new_tokens=6)
    fit(module, data, BeforeUpdate(measure), max_epochs=3)
    assert len(gaps) == 3
    assert max(gaps) <= 1e-4


def test_ratio_max_is_reported():
    task = Letters()
    rows = fit(ppo(task, inner_epochs=1), rollouts(task), max_epochs=2).rows
    assert rows[1]["policy/ratio_max"] == pytest.approx(1, abs=1e-4)
    rows = fit(ppo(task, inner_epochs=4), rollouts(task), max_epochs=2).rows
    assert rows[1]["policy/ratio_max"] > 1.01


def test_first_ratio_is_one_under_autocast():
    # decoding with a cache and the training forward round differently in bfloat16: 0.005 nats a token here
    task = Letters()
    module = ppo(task, backbone=tiny(width=32, layers=2), minibatch_size=16)
    rows = fit(module, rollouts(task, size=16, max_new_tokens=6), max_epochs=3, precision="bf16-mixed").rows
    assert max(row["policy/ratio_max"] for row in rows[1:]) == pytest.approx(1, abs=5e-4)


@pytest.mark.parametrize("critic", [CriticOptions(), CriticOptions(clip_range=0.1), CriticOptions(shared=True)])
def test_padding_changes_nothing(critic):
    settings = {"critic": critic, "minibatch_size": 4, "inner_epochs": 2, "entropy_coef": 0.1, "stop_kl": 10.0}
    padding_changes_nothing(lambda: ppo(Letters(), **settings), lambda: rollouts(Letters()))


def test_value_clipping_holds_values_back():
    # far returns: without a bound the values run after them, with one their gradient stops at old value ± 0.05
    task, moved = Letters(), {}
    for clip_range in (None, 0.05):
        module = ppo(task, critic=CriticOptions(lr=1e-2, clip_range=clip_range), inner_epochs=10, kl=KLControl(0.0))
        seen = Iterations()

        def far(trainer, module, prepared):
            prepared.batch.returns = prepared.batch.old_values + 10.0

        def measure(trainer, module, seen=seen, clip_range=clip_range):
            batch = seen.batch
            with torch.no_grad():
                values = module.critic.network.values(batch)
            moved[clip_range] = (values - batch.old_values)[batch.action_mask].mean().item()

        callbacks = seen, BeforeUpdate(far), AtHook("on_train_batch_end", measure)
        row = fit(module, rollouts(task), *callbacks, max_epochs=1).rows[-1]
        assert ("value/clip_fraction" in row) == (clip_range is not None)
    assert row["value/clip_fraction"] > 0.2
    assert 0.04 < moved[0.05] < 0.5 * moved[None]


@pytest.mark.parametrize("shared", [False, True], ids=["separate critic", "shared trunk"])
def test_critic_warmup_leaves_the_policy_as_it_is(shared):
    critic, optimization = CriticOptions(warmup=2, shared=shared), Optimization(lr=1e-2, weight_decay=0.1)
    module = ppo(Letters(), critic=critic, inner_epochs=2, optimization=optimization)
    rows = policy_waits_for_the_critic(module, rollouts(Letters()), warmup=2)
    assert "policy/grad_norm" not in rows[2]
    assert rows[3]["policy/grad_norm"] > 0


def test_shared_trunk_learns_values_and_policy():
    task = Letters()
    module = ppo(task, critic=CriticOptions(shared=True), inner_epochs=4, kl=KLControl(0.0))
    rows = fit(module, rollouts(task, size=16), max_epochs=12).rows
    assert rows[-1]["value/loss"] < 0.1 * rows[1]["value/loss"]
    assert rows[-1]["eval/score"] > 0.9


def test_early_stop_takes_no_step_on_the_offending_minibatch():
    def run(stop_kl):
        task, before = Letters(), []
        module = ppo(task, minibatch_size=4, inner_epochs=6, stop_kl=stop_kl, optimization=Optimization(lr=3e-3))
        record = AtHook("on_before_optimizer_step", lambda _, m: before.append(snapshot(m)))
        rows = fit(module, rollouts(task), record, max_epochs=1)
        return snapshot(module), rows.rows[-1], before

    free, free_row, before = run(None)
    assert len(before) == free_row["policy/steps"] == 12
    stopped, row, steps = run(0.7 * free_row["policy/kl_old"])
    taken = row["policy/steps"]
    assert 0 < taken < 12
    assert len(steps) == taken
    assert same(stopped, before[taken])  # the state in which the unstopped run takes the next step
    assert distance(stopped, free) > 0
    assert "policy/kl_old" in row

    stopped, row, steps = run(1e-12)  # before the second step already
    assert row["policy/steps"] == len(steps) == 1


def test_early_stop_does_not_fire_below_the_limit():
    task = Letters()
    module = ppo(task, minibatch_size=4, inner_epochs=3, stop_kl=100.0)
    assert fit(module, rollouts(task), max_epochs=1).rows[-1]["policy/steps"] == 6

"""What PPO reports: names, numbers and evaluations."""

import itertools
import math

import pytest
import torch
from training_helpers import (
    AtHook,
    BeforeUpdate,
    Letters,
    OneToken,
    PaysFor,
    fit,
    ppo,
    quiet_trainer,
    rollouts,
    snapshot,
    tiny,
)

from rlhf_lightning.algorithms.parts.critic import CriticOptions
from rlhf_lightning.algorithms.parts.kl_control import AdaptiveKLControl, KLControl
from rlhf_lightning.training.optimization import Optimization

EVALUATION = {
    "eval/score",
    "eval/gold",
    "eval/length_mean",
    "eval/eos_rate",
    "eval/distinct_2",
    "eval/kl_ref_sequence",
    "eval/kl_ref_sequence_se",
    "eval/win_rate",
    "eval/win_rate_low",
    "eval/win_rate_high",
    "eval/perplexity",
    "timing/evaluation_seconds",
}
TRAINING = {
    "iteration",
    "samples",
    "lr",
    "objective/score",
    "objective/gold",
    "objective/reward",
    "objective/kl_ref_sequence",
    "objective/kl_ref_token",
    "objective/entropy",
    "policy/loss",
    "policy/kl_old",
    "policy/clip_fraction",
    "policy/ratio_max",
    "policy/grad_norm",
    "policy/weight_change",
    "policy/steps",
    "rollout/logprob_gap",
    "value/loss",
    "value/explained_variance",
    "value/clip_fraction",
    "value/grad_norm",
    "value/weight_change",
    "kl_control/coef",
    "rollout/length_mean",
    "rollout/eos_rate",
    "rollout/distinct_2",
    "rollout/tokens_per_second",
    "timing/rollout_seconds",
    "timing/score_seconds",
    "timing/reference_seconds",
    "timing/update_seconds",
}


def test_rows_have_the_documented_names():
    task = Letters()
    module = ppo(task, eval_every=2, critic=CriticOptions(clip_range=0.2))
    rows = fit(module, rollouts(task), max_epochs=3).rows
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
    assert set(rows[0]) == {"iteration", "timing/loading_seconds"} | EVALUATION
    assert set(rows[1]) == TRAINING
    assert set(rows[2]) == TRAINING | EVALUATION  # every second iteration
    assert set(rows[3]) == TRAINING | EVALUATION  # and at the end
    for row in rows:
        assert next(iter(row)) == "iteration"
        assert all(type(value) in (int, float) and math.isfinite(value) for value in row.values())
    assert [row["samples"] for row in rows[1:]] == [8, 16, 24]


def test_rows_are_finite_with_one_heldout_prompt_and_without_gold():
    task = Letters(gold=False)
    rows = fit(ppo(task), rollouts(task, eval_prompts=1), max_epochs=1).rows
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert "eval/gold" not in rows[0]


def test_early_stop_at_once_still_gives_a_whole_row():
    task = Letters()
    free = fit(ppo(task, inner_epochs=2), rollouts(task), max_epochs=1).rows[-1]
    stopped = fit(ppo(task, inner_epochs=2, stop_kl=1e-12), rollouts(task), max_epochs=1).rows[-1]
    assert set(stopped) == set(free)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_logged_kl_is_the_one_in_the_reward(estimator):
    task, measured = Letters(), []

    def by_hand(trainer, module, prepared):
        batch = prepared.batch
        with torch.no_grad():
            own = module.policy.evaluate(batch.context, batch.actions, batch.action_mask).logprobs
            reference = module.reference.policy.evaluate(batch.context, batch.actions, batch.action_mask).logprobs
        delta = (own - reference)[batch.action_mask]
        values = {"k1": delta, "k2": delta**2 / 2, "k3": (-delta).exp() - 1 + delta}[estimator]
        measured.append((values.sum().item() / len(batch), values.mean().item()))

    module = ppo(task, kl=KLControl(0.7, estimator), inner_epochs=4)
    rows = fit(module, rollouts(task), BeforeUpdate(by_hand), max_epochs=4).rows[1:]
    assert max(abs(row["objective/kl_ref_sequence"]) for row in rows) > 0.01
    for row, (sequence, token) in zip(rows, measured, strict=True):
        penalty = 0.7 * row["objective/kl_ref_sequence"]
        assert row["objective/reward"] == pytest.approx(row["objective/score"] - penalty, abs=1e-6)
        assert row["objective/kl_ref_sequence"] == pytest.approx(sequence, abs=1e-5)
        assert row["objective/kl_ref_token"] == pytest.approx(token, abs=1e-5)


def test_adaptive_controller_steps_once_an_iteration():
    task = Letters()
    module = ppo(task, kl=AdaptiveKLControl(0.1, target=0.05, gain=0.5), inner_epochs=6)
    rows = fit(module, rollouts(task), max_epochs=6).rows[1:]
    for row, following in itertools.pairwise(rows):
        error = min(max(row["objective/kl_ref_sequence"] / 0.05 - 1, -0.2), 0.2)
        assert following["kl_control/coef"] == pytest.approx(row["kl_control/coef"] * (1 + 0.5 * error))
    assert rows[1]["kl_control/coef"] == pytest.approx(0.09)  # no KL yet: 1 − 0.5 × 0.2
    assert module.reference.kl.coef != rows[-1]["kl_control/coef"]


def test_controller_waits_while_only_the_critic_learns():
    task = Letters()
    module = ppo(task, kl=AdaptiveKLControl(0.1), critic=CriticOptions(warmup=2))
    rows = fit(module, rollouts(task), max_epochs=4).rows
    assert [row["kl_control/coef"] for row in rows[1:4]] == [0.1, 0.1, 0.1]
    assert rows[4]["kl_control/coef"] == pytest.approx(0.09)


def test_two_modules_do_not_share_a_controller():
    kl = AdaptiveKLControl(0.1)
    task = Letters()
    fit(ppo(task, kl=kl), rollouts(task), max_epochs=2)
    assert kl.coef == 0.1


def test_evaluating_twice_gives_the_same_numbers():
    task, results = Letters(), []

    def evaluate(trainer, module):
        results.append([module.evaluate(iteration=0) for _ in range(2)])

    fit(ppo(task), rollouts(task, eval_prompts=7), AtHook("on_train_epoch_start", evaluate), max_epochs=2)
    for first, second in results:
        assert first == second
    assert results[0][0] != results[1][0]


def test_reference_against_itself_wins_half():
    task = Letters()  # seven held-out prompts: an odd number of ties
    row = fit(ppo(task), rollouts(task, eval_prompts=7), max_epochs=1).rows[0]
    assert row["eval/win_rate"] == 0.5
    assert row["eval/win_rate_low"] < 0.5 < row["eval/win_rate_high"]
    assert row["eval/kl_ref_sequence"] == pytest.approx(0, abs=1e-6)


def test_win_rate_is_that_of_the_prompts_at_hand():
    task = Letters()
    module = ppo(task)
    fit(module, rollouts(task, eval_prompts=7), max_epochs=2)
    trainer = quiet_trainer()
    [few], [many] = (trainer.validate(module, rollouts(task, eval_prompts=n), verbose=False) for n in (3, 7))
    fresh = ppo(task)
    fresh.configure_model()
    fresh.policy.load_state_dict(module.policy.state_dict())
    fresh.reference.policy.load_state_dict(module.reference.policy.state_dict())
    [alone] = trainer.validate(fresh, rollouts(task, eval_prompts=3), verbose=False)
    assert few["eval/win_rate"] == alone["eval/win_rate"]
    assert few["eval/win_rate_low"] < many["eval/win_rate_low"]


def test_win_rate_is_judged_against_the_reference():
    task = OneToken()
    module = ppo(task, inner_epochs=4, minibatch_size=64, optimization=Optimization(1e-2, "linear"), kl=KLControl(0.0))
    data = rollouts(task, PaysFor("b"), size=64, max_new_tokens=1, eval_prompts=32)
    rows = fit(module, data, max_epochs=20).rows
    # all of the policy's answers pay: it wins where the reference's does not, and ties where it does
    assert rows[-1]["eval/score"] == 1
    assert rows[-1]["eval/win_rate"] == pytest.approx(1 - rows[0]["eval/score"] / 2)


def test_samples_belong_to_the_rows():
    task = Letters()
    rows = fit(ppo(task), rollouts(task, eval_prompts=5), max_epochs=1)
    assert [sample["iteration"] for sample in rows.samples] == [0] * 5 + [1] * 5
    mean = sum(sample["score"] for sample in rows.samples[5:]) / 5
    assert mean == pytest.approx(rows.rows[-1]["eval/score"])


def test_lr_follows_its_schedule_by_iteration():
    task = Letters()
    module = ppo(
        task, optimization=Optimization(0.1, "linear", warmup=0.5), critic=CriticOptions(lr=0.2), inner_epochs=2
    )
    rates = []
    record = AtHook(
        "on_before_optimizer_step", lambda t, _: rates.append([g["lr"] for g in t.optimizers[0].param_groups])
    )
    rows = fit(module, rollouts(task), record, max_epochs=4).rows[1:]
    # up in 2 of 4 iterations, from 0; down to 0 over the other 2, which is reached after the last
    assert [row["lr"] for row in rows] == pytest.approx([0, 0.05, 0.1, 0.05])
    assert rates == [[rate, 2 * rate] for rate in (0, 0, 0.05, 0.05, 0.1, 0.1, 0.05, 0.05)]


def test_gradients_are_clipped_for_each_network_by_itself():
    task, limit = Letters(), 1e-3
    module = ppo(task, optimization=Optimization(1e-2, max_grad_norm=limit), critic=CriticOptions(lr=1e-2))
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, rollouts(task))
    first_moments = {}
    for group in trainer.optimizers[0].param_groups:
        moments = [trainer.optimizers[0].state[p]["exp_avg"] for p in group["params"]]
        first_moments[group["name"]] = torch.stack([m.norm() for m in moments]).norm().item()
    # after one step the first moment is (1 − 0.9) times the gradient that reached the optimizer
    assert first_moments["policy"] == pytest.approx(0.1 * limit, rel=1e-3)
    assert first_moments["value"] == pytest.approx(0.1 * limit, rel=1e-3)


def test_reported_gradient_norms_are_means_before_clipping():
    task, norms = Letters(), []

    def measure(trainer, module):
        norms.append(torch.stack([p.grad.norm() for p in module.policy.parameters()]).norm().item())

    module = ppo(task, minibatch_size=2, optimization=Optimization(1e-2, max_grad_norm=1e-3))
    row = fit(module, rollouts(task), AtHook("on_before_optimizer_step", measure), max_epochs=1).rows[-1]
    assert len(norms) == 4
    assert row["policy/grad_norm"] == pytest.approx(sum(norms) / 4, rel=1e-5)


def test_training_leaves_the_reference_as_it_is():
    task = Letters()
    module = ppo(task, backbone=tiny(), optimization=Optimization(1e-2, weight_decay=0.1))
    start = []
    record = AtHook("on_fit_start", lambda _, m: start.append(snapshot(m.policy)))
    fit(module, rollouts(task), record, max_epochs=2)
    assert all(torch.equal(start[0][name], tensor) for name, tensor in snapshot(module.reference.policy).items())
    assert not all(torch.equal(start[0][name], tensor) for name, tensor in snapshot(module.policy).items())

"""The natural policy gradient: its step in closed form, and what must not change it."""

import math

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from run_checks import microbatches_change_nothing, padding_changes_nothing, resumed_run_is_identical
from training_helpers import (
    AtHook,
    BeforeUpdate,
    Iterations,
    Letters,
    distance,
    fit,
    rollouts,
    same,
    snapshot,
    tiny,
)

from rlhf_lightning.algorithms.base import natural
from rlhf_lightning.algorithms.npg import NPG
from rlhf_lightning.algorithms.parts import fisher as geometry
from rlhf_lightning.algorithms.parts.critic import CriticOptions
from rlhf_lightning.algorithms.parts.fisher import FisherOptions
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.lora import LoRA
from rlhf_lightning.models.tabular import OPEN, TabularBackbone
from rlhf_lightning.tasks.bandit import Bandit
from rlhf_lightning.training.optimization import Optimization

SIZE, WIDTH, TEMPERATURE, DAMPING = 12, OPEN * 3, 0.8, 0.05


def algorithm(task, **settings):
    defaults = {
        "optimization": Optimization(lr=1e-2),
        "fisher": FisherOptions(iterations=5),
        "minibatch_size": SIZE,
        "critic_epochs": 2,
        "eval_every": 1000,
    }
    return NPG(task, settings.pop("backbone", None) or tiny(), **{**defaults, **settings})


def collect():
    return rollouts(Letters(), size=SIZE)


def tabular(**settings):
    """One iteration on the tree, solved to the end; the module, its row and batch, and where the logits stood."""
    task, start, seen = Bandit(), {}, Iterations()
    # there are 21 parameters, so conjugate gradient is done after 21 iterations
    exact = FisherOptions(damping=DAMPING, iterations=40, tolerance=1e-14)
    module = algorithm(task, backbone=TabularBackbone(), temperature=TEMPERATURE, fisher=exact, **settings)
    remember = BeforeUpdate(lambda _, m, prepared: start.update(logits=m.policy.logits.detach().clone()))
    data = rollouts(task, task.gold(), size=SIZE, max_new_tokens=3)
    row = fit(module, data, seen, remember, max_epochs=1, precision="64-true").rows[-1]
    return module, row, seen.batch, start["logits"]


def score_functions(logits, batch):
    """Of each action of the batch: its advantage, its prefix, and ∇ log π of all three tokens, as rows of [3, 21]."""
    for i in range(len(batch)):
        prefix = 0
        for t, action in enumerate(batch.actions[i][batch.action_mask[i]].tolist()):
            p = (logits[prefix] / TEMPERATURE).softmax(-1)
            gradients = torch.zeros(3, OPEN, 3, dtype=torch.float64)
            gradients[:, prefix] = (torch.eye(3, dtype=torch.float64) - p) / TEMPERATURE
            yield batch.advantages[i, t], action, p, gradients.flatten(1)
            prefix = 2 * prefix + action


def closed_form(logits, batch):
    """F⁻¹ g, g, and F with its damping; F is a mean over actions, g one over responses of sums over actions."""
    gradient, fisher = torch.zeros(WIDTH, dtype=torch.float64), torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    for advantage, action, p, gradients in score_functions(logits, batch):
        gradient += advantage * gradients[action] / SIZE
        fisher += sum(p[k] * gradients[k].outer(gradients[k]) for k in range(3)) / batch.action_mask.sum()
    fisher += DAMPING * torch.eye(WIDTH, dtype=torch.float64)
    return torch.linalg.inv(fisher) @ gradient, gradient, fisher


@pytest.mark.parametrize("max_kl", [0.001, 0.5])
def test_step_is_the_natural_gradient_scaled_to_the_trust_region(max_kl):
    module, row, batch, start = tabular(max_kl=max_kl)
    direction, gradient, fisher = closed_form(start, batch)
    # ½ s² xᵀFx = δ
    scale = (2 * max_kl / (direction @ fisher @ direction)).sqrt()
    step = (module.policy.logits.detach() - start).flatten()
    torch.testing.assert_close(step, scale * direction, rtol=1e-9, atol=1e-11)
    assert row["trust_region/step_size"] == pytest.approx(scale.item(), rel=1e-9)
    assert row["trust_region/improvement_expected"] == pytest.approx((gradient @ step).item(), rel=1e-9)
    assert row["policy/grad_norm"] == pytest.approx(gradient.norm().item(), rel=1e-9)
    assert row["trust_region/cg_residual"] < 1e-9
    assert gradient.norm() > 0.1


@pytest.mark.parametrize("step_size", [0.02, 3.0])
def test_fixed_step_is_the_natural_gradient_times_its_size(step_size):
    module, row, batch, start = tabular(step_size=step_size)
    direction, _, _ = closed_form(start, batch)
    step = (module.policy.logits.detach() - start).flatten()
    torch.testing.assert_close(step, step_size * direction, rtol=1e-9, atol=1e-11)
    assert row["trust_region/step_size"] == step_size


def test_kl_of_the_step_is_measured():
    # of a short step it is what the quadratic model says, less the share of the damping
    _, row, batch, start = tabular(max_kl=1e-8)
    direction, _, fisher = closed_form(start, batch)
    share = 1 - DAMPING * (direction @ direction) / (direction @ fisher @ direction)
    assert 0.1 < share < 0.99
    assert row["trust_region/kl"] == pytest.approx(1e-8 * share.item(), rel=1e-3)


def test_advantages_are_not_whitened():
    found, whitened = [], []
    for scale in (1.0, 3.0):
        task, seen = Bandit(scale=scale), Iterations()
        module = algorithm(task, backbone=TabularBackbone(), kl=KLControl(0.0), step_size=0.1)
        fit(module, rollouts(task, task.gold(), size=SIZE, max_new_tokens=3), seen, max_epochs=1)
        found.append(module.policy.logits.detach() - module.reference.policy.logits)
        whitened.append(seen.batch.advantages[seen.batch.action_mask].var().item())
    torch.testing.assert_close(found[1], 3 * found[0], rtol=1e-4, atol=1e-6)
    assert whitened[0] != pytest.approx(1, abs=0.05)


def test_share_of_npg_is_drawn_anew_in_each_iteration(monkeypatch):
    keys, build = [], natural.PolicyGeometry
    monkeypatch.setattr(natural, "PolicyGeometry", lambda *args, **kw: keys.append(kw["key"]) or build(*args, **kw))
    task = Letters()
    fit(algorithm(task), rollouts(task, size=SIZE), max_epochs=3)
    assert keys == [0, 1, 2]


# -- what moves ---------------------------------------------------------------------------------------------------


def test_only_adapters_move(tmp_path):
    task = Letters()
    tiny().policy(task.tokenizer).save(tmp_path)
    module = algorithm(task, backbone=tiny(checkpoint=str(tmp_path), lora=LoRA(rank=2, alpha=8.0)))
    row = fit(module, rollouts(task, size=SIZE), max_epochs=2).rows[-1]
    start, end = snapshot(module.reference.policy), snapshot(module.policy)
    assert {name for name in end if not torch.equal(end[name], start[name])} == {n for n in end if ".lora_" in n}
    assert 1e-4 < row["trust_region/kl"] < 0.05


def test_policy_waits_for_the_critic_and_adamw_never_has_it():
    task, states, groups = Letters(), [], []

    def record(trainer, module):
        states.append((snapshot(module.policy), snapshot(module.critic)))
        groups.append([(group["name"], len(group["params"])) for group in trainer.optimizers[0].param_groups])

    module = algorithm(
        task, critic=CriticOptions(warmup=1), optimization=Optimization(lr=1e-2, weight_decay=0.5), max_kl=1e-30
    )
    rows = fit(module, rollouts(task, size=SIZE), AtHook("on_train_epoch_end", record), max_epochs=2).rows
    reference = snapshot(module.reference.policy)
    assert same(states[0][0], reference)
    assert distance(states[1][0], reference) < 1e-6  # a step of no length, and no weight decay
    assert distance(states[1][1], states[0][1]) > 1e-3
    assert "trust_region/kl" not in rows[1]
    assert "trust_region/kl" in rows[2]
    assert groups[0] == [("value", len(list(module.critic.network.parameters())))]


# -- what must not change it --------------------------------------------------------------------------------------


def test_microbatches_change_nothing_in_npg():
    def build(sizes):
        return algorithm(
            Letters(),
            optimization=Optimization(3e-3, max_grad_norm=0.1, microbatch_size=sizes[0]),
            fisher=FisherOptions(fraction=0.7, microbatch_size=sizes[1], iterations=3),
        )

    module, _ = microbatches_change_nothing(build, collect, sizes=[(None, None), (5, 3)], iterations=3)
    assert distance(snapshot(module.policy), snapshot(module.reference.policy)) > 0.01


def test_padding_changes_nothing_in_npg():
    padding_changes_nothing(lambda: algorithm(Letters()), collect)


def test_resumed_npg_is_bit_identical(tmp_path):
    def build():
        return algorithm(Letters(), fisher=FisherOptions(fraction=0.5, iterations=3))

    resumed_run_is_identical(build, collect, tmp_path, iterations=3, after=1)


PRECISIONS = {
    "bfloat16": {"precision": "bf16-mixed"},
    # float16 with the scaling of gradients that comes with it
    "float16": {"plugins": [MixedPrecision("16-mixed", "cpu")]},
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_natural_step_is_in_full_precision_under_autocast(precision, monkeypatch):
    solve, seen, steps = geometry.conjugate_gradient, [], []

    def watched(product, target, **settings):
        image = product(target)
        seen.append((torch.is_autocast_enabled("cpu"), target.dtype, (target @ image).dtype))
        return solve(product, target, **settings)

    monkeypatch.setattr(geometry, "conjugate_gradient", watched)
    for settings in ({}, PRECISIONS[precision]):
        task = Letters()
        module = algorithm(task, step_size=0.1)
        row = fit(module, rollouts(task, size=SIZE), max_epochs=1, **settings).rows[-1]
        steps.append((row["policy/grad_norm"], row["trust_region/kl"], row["trust_region/improvement_expected"]))
    assert seen == [(False, torch.float32, torch.float32)] * 2
    assert steps[1] == pytest.approx(steps[0], rel=0.03)  # they sampled and valued with another rounding
    assert steps[0][1] > 1e-4


# -- what it says -------------------------------------------------------------------------------------------------

NAMES = {
    *("policy/loss", "policy/grad_norm", "policy/weight_change", "objective/entropy", "rollout/logprob_gap"),
    *(f"trust_region/{name}" for name in ("kl", "step_size", "cg_residual", "improvement_expected")),
    *("value/loss", "value/grad_norm", "value/weight_change", "value/explained_variance"),
}


def test_rows_of_npg_have_the_documented_names():
    task = Letters()
    row = fit(algorithm(task), rollouts(task, size=SIZE), max_epochs=2).rows[-1]
    own = {name for name in row if name.startswith(("policy/", "trust_region/", "value/"))}
    assert own | (set(row) & NAMES) == NAMES
    assert all(type(value) in (int, float) and math.isfinite(value) for value in row.values())
    assert row["rollout/logprob_gap"] <= 1e-4


def test_npg_finds_the_best_response_of_the_tree():
    task = Bandit()
    scores = sorted(task.scores().tolist())
    module = algorithm(task, backbone=TabularBackbone(), max_kl=0.1, kl=KLControl(0.0), minibatch_size=64)
    data = rollouts(task, task.gold(), size=64, max_new_tokens=3, eval_prompts=64)
    rows = fit(module, data, max_epochs=15).rows
    assert rows[0]["eval/score"] < scores[-3] - 0.5
    assert rows[-1]["eval/score"] > scores[-3] + 0.4  # the two best are almost as good as each other


def test_step_that_is_not_finite_stops_the_run(monkeypatch):
    monkeypatch.setattr(geometry, "conjugate_gradient", lambda product, target, **_: (target * math.nan, target[0]))
    task = Letters()
    with pytest.raises(UserError, match=r"^the natural step is nan at iteration 1[^\n]*$"):
        fit(algorithm(task), rollouts(task, size=SIZE), max_epochs=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_kl": 0.0}, "max_kl must be above 0 nats per action, got 0.0"),
        ({"max_kl": math.nan}, "max_kl must be above 0 nats per action, got nan"),
        ({"step_size": 0.0}, r"step_size must be above 0 \(null for max_kl\), got 0.0"),
        ({"step_size": math.inf}, r"step_size must be above 0 \(null for max_kl\), got inf"),
        ({"critic_epochs": 0}, "critic_epochs must be at least 1, got 0"),
        ({"lam": -0.1}, "lam must be between 0 and 1, got -0.1"),
        ({"critic": CriticOptions(shared=True)}, "critic.shared would .* expected a critic of its own"),
    ],
)
def test_bad_arguments_of_npg_are_named_in_one_line(settings, message):
    with pytest.raises(UserError, match=rf"^model\.init_args\.{message}$"):
        algorithm(Letters(), **settings)

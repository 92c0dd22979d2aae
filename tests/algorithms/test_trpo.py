"""TRPO: its step against dense algebra and loops, what is rejected, and what must not change it."""

import math

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from plain_forward import sequences, token_logprobs
from run_checks import microbatches_change_nothing, padding_changes_nothing, policy_waits_for_the_critic
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
from rlhf_lightning.algorithms.parts import fisher as geometry
from rlhf_lightning.algorithms.parts.critic import CriticOptions
from rlhf_lightning.algorithms.parts.fisher import FisherOptions
from rlhf_lightning.algorithms.parts.kl_control import AdaptiveKLControl, KLControl
from rlhf_lightning.algorithms.trpo import TRPO
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.lora import LoRA
from rlhf_lightning.models.tabular import OPEN, TabularBackbone
from rlhf_lightning.tasks.bandit import Bandit
from rlhf_lightning.training.optimization import Optimization


def algorithm(task, **settings):
    defaults = {
        "optimization": Optimization(lr=1e-2),
        "fisher": FisherOptions(iterations=5),
        "minibatch_size": 8,
        "critic_epochs": 2,
        "eval_every": 1000,
    }
    return TRPO(task, settings.pop("backbone", None) or tiny(), **{**defaults, **settings})


# -- the step -----------------------------------------------------------------------------------------------------


class Witness:
    """Measures by loops what each iteration did: the KL from the old policy, and the gain of the surrogate."""

    def __init__(self):
        self.before, self.kls, self.gains, self.seen = None, [], [], Iterations()
        self.callbacks = (self.seen, BeforeUpdate(self.start), AtHook("on_train_batch_end", self.end))

    @torch.no_grad()
    def start(self, trainer, module, prepared):
        self.before = [token_logprobs(module.policy, *row) for row in sequences(prepared.batch)]

    @torch.no_grad()
    def end(self, trainer, module):
        batch, kl, gain = self.seen.batch, 0.0, 0.0
        for i, (p, row) in enumerate(zip(self.before, sequences(batch), strict=True)):
            q = token_logprobs(module.policy, *row)
            kl += (p.exp() * (p - q)).sum().item()
            for t in range(len(p)):
                ratio = (q - p)[t, batch.actions[i, t]].exp().item()
                gain += (ratio - 1) * batch.advantages[i, t].item()
        self.kls.append(kl / batch.action_mask.sum().item())
        self.gains.append(gain / len(batch))


@pytest.mark.parametrize("max_kl", [0.003, 0.1])
def test_accepted_steps_stay_in_the_trust_region_and_improve_the_surrogate(max_kl):
    task, witness = Letters(), Witness()
    module = algorithm(
        task, max_kl=max_kl, temperature=0.7, kl=KLControl(0.01), fisher=FisherOptions(damping=0.01, iterations=5)
    )
    rows = fit(module, rollouts(task, size=12), *witness.callbacks, max_epochs=4, precision="64-true").rows[1:]
    assert [row["trust_region/kl"] for row in rows] == pytest.approx(witness.kls, rel=1e-6)
    assert [row["trust_region/improvement_actual"] for row in rows] == pytest.approx(witness.gains, rel=1e-6)
    assert rows[-1]["trust_region/rejections"] == 0
    assert all(0.2 * max_kl < kl <= max_kl for kl in witness.kls)  # of use, too
    assert all(gain > 0 for gain in witness.gains)
    assert all(row["trust_region/step_size"] == 0.5 ** row["trust_region/backtracks"] for row in rows)


@pytest.mark.parametrize("damping", [0.05, 1.0])
def test_step_is_the_scaled_solution_of_the_damped_system(damping):
    max_kl, found, seen = 0.01, {}, Iterations()
    task = Bandit()
    module = algorithm(
        task,
        backbone=TabularBackbone(),
        max_kl=max_kl,
        temperature=0.8,
        # 21 parameters: conjugate gradient is done after 21 iterations
        fisher=FisherOptions(damping=damping, iterations=40, tolerance=1e-14),
    )

    def remember(trainer, module, prepared):
        found["logits"] = module.policy.logits.detach().clone()

    rows = fit(
        module,
        rollouts(task, task.gold(), size=12, max_new_tokens=3),
        seen,
        BeforeUpdate(remember),
        max_epochs=1,
        precision="64-true",
    ).rows

    start, batch = found["logits"], seen.batch
    gradient = torch.zeros(OPEN, 3, dtype=torch.float64)
    fisher = damping * torch.eye(OPEN * 3, dtype=torch.float64)
    tokens = batch.action_mask.sum().item()
    for i in range(len(batch)):
        prefix = 0
        for t in range(int(batch.action_mask[i].sum())):
            action = batch.actions[i, t]
            p = (start[prefix] / 0.8).softmax(-1)
            gradient[prefix] += (
                batch.advantages[i, t] * (torch.eye(3, dtype=torch.float64)[action] - p) / 0.8 / len(batch)
            )
            rows_of = slice(3 * prefix, 3 * prefix + 3)
            fisher[rows_of, rows_of] += (p.diag() - p.outer(p)) / 0.8**2 / tokens
            prefix = 2 * prefix + int(action)
    solution = torch.linalg.solve(fisher, gradient.flatten())
    full_step = (2 * max_kl / (solution @ fisher @ solution)).sqrt() * solution
    row = rows[-1]
    assert row["trust_region/improvement_expected"] == pytest.approx((gradient.flatten() @ full_step).item(), rel=1e-9)
    assert row["policy/grad_norm"] == pytest.approx(gradient.norm().item(), rel=1e-9)
    assert row["trust_region/cg_residual"] < 1e-9
    assert row["trust_region/step_size"] > 0
    expected = start + row["trust_region/step_size"] * full_step.view(OPEN, 3)
    torch.testing.assert_close(module.policy.logits.detach(), expected, rtol=1e-9, atol=1e-11)


def test_advantages_are_whitened_over_the_rollout():
    task, seen = Letters(), Iterations()
    fit(algorithm(task), rollouts(task), seen, max_epochs=1)
    counted = seen.batch.advantages[seen.batch.action_mask].double()
    assert counted.mean().item() == pytest.approx(0, abs=1e-6)
    assert counted.var(unbiased=False).item() == pytest.approx(1, abs=1e-4)


# -- rejection ----------------------------------------------------------------------------------------------------


def misled(monkeypatch, change, iterations):
    """In some iterations conjugate gradient answers with something else."""
    solve, calls = geometry.conjugate_gradient, []

    def solve_badly(*args, **settings):
        solution, residual = solve(*args, **settings)
        calls.append(1)
        return (change(solution) if len(calls) in iterations else solution), residual

    monkeypatch.setattr(geometry, "conjugate_gradient", solve_badly)


def broken(solution):
    return torch.where(torch.arange(len(solution)) == 3, math.nan, solution)


@pytest.mark.parametrize("change", [torch.neg, broken, torch.zeros_like], ids=["negative", "nan", "zero"])
def test_bad_direction_is_rejected_and_leaves_the_policy_bit_identical(change, monkeypatch):
    misled(monkeypatch, change, iterations={1, 3})
    task, states = Letters(), []
    module = algorithm(task, optimization=Optimization(lr=1e-2, weight_decay=0.1))
    record = AtHook("on_train_epoch_end", lambda _, m: states.append((snapshot(m.policy), snapshot(m.critic))))
    rows = fit(module, rollouts(task), record, max_epochs=3).rows[1:]
    reference = snapshot(module.reference.policy)
    assert same(states[0][0], reference)
    assert distance(states[1][0], reference) > 1e-3
    assert same(states[2][0], states[1][0])
    assert distance(states[2][1], states[1][1]) > 1e-3  # the critic learns all the same
    assert [row["trust_region/rejections"] for row in rows] == [1, 1, 2]
    for row in (rows[0], rows[2]):
        names = ("kl", "step_size", "improvement_actual")
        assert [row[f"trust_region/{name}"] for name in names] == [0, 0, 0]
    assert rows[1]["trust_region/step_size"] > 0


def test_step_that_is_too_long_for_every_backtrack_is_rejected(monkeypatch):
    task = Letters()
    monkeypatch.setattr(geometry, "trust_region_scale", lambda direction, image, *, max_kl: direction.new_tensor(1e6))
    module = algorithm(task, max_backtracks=1, shrink=0.9)
    row = fit(module, rollouts(task), max_epochs=1).rows[-1]
    assert (row["trust_region/rejections"], row["trust_region/backtracks"]) == (1, 1)
    assert same(snapshot(module.policy), snapshot(module.reference.policy))


def test_line_search_goes_back_as_often_as_it_must(monkeypatch):
    task, scale = Letters(), geometry.trust_region_scale
    fits = fit(algorithm(task), rollouts(task), max_epochs=1).rows[-1]
    assert fits["trust_region/backtracks"] == 0
    monkeypatch.setattr(geometry, "trust_region_scale", lambda *args, **settings: 16 * scale(*args, **settings))
    row = fit(algorithm(task, shrink=0.7), rollouts(task), max_epochs=1).rows[-1]
    assert 1 < row["trust_region/backtracks"] <= 8  # 16 · 0.7⁸ = 0.92 of the step that fits
    assert row["trust_region/step_size"] == 0.7 ** row["trust_region/backtracks"]
    assert row["trust_region/kl"] <= 0.01


def test_share_of_trpo_is_drawn_anew_in_each_iteration(monkeypatch):
    keys, build = [], natural.PolicyGeometry
    monkeypatch.setattr(natural, "PolicyGeometry", lambda *args, **kw: keys.append(kw["key"]) or build(*args, **kw))
    task = Letters()
    fit(algorithm(task), rollouts(task), max_epochs=3)
    assert keys == [0, 1, 2]


# -- a resumed run ------------------------------------------------------------------------------------------------


def test_resumed_trpo_is_bit_identical_and_goes_on_counting(tmp_path, monkeypatch):
    def run(*callbacks, bad, **settings):
        with monkeypatch.context() as patch:
            misled(patch, torch.neg, iterations=bad)
            task = Letters()
            module = algorithm(
                task,
                optimization=Optimization(1e-2, "cosine", warmup=0.25, weight_decay=0.01),
                kl=AdaptiveKLControl(0.1, target=0.05),
                fisher=FisherOptions(fraction=0.5, iterations=5),
            )
            rows = fit(module, rollouts(task), *callbacks, max_epochs=4, **settings)
        return rows.untimed(), snapshot(module), module.reference.kl.state_dict()

    keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    whole = run(keep, bad={2, 4})
    resumed = run(bad={2}, ckpt_path=tmp_path / "epoch=1.ckpt")  # the fourth solve is the second after the resume
    assert [row.get("trust_region/rejections") for row in whole[0]] == [None, 0, 1, 1, 2]
    assert resumed[0] == whole[0][3:]
    assert same(resumed[1], whole[1])
    assert resumed[2] == whole[2]


# -- what moves ---------------------------------------------------------------------------------------------------


def test_only_adapters_move_and_the_trust_region_holds(tmp_path):
    task, witness = Letters(), Witness()
    tiny().policy(task.tokenizer).save(tmp_path)
    backbone = tiny(checkpoint=str(tmp_path), lora=LoRA(rank=2, alpha=8.0))
    module = algorithm(task, backbone=backbone, max_kl=0.02, fisher=FisherOptions(damping=0.01, iterations=5))
    rows = fit(module, rollouts(task), *witness.callbacks, max_epochs=4).rows[1:]
    start, end = snapshot(module.reference.policy), snapshot(module.policy)
    moved = {name for name in end if not torch.equal(end[name], start[name])}
    assert moved == {name for name in end if ".lora_" in name}
    assert rows[-1]["trust_region/rejections"] == 0
    assert [row["trust_region/kl"] for row in rows] == pytest.approx(witness.kls, rel=1e-2)
    assert all(1e-4 < kl <= 0.02 * (1 + 1e-3) for kl in witness.kls)
    assert all(gain > 0 for gain in witness.gains)


def test_adamw_has_the_critic_alone():
    task, held = Letters(), []
    module = algorithm(task, critic=CriticOptions(lr=5e-3), optimization=Optimization(lr=1e-2, weight_decay=0.5))
    record = AtHook("on_train_start", lambda trainer, _: held.extend(trainer.optimizers[0].param_groups))
    fit(module, rollouts(task), record, max_epochs=1)
    assert [(group["name"], group["lr"]) for group in held] == [("value", 5e-3)]
    assert {id(p) for group in held for p in group["params"]} == {id(p) for p in module.critic.network.parameters()}


def test_policy_waits_while_the_critic_is_warmed_up():
    module = algorithm(Letters(), critic=CriticOptions(warmup=1))
    rows = policy_waits_for_the_critic(module, rollouts(Letters()), warmup=1)
    assert "trust_region/kl" not in rows[1]
    assert rows[2]["trust_region/kl"] > 0


# -- what must not change it --------------------------------------------------------------------------------------


def test_microbatches_change_nothing_in_trpo():
    def build(sizes):
        return algorithm(
            Letters(),
            optimization=Optimization(3e-3, max_grad_norm=0.1, microbatch_size=sizes[0]),
            fisher=FisherOptions(fraction=0.7, microbatch_size=sizes[1], iterations=3),
            max_kl=0.01,
        )

    sizes = [(None, None), (1, 3), (3, None)]
    module, _ = microbatches_change_nothing(build, lambda: rollouts(Letters()), sizes=sizes, iterations=3, rel=1e-6)
    assert distance(snapshot(module.policy), snapshot(module.reference.policy)) > 0.01


def test_padding_changes_nothing_in_trpo():
    rows = padding_changes_nothing(lambda: algorithm(Letters()), lambda: rollouts(Letters()))
    assert rows[-1]["trust_region/kl"] > 0


PRECISIONS = {
    "bfloat16": {"precision": "bf16-mixed"},
    # float16 with the scaling of gradients that comes with it
    "float16": {"plugins": [MixedPrecision("16-mixed", "cpu")]},
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_step_is_in_full_precision_under_autocast(precision, monkeypatch):
    task, seen, rows = Letters(), [], {}
    solve = geometry.conjugate_gradient

    def watched(product, target, **settings):
        image = product(target)
        seen.append((torch.is_autocast_enabled("cpu"), target.dtype, image.dtype, (target @ image).dtype))
        return solve(product, target, **settings)

    monkeypatch.setattr(geometry, "conjugate_gradient", watched)
    for name, settings in (("float32", {}), (precision, PRECISIONS[precision])):
        rows[name] = fit(algorithm(task), rollouts(task), max_epochs=1, **settings).rows[-1]
    assert seen == [(False, torch.float32, torch.float32, torch.float32)] * 2
    for name in ("policy/grad_norm", "trust_region/kl", "trust_region/improvement_actual"):
        assert rows[precision][name] == pytest.approx(
            rows["float32"][name], rel=0.02
        )  # from another rollout's rounding
    assert rows[precision]["trust_region/step_size"] == 1


# -- what it says and what it learns ------------------------------------------------------------------------------

NAMES = {
    *("policy/loss", "policy/grad_norm", "policy/weight_change", "objective/entropy", "rollout/logprob_gap"),
    *(f"trust_region/{name}" for name in ("kl", "step_size", "backtracks", "cg_residual", "rejections")),
    *("trust_region/improvement_expected", "trust_region/improvement_actual"),
    *("value/loss", "value/grad_norm", "value/weight_change", "value/explained_variance"),
}


def test_rows_of_trpo_have_the_documented_names():
    task = Letters()
    row = fit(algorithm(task), rollouts(task), max_epochs=2).rows[-1]
    assert {name for name in row if name.startswith(("policy/", "trust_region/", "value/"))} | (
        set(row) & NAMES
    ) == NAMES
    assert all(type(value) in (int, float) and math.isfinite(value) for value in row.values())
    assert row["rollout/logprob_gap"] <= 1e-4


def test_critic_is_fitted_to_the_returns():
    task, errors, seen = Letters(), [], Iterations()

    @torch.no_grad()
    def measure(trainer, module, *prepared):
        batch = seen.batch
        values = module.critic.network.values(batch)
        errors.append((values - batch.returns)[batch.action_mask].square().mean().item())

    module = algorithm(task, critic_epochs=20, max_kl=1e-9)
    fit(module, rollouts(task), seen, BeforeUpdate(measure), AtHook("on_train_batch_end", measure), max_epochs=1)
    assert errors[1] < 0.3 * errors[0]


def test_trpo_finds_the_best_response_of_the_tree():
    task = Bandit()
    scores = sorted(task.scores().tolist())
    module = algorithm(task, backbone=TabularBackbone(), max_kl=0.1, kl=KLControl(0.0), minibatch_size=64)
    data = rollouts(task, task.gold(), size=64, max_new_tokens=3, eval_prompts=64)
    rows = fit(module, data, max_epochs=25).rows
    assert rows[0]["eval/score"] < scores[-3] - 0.5
    assert rows[-1]["eval/score"] > scores[-3] + 0.4  # the two best are almost as good as each other
    assert rows[-1]["trust_region/rejections"] == 0


# -- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_kl": 0.0}, "max_kl must be above 0 nats per action, got 0.0"),
        ({"max_kl": -0.01}, "max_kl must be above 0 nats per action, got -0.01"),
        ({"max_kl": math.inf}, "max_kl must be above 0 nats per action, got inf"),
        ({"max_backtracks": -1}, "max_backtracks must be 0 or more, got -1"),
        ({"shrink": 1.0}, "shrink must be between 0 and 1, got 1.0"),
        ({"critic_epochs": 0}, "critic_epochs must be at least 1, got 0"),
        ({"lam": 1.1}, "lam must be between 0 and 1, got 1.1"),
        ({"gamma": -0.1}, "gamma must be between 0 and 1, got -0.1"),
        ({"critic": CriticOptions(shared=True)}, "critic.shared would .* expected a critic of its own"),
    ],
)
def test_bad_arguments_of_trpo_are_named_in_one_line(settings, message):
    with pytest.raises(UserError, match=rf"^model\.init_args\.{message}$"):
        algorithm(Letters(), **settings)


def test_minibatch_of_no_responses_is_refused():
    task = Letters()
    with pytest.raises(UserError, match=r"minibatch_size is 0"):
        fit(algorithm(task, minibatch_size=0), rollouts(task), max_epochs=1)

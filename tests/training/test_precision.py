"""bfloat16 beside float32, and the order of unscaling and clipping under a gradient scaler."""

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from training_helpers import AtHook, Letters, distance, fit, ppo, rollouts, same, snapshot, tiny

from rlhf_lightning.algorithms.sft import SFT
from rlhf_lightning.data.demonstrations import DemonstrationDataModule
from rlhf_lightning.training.optimization import Optimization

CLIPPED = Optimization(lr=1e-2, max_grad_norm=0.1)
"""A limit that every gradient here is above."""


def run_sft(steps, *callbacks, optimization=CLIPPED, **settings):
    task = Letters()
    module = SFT(task, tiny(), optimization, log_every=1)
    rows = fit(module, DemonstrationDataModule(task, 13), *callbacks, max_steps=steps, max_epochs=-1, **settings)
    return rows.untimed(), module


def run_ppo(iterations, *callbacks, **settings):
    task = Letters()
    module = ppo(task, minibatch_size=16, inner_epochs=2, eval_every=iterations, optimization=CLIPPED)
    data = rollouts(task, size=32, eval_prompts=7)
    return fit(module, data, *callbacks, max_epochs=iterations, **settings).untimed(), module


class Scaled(MixedPrecision):
    """A gradient scaler as under 16-mixed, and float32 all the same: what differs is the scaler."""

    def __init__(self):
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))

    def autocast_context_manager(self):
        return torch.autocast("cpu", enabled=False)


def test_sft_in_bfloat16_learns_as_in_float32():
    ends = {}
    for precision in ("32-true", "bf16-mixed"):
        rows, module = run_sft(60, precision=precision)
        losses = [row["sft/loss"] for row in rows if "sft/loss" in row]
        assert all(parameter.dtype == torch.float32 for parameter in module.parameters())
        ends[precision] = losses[-1]
        assert losses[-1] < 0.5 * losses[0]
        ends[precision, "start"] = losses[0]
    # bfloat16 keeps 8 bits: 0.4 % of each number
    assert ends["bf16-mixed", "start"] == pytest.approx(ends["32-true", "start"], rel=4e-3)
    assert ends["bf16-mixed"] == pytest.approx(ends["32-true"], abs=0.02)


def test_ppo_in_bfloat16_learns_as_in_float32():
    ends = {}
    for precision in ("32-true", "bf16-mixed"):
        rows, _ = run_ppo(15, precision=precision)
        ends[precision] = rows[-1]["objective/score"]
        assert ends[precision] > rows[1]["objective/score"] + 0.3
    assert ends["bf16-mixed"] == pytest.approx(ends["32-true"], abs=0.1)


@pytest.mark.parametrize("run", [run_sft, run_ppo])
def test_scaler_changes_nothing(run):
    # a power of two scales without rounding, and AdamW rounds otherwise in one kernel: clipping before unscaling would
    # change everything
    rows, module = run(3)
    scaled_rows, scaled_module = run(3, plugins=[Scaled()])
    assert len(rows) == len(scaled_rows)
    for scaled_row, row in zip(scaled_rows, rows, strict=True):
        assert scaled_row == pytest.approx(row, rel=1e-4, abs=1e-6)
    assert distance(snapshot(scaled_module), snapshot(module)) < 1e-4  # a step moves a weight by 1e-2
    norms = [row[name] for row in rows for name in row if name.endswith("grad_norm")]
    assert min(norms) > CLIPPED.max_grad_norm


def test_step_that_overflows_is_skipped_and_the_scale_falls():
    plugin, states, hooks = Scaled(), [], []

    def overflow(trainer, module):
        states.append(snapshot(module))
        for hook in hooks:
            hook.remove()
        if len(states) == 2:
            parameter = next(module.policy.parameters())
            hooks.append(parameter.register_hook(lambda gradient: gradient * float("inf")))

    run_sft(3, AtHook("on_train_batch_start", overflow), plugins=[plugin])
    assert not same(states[0], states[1])
    assert same(states[1], states[2])
    assert plugin.scaler.get_scale() == 512.0

"""What must not change a run of a policy optimizer, and its gradients against those of a loss computed by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from plain_forward import trained_parameters
from training_helpers import AtHook, BeforeUpdate, distance, fit, poison, same, snapshot

from rlhf_lightning.algorithms.base.on_policy import OnPolicy

Build = Callable[..., OnPolicy]
Collect = Callable[[], LightningDataModule]
Rows = list[dict[str, float]]


def compared_gradients(
    module: OnPolicy,
    data: LightningDataModule,
    by_hand: Callable[..., Any],
    *callbacks: Callback,
    iterations: int = 3,
    start: int = 0,
) -> int:
    """Compare each step's gradient with that of ``by_hand(module, prepared, old)``; the number of steps compared.

    Args:
        by_hand: called first at the start of each update with None for ``old``, and then in each of its steps with
            what it returned there.
        callbacks: further ones.
        start: the first iteration that is compared, counted from 0.
    """
    state: dict[str, Any] = {}
    largest: list[float] = []

    @torch.no_grad()
    def begin(trainer: Any, module: OnPolicy, prepared: Any) -> None:
        state.update(prepared=prepared, old=by_hand(module, prepared, None))

    def compare(trainer: Any, module: OnPolicy) -> None:
        if trainer.current_epoch < start:
            return
        parameters = trained_parameters(module)
        with torch.enable_grad():
            expected = torch.autograd.grad(by_hand(module, **state), list(parameters.values()))
        for (name, parameter), wanted in zip(parameters.items(), expected, strict=True):
            assert torch.allclose(parameter.grad, wanted, rtol=1e-8, atol=1e-11), name
        largest.append(max(gradient.abs().max().item() for gradient in expected))

    # callbacks run before the module clips
    hooks = BeforeUpdate(begin), AtHook("on_before_optimizer_step", compare), *callbacks
    fit(module, data, *hooks, max_epochs=iterations, precision="64-true")
    assert min(largest[:: len(largest) // (iterations - start)]) > 1e-3  # later steps may all be clipped
    return len(largest)


def padding_changes_nothing(build: Build, data: Collect) -> Rows:
    """Two iterations, with and without NaN in the padding, are the same to the bit; the rows."""
    results = []
    for callbacks in ([], [BeforeUpdate(poison)]):
        module = build()
        rows = fit(module, data(), *callbacks, max_epochs=2).untimed()
        results.append((rows, snapshot(module)))
    (rows, parameters), (other_rows, other_parameters) = results
    assert rows == other_rows
    assert same(parameters, other_parameters)
    return rows


def microbatches_change_nothing(
    build: Build, data: Collect, *, sizes: Iterable[Any] = (None, 1, 3), iterations: int = 2, rel: float = 1e-9
) -> tuple[OnPolicy, Rows]:
    """In float64 runs agree to 1e-9 whatever the size of microbatches; the last module and the rows.

    Args:
        build: gets the size.
        rel: by how much logged numbers above 1 may differ, in proportion.
    """
    results = []
    for size in sizes:
        module = build(size)
        rows = fit(module, data(), max_epochs=iterations, precision="64-true").untimed()
        results.append((rows, snapshot(module)))
    (rows, parameters), *others = results
    for other_rows, other_parameters in others:
        assert distance(parameters, other_parameters) < 1e-9
        assert other_rows == [pytest.approx(row, rel=rel, abs=1e-9) for row in rows]
    return module, rows


def resumed_run_is_identical(
    build: Build, data: Collect, folder: Path, *, iterations: int = 4, after: int = 2
) -> tuple[OnPolicy, OnPolicy, Rows]:
    """A run that goes on from a checkpoint ends as the whole run does, to the bit; both modules and all rows.

    Args:
        after: iterations that are complete in the checkpoint.
    """
    keep = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True)
    module, again = build(), build()
    whole = fit(module, data(), keep, max_epochs=iterations).untimed()
    resumed = fit(again, data(), max_epochs=iterations, ckpt_path=folder / f"epoch={after - 1}.ckpt").untimed()
    assert resumed == whole[after + 1 :]  # the first row is that of the starting point
    assert same(snapshot(again), snapshot(module))
    return module, again, whole


def policy_waits_for_the_critic(module: OnPolicy, data: LightningDataModule, *, warmup: int) -> Rows:
    """The critic learns from the first iteration on, the policy from the first one after ``warmup``; the rows."""
    states = []
    record = AtHook("on_train_epoch_end", lambda _, m: states.append((snapshot(m.policy), snapshot(m.critic))))
    rows = fit(module, data, record, max_epochs=warmup + 1).rows
    start = snapshot(module.reference.policy)
    assert all(same(policy, start) for policy, _ in states[:warmup])
    assert distance(states[warmup][0], start) > 1e-3
    assert distance(states[0][1], states[1][1]) > 1e-3
    return rows

"""Preferred-FT: its loss, its gradient, and that it learns from the chosen responses alone."""

import pytest
import torch
from preference_helpers import build, pairs, token_logprobs
from training_helpers import AtHook, Letters, fit, same, snapshot

from rlhf_lightning.algorithms.preferred_ft import PreferredFT
from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.optimization import Optimization


def nats(policy, pair):
    """−log π of the chosen response."""
    return -token_logprobs(policy.model, policy.tokenizer, pair.prompt, pair.chosen).sum()


def test_gradient_is_that_of_the_mean_nats_of_chosen_responses():
    task, losses = Letters(), []

    def compare(trainer, module):
        examples = trainer.datamodule.train_batch(trainer.global_step)
        gradients = [p.grad.clone() for p in module.policy.parameters()]
        with torch.enable_grad():
            loss = sum(nats(module.policy, pair) for pair in examples) / len(examples)
            wanted = torch.autograd.grad(loss, list(module.policy.parameters()))
        for gradient, right in zip(gradients, wanted, strict=True):
            assert torch.allclose(gradient, right, rtol=1e-8, atol=1e-12)
        losses.append(loss.item())

    module = build(PreferredFT, task, optimization=Optimization(1e-2, max_grad_norm=1e-3, microbatch_size=3))
    callback = AtHook("on_before_optimizer_step", compare)
    rows = fit(module, pairs(task), callback, max_steps=3, limit_val_batches=0, precision="64-true").rows
    assert len(losses) == 3
    assert [row["preferred_ft/loss"] for row in rows] == pytest.approx(losses)


def test_heldout_loss_is_the_mean_over_all_heldout_pairs():
    task = Letters(heldout=7)
    module = build(PreferredFT, task)
    row = fit(module, pairs(task), max_steps=2, num_sanity_val_steps=0).rows[-1]
    with torch.no_grad():
        wanted = sum(nats(module.policy, pair).item() for pair in task.preferences("heldout")) / 7
    assert row["eval/loss"] == pytest.approx(wanted, rel=1e-5)


class Swapped(Letters):
    """Other rejected responses."""

    def preferences(self, split):
        found = super().preferences(split)
        for pair in found:
            pair.rejected = "d c b a"
        return found


def test_rejected_responses_do_not_matter():
    parameters = []
    for task in (Letters(), Swapped()):
        module = build(PreferredFT, task)
        fit(module, pairs(task), max_steps=3, limit_val_batches=0)
        parameters.append(snapshot(module))
    assert same(*parameters)


def test_preferred_ft_learns():
    task = Letters(pairs=40)
    rows = fit(build(PreferredFT, task), pairs(task, 8), max_steps=40, num_sanity_val_steps=0).rows
    assert rows[-1]["eval/loss"] < 0.5 * rows[0]["eval/loss"]
    assert rows[-1]["eval/gold"] > rows[0]["eval/gold"] + 0.2


def test_task_without_prompts_is_refused():
    with pytest.raises(UserError, match="PreferredFT needs prompts, which task Task does not provide"):
        build(PreferredFT, Task())

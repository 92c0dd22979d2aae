"""For tests of optimizers that compare responses to a prompt: small groups, and their numbers by loops over lists."""

from __future__ import annotations

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from training_helpers import AtHook, fit, rollouts, snapshot

from rlhf_lightning.training.optimization import Optimization


def group_rollouts(task, reward=None, *, samples=4, size=8, **settings):
    """Two prompts with four answers each."""
    return rollouts(task, reward, size=size, samples_per_prompt=samples, **settings)


def sequences(batch):
    """Each row as plain lists: prompt ids and action ids."""
    for row in range(len(batch)):
        prompt = batch.context.input_ids[row][batch.context.attention_mask[row]].tolist()
        yield prompt, batch.actions[row][batch.action_mask[row]].tolist()


def token_logprobs(policy, prompt, actions):
    """Log-probabilities of all tokens at each action, [T, V]."""
    logits = policy.model(torch.tensor([prompt + actions])).logits[0, len(prompt) - 1 : -1]
    return (logits / policy.temperature).log_softmax(-1)


def action_logprobs(policy, batch):
    """Of each row, the log-probability of its actions, [T]."""
    return [
        token_logprobs(policy, prompt, actions)[range(len(actions)), actions] for prompt, actions in sequences(batch)
    ]


def share_of_b(policy, actions):
    """What `CountsB` pays."""
    words = [policy.tokenizer.convert_ids_to_tokens(action) for action in actions if action > 1]
    return words.count("b") / max(len(words), 1)


def compared_gradients(module, data, by_hand, *, iterations=3):
    """Compare each step's gradient with that of ``by_hand(module, batch, old)``; the number of steps compared.

    ``old`` is what it returned at the start of the update, where it is called with None. The comparison runs before
    the module clips.
    """
    state, largest = {}, []

    def begin(trainer, module):
        with torch.no_grad():
            state["old"] = by_hand(module, module.batch, None)

    def compare(trainer, module):
        parameters = dict(module.policy.named_parameters())
        with torch.enable_grad():
            loss = by_hand(module, module.batch, state["old"])
            expected = torch.autograd.grad(loss, list(parameters.values()))
        for (name, parameter), wanted in zip(parameters.items(), expected, strict=True):
            assert torch.allclose(parameter.grad, wanted, rtol=1e-7, atol=1e-11), name
        largest.append(max(gradient.abs().max().item() for gradient in expected))

    hooks = AtHook("on_train_batch_start", begin), AtHook("on_before_optimizer_step", compare)
    fit(module, data, *hooks, max_epochs=iterations, precision="64-true")
    assert min(largest[:: len(largest) // iterations]) > 1e-3  # later steps on a batch may all be clipped
    return len(largest)


def poison(*names):
    """Puts NaN, and tokens that were never drawn, wherever the batch only pads."""

    def spoil(trainer, module):
        hidden = ~module.batch.action_mask
        assert hidden.any()
        for name in names:
            setattr(module.batch, name, getattr(module.batch, name).masked_fill(hidden, float("nan")))
        module.batch.actions = torch.where(hidden, 7, module.batch.actions)

    return AtHook("on_train_batch_start", spoil)


def in_microbatches(build, data, sizes=(None, 1, 3)):
    """Rows and parameters after two iterations in float64, for each size of microbatches."""
    results = []
    for size in sizes:
        module = build(optimization=Optimization(lr=1e-2, microbatch_size=size))
        rows = fit(module, data(), max_epochs=2, precision="64-true").untimed()
        results.append((rows, snapshot(module)))
    return results


def interrupted(build, data, folder, *, iterations=4):
    """A whole run, and one that goes on from its second iteration: rows and parameters of both."""
    keep = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True)
    module = build()
    whole = fit(module, data(), keep, max_epochs=iterations).untimed()
    again = build()
    resumed = fit(again, data(), max_epochs=iterations, ckpt_path=folder / "epoch=1.ckpt").untimed()
    return (whole, snapshot(module)), (resumed, snapshot(again))

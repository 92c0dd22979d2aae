"""Unlikelihood: its two terms, their gradient, and that it learns from chosen and rejected responses."""

import math

import pytest
import torch
from preference_helpers import build, pairs, token_logprobs
from training_helpers import AtHook, Letters, fit

from rlhf_lightning.algorithms.unlikelihood import LogLikelihood, TokenUnlikelihood, Unlikelihood
from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.offline import Part
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import PreferencePair

either = pytest.mark.parametrize("avoidance", [LogLikelihood(), TokenUnlikelihood()], ids=str)


def terms(policy, pair, avoidance):
    """The loss of the chosen response, Σ −log p, and that of the rejected one: Σ log p, or Σ −log(1 − p)."""
    chosen = token_logprobs(policy.model, policy.tokenizer, pair.prompt, pair.chosen)
    rejected = token_logprobs(policy.model, policy.tokenizer, pair.prompt, pair.rejected)
    if isinstance(avoidance, LogLikelihood):
        return sum(-logprob for logprob in chosen), sum(logprob for logprob in rejected)
    return sum(-logprob for logprob in chosen), sum(-torch.log(1 - logprob.exp()) for logprob in rejected)


@either
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_gradient_is_that_of_both_terms(alpha, avoidance):
    task, expected = Letters(), []

    def compare(trainer, module):
        examples = trainer.datamodule.train_batch(trainer.global_step)
        assert len({len(pair.rejected.split()) for pair in examples}) > 1, "there is padding"
        gradients = [p.grad.clone() for p in module.policy.parameters()]
        with torch.enable_grad():
            both = [terms(module.policy, pair, avoidance) for pair in examples]
            loss = sum(chosen + alpha * rejected for chosen, rejected in both) / len(examples)
            wanted = torch.autograd.grad(loss, list(module.policy.parameters()))
        for gradient, right in zip(gradients, wanted, strict=True):
            assert torch.allclose(gradient, right, rtol=1e-7, atol=1e-10)
        means = [sum(one[i].item() for one in both) / len(examples) for i in (0, 1)]
        expected.append([loss.item(), *means])

    settings = Optimization(1e-2, max_grad_norm=1e-3, microbatch_size=3)
    module = build(Unlikelihood, task, alpha=alpha, avoidance=avoidance, optimization=settings)
    callback = AtHook("on_before_optimizer_step", compare)
    rows = fit(module, pairs(task), callback, max_steps=3, limit_val_batches=0, precision="64-true").rows
    names = ("loss", "chosen_loss", "rejected_loss")
    assert len(expected) == 3
    for row, wanted in zip(rows, expected, strict=True):
        assert [row[f"unlikelihood/{name}"] for name in names] == pytest.approx(wanted)


@either
def test_heldout_numbers_are_means_over_all_heldout_pairs(avoidance):
    task = Letters(heldout=7)
    module = build(Unlikelihood, task, alpha=0.5, avoidance=avoidance)
    row = fit(module, pairs(task), max_steps=2, num_sanity_val_steps=0).rows[-1]
    with torch.no_grad():
        both = [terms(module.policy, pair, avoidance) for pair in task.preferences("heldout")]
    chosen, rejected = (sum(one[i].item() for one in both) / 7 for i in (0, 1))
    assert row["eval/chosen_loss"] == pytest.approx(chosen, rel=1e-4)
    assert row["eval/rejected_loss"] == pytest.approx(rejected, rel=1e-4)
    assert row["eval/loss"] == pytest.approx(chosen + 0.5 * rejected, rel=1e-4)


def test_terms_of_a_response_by_hand():
    """Probabilities ½ and ¼; what the mask hides may be anything."""
    logprobs = torch.tensor([[0.5, 0.25, math.nan], [0.5, math.nan, math.nan]]).log()
    mask = torch.tensor([[True, True, False], [True, False, False]])
    # log ½ + log ¼ = −3 log 2; log ½
    assert LogLikelihood().per_response(logprobs, mask).tolist() == pytest.approx([-2.079442, -0.693147])
    # −log ½ − log ¾ = 0.693147 + 0.287682; −log ½
    assert TokenUnlikelihood().per_response(logprobs, mask).tolist() == pytest.approx([0.980829, 0.693147])


def test_padding_of_a_short_rejected_response_is_not_avoided():
    """Padding has log-probability 0, that is p = 1: its unlikelihood would be the largest there is."""
    module = build(Unlikelihood, Letters(), alpha=1.0, avoidance=TokenUnlikelihood())
    module.configure_model()
    pair = PreferencePair("ant", "b b b b", "a")
    _, measured = module.loss_sum(Part([pair], module.encode([pair])))
    wanted = terms(module.policy, pair, TokenUnlikelihood())[1].item()
    assert measured["rejected_loss"].item() == pytest.approx(wanted, rel=1e-5)


@either
def test_unlikelihood_learns(avoidance):
    task, rejected = Letters(pairs=40), []
    for alpha in (0.0, 0.3):
        module = build(Unlikelihood, task, alpha=alpha, avoidance=avoidance)
        rows = fit(module, pairs(task, 8), max_steps=25, num_sanity_val_steps=0).rows
        rejected.append(rows[-1]["eval/rejected_loss"])
    assert rows[-1]["eval/chosen_loss"] < 0.7 * rows[0]["eval/chosen_loss"]
    assert rows[-1]["eval/gold"] > rows[0]["eval/gold"] + 0.2
    assert rejected[1] < rejected[0], "the weight makes rejected responses less likely"


@pytest.mark.parametrize("alpha", [-0.1, math.nan, math.inf])
def test_bad_weight_is_refused(alpha):
    with pytest.raises(UserError, match=rf"model\.init_args\.alpha must be 0 or more, got {alpha}"):
        build(Unlikelihood, Letters(), alpha=alpha)


def test_task_without_prompts_is_refused():
    with pytest.raises(UserError, match="Unlikelihood needs prompts, which task Task does not provide"):
        build(Unlikelihood, Task())

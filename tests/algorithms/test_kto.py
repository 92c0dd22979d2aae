"""KTO: values by hand, its gradient against plain forward passes, its reference point, and that it learns."""

import copy

import pytest
import torch
from preference_helpers import build, token_logprobs
from training_helpers import AtHook, Letters, distance, fit, snapshot

from rlhf_lightning.algorithms.kto import KTO, mismatched
from rlhf_lightning.data.preferences import LabelDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.training.offline import Part
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import LabelledResponse


class Judged(Letters):
    """Answers with a ``b`` at their beginning are good, others bad."""

    provides = Letters.provides | {"labels"}

    def labels(self, split):
        return [
            LabelledResponse(pair.prompt, response, label)
            for pair in self.preferences(split)
            for response, label in ((pair.chosen, True), (pair.rejected, False))
        ]


def labels(task, batch_size=5):
    return LabelDataModule(task, batch_size=batch_size)


def log_ratio(policy, reference, prompt, response):
    own = token_logprobs(policy.model, policy.tokenizer, prompt, response).sum()
    with torch.no_grad():
        other = token_logprobs(reference, policy.tokenizer, prompt, response).sum()
    return own - other


def test_losses_of_labelled_responses_by_hand():
    module = build(KTO, Judged(), beta=0.5, undesirable_weight=2.0)
    ratios = torch.tensor([3.0, 3.0, -1.0])
    module.log_ratios = lambda encoded: ratios
    examples = [LabelledResponse("a", "b", label) for label in (True, False, False)]
    total, sums = module.loss_sum(Part(examples, None, {"reference_point": 1.0}))
    # 1 − σ(0.5 · 2) = 0.268941; 2 (1 − σ(−0.5 · 2)) = 1.462117; 2 (1 − σ(0.5 · 2)) = 0.537883
    assert total.item() == pytest.approx(0.268941 + 1.462117 + 0.537883, abs=1e-6)
    assert sums["accuracy"].item() == 2  # the second is undesirable and above the reference point
    assert (sums["desirable_reward"].item(), sums["undesirable_reward"].item()) == (1.5, 1.0)
    means = {name: float(value) / 3 for name, value in sums.items()}
    assert module.reported(means) == pytest.approx(
        {
            "accuracy": 2 / 3,
            "reference_point": 0.5,  # β z₀
            "desirable_reward": 1.5,
            "undesirable_reward": 0.5,
        }
    )


def test_rewards_of_a_label_that_a_batch_lacks_are_left_out():
    module = build(KTO, Judged())
    means = {"desirable": 1.0, "desirable_reward": 0.2, "undesirable_reward": 0.0}
    assert module.reported(means) == {"desirable_reward": 0.2}


def test_gradient_and_row_are_those_of_single_responses():
    task, expected, start = Judged(), [], {}

    def keep(trainer, module):
        start["model"] = copy.deepcopy(module.policy.model)

    def compare(trainer, module):
        batch = trainer.datamodule.train_batch(trainer.global_step)
        assert {example.label for example in batch} == {True, False}
        gradients = [p.grad.clone() for p in module.policy.parameters()]
        count = len(batch)
        with torch.no_grad():
            others = next(
                [batch[(i + shift) % count] for i in range(count)]
                for shift in range(1, count)
                if all(batch[(i + shift) % count].prompt != batch[i].prompt for i in range(count))
            )
            mismatched = [
                log_ratio(module.policy, start["model"], one.prompt, other.response)
                for one, other in zip(batch, others, strict=True)
            ]
        point = max(0.0, (sum(mismatched) / count).item())
        with torch.enable_grad():
            ratios = [log_ratio(module.policy, start["model"], one.prompt, one.response) for one in batch]
            losses = []
            for example, ratio in zip(batch, ratios, strict=True):
                if example.label:
                    losses.append(1.5 * (1 - torch.sigmoid(0.3 * (ratio - point))))
                else:
                    losses.append(0.5 * (1 - torch.sigmoid(0.3 * (point - ratio))))
            wanted = torch.autograd.grad(sum(losses) / count, list(module.policy.parameters()))
        for gradient, right in zip(gradients, wanted, strict=True):
            assert torch.allclose(gradient, right, rtol=1e-7, atol=1e-10)
        good = [0.3 * ratio.item() for one, ratio in zip(batch, ratios, strict=True) if one.label]
        expected.append(
            {
                "kto/loss": sum(one.item() for one in losses) / count,
                "kto/reference_point": 0.3 * point,
                "kto/desirable_reward": sum(good) / len(good),
            }
        )

    settings = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5}
    module = build(KTO, task, optimization=Optimization(1e-2, max_grad_norm=1e-3, microbatch_size=2), **settings)
    hooks = (AtHook("on_train_start", keep), AtHook("on_before_optimizer_step", compare))
    rows = fit(module, labels(task), *hooks, max_steps=4, limit_val_batches=0, precision="64-true").rows
    assert len(expected) == 4
    for row, by_hand in zip(rows, expected, strict=True):
        assert {name: row[name] for name in by_hand} == pytest.approx(by_hand, abs=1e-9)
    assert max(one["kto/reference_point"] for one in expected) > 1e-4  # it is not cut off at 0 everywhere


def test_the_reference_point_is_never_negative_and_that_of_one_example_is_0():
    task = Judged()
    module = build(KTO, task)
    module.configure_model()
    batch = task.labels("train")[:4]
    for sign in (-1.0, 1.0):
        module.log_ratios = lambda encoded, sign=sign: torch.full((len(encoded.actions),), sign)
        assert module.statistics(batch) == {"reference_point": max(0.0, sign)}
    assert module.statistics(batch[:1]) == {"reference_point": 0.0}


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("abcd", "2341"),  # all different: the next response
        ("aabbcc", "345612"),  # as pairs of a file: of the next pair, a chosen response for a chosen one
        ("aab", "231"),  # one match is the fewest possible
        ("aa", "21"),
    ],
)
def test_mismatched_responses_answer_other_prompts_where_there_are_any(prompts, expected):
    batch = [LabelledResponse(prompt, str(number), True) for number, prompt in enumerate(prompts, start=1)]
    assert "".join(mismatched(batch)) == expected


def test_microbatches_change_nothing():
    ends = []
    for size in (None, 1, 3):
        module = build(KTO, Judged(), optimization=Optimization(1e-2, microbatch_size=size))
        fit(module, labels(Judged()), max_steps=3, precision="64-true", limit_val_batches=0)
        ends.append(snapshot(module))
    assert max(distance(ends[0], end) for end in ends[1:]) < 1e-12


def test_kto_learns():
    task = Judged(pairs=40)
    rows = fit(build(KTO, task, beta=0.3), labels(task, 16), max_steps=30, num_sanity_val_steps=0).rows
    assert rows[0]["step"] == 0
    assert rows[-1]["eval/accuracy"] > 0.9
    assert rows[-1]["eval/gold"] > rows[0]["eval/gold"] + 0.1
    assert rows[-1]["eval/desirable_reward"] > 0 > rows[-1]["eval/undesirable_reward"]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"beta": 0.0}, "model.init_args.beta must be above 0, got 0.0"),
        ({"desirable_weight": -1.0}, "model.init_args.desirable_weight must be above 0, got -1.0"),
        ({"undesirable_weight": float("inf")}, "model.init_args.undesirable_weight must be above 0, got inf"),
    ],
)
def test_bad_arguments_are_refused(settings, line):
    with pytest.raises(UserError, match=line):
        build(KTO, Judged(), **settings)


def test_batches_of_one_are_refused():
    task = Judged()
    with pytest.raises(UserError, match="batch_size is 1; expected at least 2"):
        fit(build(KTO, task), labels(task, 1), max_steps=1)

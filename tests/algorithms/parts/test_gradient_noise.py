"""The variance of a gradient: against numpy on gradients that are given, and against all batches of the bandit."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from rlhf_lightning.algorithms.grpo import GRPO, ResponseSum
from rlhf_lightning.algorithms.parts.baselines import NoBaseline
from rlhf_lightning.algorithms.parts.gradient_noise import (
    MeasuredGradient,
    cosine,
    independent_units,
    measured_gradient,
)
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.algorithms.reinforce import REINFORCE
from rlhf_lightning.algorithms.rloo import RLOO
from rlhf_lightning.errors import UserError
from rlhf_lightning.proofs.expectation import batches, expected_gradient, scored_batch
from rlhf_lightning.proofs.instance import Instance
from rlhf_lightning.tasks.bandit.exact import probabilities
from rlhf_lightning.tasks.bandit.tree import as_rollout
from rlhf_lightning.training.minibatches import Loss, Minibatch


@dataclass
class Vectors:
    """A batch whose rows are their own gradients."""

    rows: torch.Tensor

    def __len__(self):
        return len(self.rows)

    def select(self, rows):
        return Vectors(self.rows[rows])


def of_vectors(rows, units=None, *, parts=1000, microbatch_size=None, loss_scale=1.0):
    """The loss is the mean over rows of their products with the parameters."""
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(rows.shape[1] - 2))]
    units = torch.arange(len(rows)) if units is None else units
    found = measured_gradient(
        lambda part, minibatch: Loss((part.rows @ torch.cat(parameters)).sum() / minibatch.sequences, {}),
        parameters,
        Minibatch([], tokens=0, sequences=len(rows)),
        Vectors(rows),
        units,
        parts=parts,
        microbatch_size=microbatch_size,
        loss_scale=loss_scale,
    )
    assert all(parameter.grad is None for parameter in parameters)
    return found


def test_variance_of_rows_is_that_of_their_mean():
    rows = torch.randn(7, 5)
    found = of_vectors(rows)
    assert found.whole.numpy() == pytest.approx(rows.mean(0).numpy(), abs=1e-6)
    assert found.variance == pytest.approx(np.var(rows.numpy(), axis=0, ddof=1).sum() / 7, rel=1e-5)
    signal = np.sum(rows.numpy().mean(0) ** 2) - found.variance
    assert found.signal_to_noise == pytest.approx(signal / found.variance, rel=1e-4)


def test_variance_of_groups_is_that_of_their_means():
    rows = torch.randn(5, 3, 4)
    found = of_vectors(rows.flatten(0, 1), torch.arange(5).repeat_interleave(3))
    assert found.variance == pytest.approx(np.var(rows.mean(1).numpy(), axis=0, ddof=1).sum() / 5, rel=1e-5)


@pytest.mark.parametrize("parts", [2, 3])
def test_variance_from_unequal_parts_is_unbiased(parts):
    # Rows from N(0, I₃), seven of them: 3/7. Each estimate has a relative standard deviation of √(2 / (3 (K − 1))).
    found = [of_vectors(torch.randn(7, 3), parts=parts).variance for _ in range(400)]
    error = 3 / 7 * math.sqrt(2 / (3 * (parts - 1)) / len(found))
    assert np.mean(found) == pytest.approx(3 / 7, abs=4 * error)


def test_halves_are_those_of_alternate_parts():
    rows = torch.randn(4, 3)
    found = of_vectors(rows)
    halves = [rows[::2].sum(0) / 4, rows[1::2].sum(0) / 4]
    assert [half.numpy() for half in found.halves] == [pytest.approx(half.numpy(), abs=1e-6) for half in halves]
    expected = torch.nn.functional.cosine_similarity(*halves, dim=0).item()
    assert cosine(*found.halves) == pytest.approx(expected, rel=1e-5)


def test_microbatches_and_the_scale_of_the_loss_change_nothing():
    rows, units = torch.randn(9, 4), torch.arange(9) // 3
    whole, cut = of_vectors(rows, units), of_vectors(rows, units, microbatch_size=2, loss_scale=1024.0)
    assert cut.variance == pytest.approx(whole.variance, rel=1e-5)
    assert torch.allclose(cut.whole, whole.whole)


def test_equal_gradients_have_no_variance():
    found = of_vectors(torch.ones(4, 3))
    assert found.variance == pytest.approx(0, abs=1e-6)


def test_no_gradient_at_all_has_no_direction():
    found = of_vectors(torch.zeros(4, 3))
    assert (found.variance, math.isnan(found.signal_to_noise), math.isnan(cosine(*found.halves))) == (0, True, True)


def test_one_unit_is_refused():
    with pytest.raises(UserError, match="at least two responses, groups or environments"):
        of_vectors(torch.ones(4, 3), torch.zeros(4, dtype=torch.long))


# -- on the bandit, where all batches can be listed ------------------------------------------------------------

AT = Instance(seed=1)


def placed(algorithm, **settings):
    return AT.place(algorithm(AT.task, AT.backbone, **{"kl": KLControl(AT.kl_coef), **settings}))


def measured(module, scored) -> MeasuredGradient:
    with torch.no_grad():
        batch = module.prepare(scored).batch
    return measured_gradient(
        module.loss,
        list(module.policy.parameters()),
        module.as_one_minibatch(batch),
        batch,
        independent_units(batch, scored),
        parts=1000,
        microbatch_size=None,
        loss_scale=1.0,
    )


def test_variance_and_signal_of_reinforce_are_unbiased():
    size = 2
    module = placed(REINFORCE, baseline=NoBaseline())
    every, p = as_rollout(module.policy), probabilities(module.policy).detach()
    exact = expected_gradient(module, AT.scores, batch_size=size)
    variance = signal = 0.0
    for numbers, orders in batches(size):
        found = measured(module, scored_batch(every, AT.scores, numbers))
        weight = (orders * p[numbers].prod()).item()
        variance += weight * found.variance
        signal += (
            weight * found.variance * found.signal_to_noise if found.variance else weight * found.whole @ found.whole
        )
    assert variance == pytest.approx(exact.variance.item(), rel=1e-9)
    assert signal == pytest.approx((exact.mean @ exact.mean).item(), rel=1e-9)


@pytest.mark.parametrize(
    "module",
    [placed(RLOO), placed(GRPO, kl=KLControl(0.0), normalize_std=False, average=ResponseSum())],
    ids=lambda module: type(module).__name__,
)
def test_variance_of_groups_is_the_exact_one_on_average(module):
    groups, size, count = 4, 2, 100
    every, p = as_rollout(module.policy), probabilities(module.policy).detach()
    exact = expected_gradient(module, AT.scores, batch_size=size).variance.item() / groups
    found = []
    for _ in range(count):
        numbers = torch.multinomial(p, groups * size, replacement=True).tolist()
        found.append(measured(module, scored_batch(every, AT.scores, numbers, size)).variance)
    assert np.mean(found) == pytest.approx(exact, abs=4 * np.std(found) / math.sqrt(count))

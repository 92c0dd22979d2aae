"""Distributions over actions against scipy, sums over everything and finite differences."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from rlhf_lightning.models.control.layers import CategoricalHead, GaussianHead
from rlhf_lightning.models.distributions import Categorical, DiagonalGaussian, IndependentCategoricals
from rlhf_lightning.ops.logprobs import tempered_log_softmax
from rlhf_lightning.ops.noise import row_keys

KEYS = row_keys(seed=3, stream=0, iteration=0, rows=torch.arange(20000))
LOGITS = torch.tensor([[0.3, -1.0, 2.0], [0.0, 0.5, -0.5]], dtype=torch.float64)
OTHER = torch.tensor([[1.0, 0.0, 0.5], [-2.0, 0.1, 0.2]], dtype=torch.float64)
MEAN = torch.tensor([[0.5, -1.0], [2.0, 0.0]], dtype=torch.float64)
STD = torch.tensor([0.7, 2.0], dtype=torch.float64)


def categorical(logits, temperature):
    return Categorical(tempered_log_softmax(logits, temperature=temperature))


def softmax(logits, temperature=1.0):
    weights = np.exp(logits.numpy() / temperature)
    return weights / weights.sum(-1, keepdims=True)


def test_categorical_numbers_are_sums_over_the_choices():
    p, q = softmax(LOGITS, 0.5), softmax(OTHER, 0.5)
    distribution, other = categorical(LOGITS, 0.5), categorical(OTHER, 0.5)
    chosen = torch.tensor([2, 0])
    np.testing.assert_allclose(distribution.logprobs(chosen), np.log(p[[0, 1], [2, 0]]), rtol=1e-12)
    np.testing.assert_allclose(distribution.entropy(), -(p * np.log(p)).sum(-1), rtol=1e-12)
    np.testing.assert_allclose(distribution.kl(other), (p * np.log(p / q)).sum(-1), rtol=1e-12)
    assert distribution.draw(None).tolist() == [2, 1]


def pairs(logits, temperature=1.0):
    """Vectors of two choices of three, in each of two states, from logits [2 6]."""
    return IndependentCategoricals([categorical(part, temperature) for part in logits.split(3, dim=-1)])


def over_pairs(logits, temperature=1.0):
    """The same as one distribution over nine pairs, by multiplying."""
    first, second = (softmax(part, temperature) for part in logits.split(3, dim=-1))
    return first[:, :, None] * second[:, None, :]


def test_numbers_of_independent_choices_are_sums_over_all_vectors():
    logits, others = torch.cat([LOGITS, OTHER], -1), torch.cat([OTHER.flip(0), LOGITS - 1], -1)
    p, q = over_pairs(logits, 0.5), over_pairs(others, 0.5)
    distribution, other = pairs(logits, 0.5), pairs(others, 0.5)
    chosen = torch.tensor([[2, 0], [0, 1]])
    np.testing.assert_allclose(distribution.logprobs(chosen), np.log([p[0, 2, 0], p[1, 0, 1]]), rtol=1e-12)
    np.testing.assert_allclose(distribution.entropy(), -(p * np.log(p)).sum((1, 2)), rtol=1e-12)
    np.testing.assert_allclose(distribution.kl(other), (p * np.log(p / q)).sum((1, 2)), rtol=1e-12)
    best = [np.unravel_index(table.argmax(), (3, 3)) for table in p]
    assert distribution.draw(None).tolist() == [list(pair) for pair in best]


def test_gaussian_numbers_are_those_of_scipy():
    distribution, actions = DiagonalGaussian(MEAN, STD), torch.tensor([[0.0, 3.0], [5.0, -0.5]], dtype=torch.float64)
    normal = stats.norm(MEAN.numpy(), STD.numpy())
    np.testing.assert_allclose(distribution.logprobs(actions), normal.logpdf(actions.numpy()).sum(-1), rtol=1e-12)
    entropy = sum(0.5 * math.log(2 * math.pi * math.e * s**2) for s in STD.tolist())
    np.testing.assert_allclose(distribution.entropy(), [entropy, entropy], rtol=1e-12)
    assert torch.equal(distribution.draw(None), MEAN)


def test_gaussian_kl_is_the_integral_of_its_definition():
    p, q = stats.norm(0.5, 0.7), stats.norm(-0.2, 1.3)
    expected, _ = integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), -8, 9)
    one, two = (torch.tensor([value], dtype=torch.float64) for value in (0.5, -0.2))
    kl = DiagonalGaussian(one, one + 0.2).kl(DiagonalGaussian(two, two + 1.5))
    assert kl.item() == pytest.approx(expected, rel=1e-8)


def test_independent_entries_add_up():
    first, second = DiagonalGaussian(MEAN, STD), DiagonalGaussian(MEAN.flip(1), STD + 1)
    alone = [
        DiagonalGaussian(MEAN[:, [i]], STD[[i]]).kl(DiagonalGaussian(MEAN[:, [1 - i]], STD[[i]] + 1)) for i in (0, 1)
    ]
    torch.testing.assert_close(first.kl(second), sum(alone))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_choices_are_drawn_as_often_as_the_policy_says(temperature):
    head = CategoricalHead(3, 3)
    drawn = categorical(LOGITS[:1], temperature).draw(head.noise(KEYS))
    shares = torch.bincount(drawn, minlength=3).numpy() / len(KEYS)
    p = softmax(LOGITS, temperature)[0]
    assert np.abs(shares - p).max() < 4 * np.sqrt(0.25 / len(KEYS))


def test_vectors_of_choices_are_drawn_as_often_as_the_policy_says():
    logits = torch.cat([LOGITS, OTHER], -1)[:1]
    drawn = pairs(logits).draw(CategoricalHead(3, (3, 3)).noise(KEYS))
    shares = torch.bincount(3 * drawn[:, 0] + drawn[:, 1], minlength=9).numpy() / len(KEYS)
    assert np.abs(shares - over_pairs(logits)[0].flatten()).max() < 4 * np.sqrt(0.25 / len(KEYS))


def test_vectors_are_drawn_from_the_gaussian():
    noise = GaussianHead(3, 2, initial_log_std=0.0).noise(KEYS)
    drawn = DiagonalGaussian(MEAN[0], STD).draw(noise).numpy()
    for entry in (0, 1):
        assert stats.kstest(drawn[:, entry], stats.norm(MEAN[0, entry], STD[entry]).cdf).pvalue > 0.01
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 4 / math.sqrt(len(KEYS))


@pytest.mark.parametrize(
    "head",
    [CategoricalHead(3, 4), CategoricalHead(3, (1, 3)), GaussianHead(3, 4, initial_log_std=0.0)],
    ids=["choices", "pairs", "vectors"],
)
def test_noise_depends_on_its_key_alone(head):
    keys = KEYS[:6].view(2, 3)
    noise = head.noise(keys)
    assert noise.shape == (2, 3, 4)
    assert torch.equal(head.noise(keys[1, 2:])[0], noise[1, 2])
    assert noise.unique().numel() == noise.numel()
    assert torch.isfinite(noise).all()


def test_temperature_divides_logits_and_multiplies_deviations():
    hidden = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    choices = CategoricalHead(3, 4).double()
    logits = choices.layer(hidden)
    torch.testing.assert_close(choices(hidden, temperature=0.5).log_softmax, (2 * logits).log_softmax(-1))
    several = CategoricalHead(3, (1, 3)).double()
    first, second = several(hidden, temperature=0.5).entries
    torch.testing.assert_close(first.log_softmax, torch.zeros(5, 1, dtype=torch.float64))
    torch.testing.assert_close(second.log_softmax, (2 * several.layer(hidden)[:, 1:]).log_softmax(-1))
    vectors = GaussianHead(3, 4, initial_log_std=math.log(3.0)).double()
    normal = vectors(hidden, temperature=0.5).normal
    torch.testing.assert_close(normal.stddev, torch.full_like(normal.stddev, 1.5))
    torch.testing.assert_close(normal.mean, vectors.layer(hidden))


def test_kl_can_be_differentiated_twice_in_both_arguments():
    logits, other = (x.clone().requires_grad_() for x in (LOGITS, OTHER))
    divergence = lambda p, q: categorical(p, 0.7).kl(categorical(q, 0.7))  # noqa: E731
    assert torch.autograd.gradgradcheck(divergence, (logits, other))
    mean, std = MEAN.clone().requires_grad_(), STD.clone().requires_grad_()
    means, stds = (MEAN + 1).requires_grad_(), (STD * 2).requires_grad_()
    gaussian = lambda m, s, n, t: DiagonalGaussian(m, s).kl(DiagonalGaussian(n, t))  # noqa: E731
    assert torch.autograd.gradcheck(gaussian, (mean, std, means, stds))
    assert torch.autograd.gradgradcheck(gaussian, (mean, std, means, stds))

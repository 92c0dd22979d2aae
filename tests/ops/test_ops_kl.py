import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.ops.kl import (
    halve_double_coefficient,
    k1,
    k2,
    k3,
    k3_ratio,
    threshold_coefficient,
    ziegler_coefficient,
)

seeds = st.integers(0, 2**32 - 1)


def two_distributions(seed: int, size: int = 7, *, scale: float = 1.0):
    """Log-probabilities of two random distributions; a small scale makes them alike."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, generator=generator, dtype=torch.float64)
    other = logits + scale * torch.randn(size, generator=generator, dtype=torch.float64)
    return logits.log_softmax(-1), other.log_softmax(-1)


def kl_by_loop(logprobs, other) -> float:
    return sum(math.exp(p) * (p - q) for p, q in zip(logprobs.tolist(), other.tolist(), strict=True))


def expectation(logprobs, values) -> float:
    return (logprobs.exp() * values).sum().item()


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (k1, math.log(2)),
        (k2, math.log(2) ** 2 / 2),
        (k3, 0.5 - 1 + math.log(2)),  # e^{−ln 2} = 1/2
    ],
)
def test_estimators_by_hand(estimator, expected):
    # π(a) = 0.5, q(a) = 0.25: Δ = ln 2
    value = estimator(torch.tensor([0.5]).log(), torch.tensor([0.25]).log())
    assert value.item() == pytest.approx(expected)


@pytest.mark.parametrize("estimator", [k1, k2, k3])
def test_estimators_of_equal_logprobs_are_exactly_zero(estimator):
    logprobs = -torch.rand(3, 4, generator=torch.Generator().manual_seed(0)) * 20
    assert torch.equal(estimator(logprobs, logprobs), torch.zeros(3, 4))


@pytest.mark.parametrize("estimator", [k1, k3])
@given(seed=seeds, scale=st.floats(0.01, 3))
def test_unbiased_estimators_have_the_kl_as_expectation(estimator, seed, scale):
    p, q = two_distributions(seed, scale=scale)
    assert expectation(p, estimator(p, q)) == pytest.approx(kl_by_loop(p, q), rel=1e-9, abs=1e-13)


@given(seed=seeds)
def test_k2_approaches_the_kl_as_the_distributions_do(seed):
    # E[k2] − KL is of third order: ten times closer leaves a hundredth of the relative error or a tenth at least
    errors = []
    for scale in (0.1, 0.01):
        p, q = two_distributions(seed, scale=scale)
        errors.append(abs(expectation(p, k2(p, q)) / kl_by_loop(p, q) - 1))
    assert errors[0] < 0.2
    assert errors[1] < 0.02


def test_k2_is_biased_far_away():
    p, q = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.1, 0.9]).log()
    # Δ = ± ln 9: E[k2] = ln²9 / 2 = 2.41; KL = 0.8 ln 9 = 1.76
    assert expectation(p, k2(p, q)) == pytest.approx(math.log(9) ** 2 / 2)
    assert kl_by_loop(p, q) == pytest.approx(0.8 * math.log(9))


@given(seed=seeds)
def test_k3_has_less_variance_than_k1_near_the_reference(seed):
    p, q = two_distributions(seed, scale=0.2)
    variances = [expectation(p, (k(p, q) - kl_by_loop(p, q)) ** 2) for k in (k1, k3)]
    assert variances[1] < 0.25 * variances[0]


def test_k3_is_never_negative_in_float32():
    small = torch.logspace(-12, 1, 200_001)
    delta = torch.cat([small, -small, torch.linspace(-0.02, 0.02, 200_001)])
    assert k3(delta, torch.zeros_like(delta)).min() >= 0


def test_k3_of_near_logprobs_keeps_float32_accuracy():
    # e^{−Δ} − 1 + Δ with a rounded e^{−Δ} would be off by 6e-8 even at Δ = 1e-4, where the value is 5e-9
    delta = torch.logspace(-6, -1, 1001)
    exact = torch.expm1(-delta.double()) + delta.double()
    error = (k3(delta, torch.zeros_like(delta)).double() - exact).abs()
    assert (error / delta).max() < 2**-22


def test_expected_gradients_are_those_the_module_claims():
    """E[∇k1] = 0; E[∇k2] = ∇KL(π‖q); E[∇k3] = ∇KL(q‖π), another gradient."""
    logits = torch.tensor([0.3, -1.0, 0.7, 0.1], dtype=torch.float64, requires_grad=True)
    other = torch.tensor([-0.4, 0.5, 0.2, 0.0], dtype=torch.float64).log_softmax(-1)

    def gradient(value):
        return torch.autograd.grad(value, logits)[0]

    def expected(estimator):
        logprobs = logits.log_softmax(-1)
        return gradient((logprobs.exp().detach() * estimator(logprobs, other)).sum())

    p = logits.log_softmax(-1)
    forward = gradient((p.exp() * (p - other)).sum())
    p = logits.log_softmax(-1)
    backward = gradient((other.exp() * (other - p)).sum())
    torch.testing.assert_close(expected(k1), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(expected(k2), forward)
    torch.testing.assert_close(expected(k3), backward)
    assert (forward - backward).abs().max() > 0.05


def test_k3_times_the_ratio_by_hand():
    # π(a) = 0.5, q(a) = 0.25, π_old(a) = 0.2: 0.5 / 0.2 (e^{−ln 2} − 1 + ln 2)
    logprobs, other, old = (torch.tensor([p]).log() for p in (0.5, 0.25, 0.2))
    assert k3_ratio(logprobs, other, old).item() == pytest.approx(2.5 * (0.5 - 1 + math.log(2)))


def test_k3_times_the_ratio_has_value_and_gradient_of_the_kl_at_actions_of_another_policy():
    """E_old[r k3] = KL(π‖q) and E_old[∇(r k3)] = ∇KL(π‖q), which neither k2 nor k3 has once π has moved."""
    logits = torch.tensor([0.3, -1.0, 0.7, 0.1], dtype=torch.float64, requires_grad=True)
    other = torch.tensor([-0.4, 0.5, 0.2, 0.0], dtype=torch.float64).log_softmax(-1)
    old = torch.tensor([1.0, 0.0, -0.5, 0.2], dtype=torch.float64).log_softmax(-1)

    def gradient(value):
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    logprobs = logits.log_softmax(-1)
    value = (old.exp() * k3_ratio(logprobs, other, old)).sum()
    exact = (logprobs.exp() * (logprobs - other)).sum()
    assert value.item() == pytest.approx(kl_by_loop(logprobs, other), rel=1e-12)
    torch.testing.assert_close(gradient(value), gradient(exact))
    for estimator in (k2, k3):
        wrong = gradient((old.exp() * estimator(logprobs, other)).sum())
        assert (wrong - gradient(exact)).norm() > 0.1


@pytest.mark.parametrize("estimator", [k1, k2, k3])
def test_estimators_are_elementwise(estimator):
    # NaN at one position reaches neither value nor gradient of another
    logprobs = torch.tensor([[-1.0, -2.0], [-3.0, float("nan")]], requires_grad=True)
    other = torch.tensor([[-1.5, -2.5], [-0.5, -1.0]])
    counts = torch.tensor([[True, True], [True, False]])
    values = estimator(logprobs, other)
    values[counts].sum().backward()
    assert values[counts].isfinite().all()
    assert logprobs.grad[counts].isfinite().all()
    assert (estimator(logprobs[0], other[0]) == values[0]).all()


@pytest.mark.parametrize("estimator", [k1, k2, k3])
def test_selecting_first_keeps_nan_out_of_every_gradient(estimator):
    counts = torch.tensor([True, False])
    logprobs = torch.tensor([-1.0, -1.0], requires_grad=True)
    other = torch.tensor([-2.0, float("nan")])
    estimator(logprobs[counts], other[counts]).sum().backward()
    assert logprobs.grad[0] != 0
    assert logprobs.grad[1] == 0


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.1),  # on target
        (6.6, 0.101),  # 0.1 (1 + 0.1 · 0.1)
        (5.4, 0.099),  # 0.1 (1 − 0.1 · 0.1)
        (12.0, 0.102),  # error 1 clipped to 0.2
        (0.0, 0.098),  # error −1 clipped to −0.2
        (-3.0, 0.098),  # an estimate may be negative
        (math.inf, 0.102),
    ],
)
def test_ziegler_coefficient_by_hand(kl, expected):
    assert ziegler_coefficient(0.1, kl, target=6.0, gain=0.1) == pytest.approx(expected)


@given(st.floats(1e-4, 10), st.floats(-100, 1000), st.floats(0.1, 100), st.floats(0.001, 1))
def test_ziegler_coefficient_moves_by_at_most_a_fifth_of_the_gain(coefficient, kl, target, gain):
    after = ziegler_coefficient(coefficient, kl, target=target, gain=gain)
    assert abs(after / coefficient - 1) <= 0.2 * gain + 1e-12
    assert (after >= coefficient) == (kl >= target) or after == pytest.approx(coefficient, rel=1e-12)


@pytest.mark.parametrize("start", [0.01, 1.0])
def test_ziegler_coefficient_brings_the_kl_to_its_target(start):
    # a policy whose KL is 1/β: the target 4 is met at β = 1/4
    coefficient = start
    for _ in range(500):
        coefficient = ziegler_coefficient(coefficient, 1 / coefficient, target=4.0, gain=0.1)
    assert coefficient == pytest.approx(0.25, rel=1e-3)


def test_ziegler_coefficient_does_not_hide_nan():
    assert math.isnan(ziegler_coefficient(0.1, math.nan, target=6.0, gain=0.1))


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(6.0, 0.1), (9.0, 0.1), (9.01, 0.2), (math.inf, 0.2), (4.0, 0.1), (3.99, 0.05), (-1.0, 0.05)],
)
def test_halve_double_coefficient_by_hand(kl, expected):
    # target 6: between 6 / 1.5 = 4 and 6 · 1.5 = 9 it stays
    assert halve_double_coefficient(0.1, kl, target=6.0) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(6.0, 0.1), (12.0, 0.1), (12.01, 0.15), (math.inf, 0.15), (3.0, 0.1), (2.99, 0.05), (-1.0, 0.05)],
)
def test_threshold_coefficient_by_hand(kl, expected):
    # target 6: between 6 / 2 = 3 and 6 · 2 = 12 it stays
    assert threshold_coefficient(0.1, kl, target=6.0) == pytest.approx(expected)


@pytest.mark.parametrize(
    "rule",
    [halve_double_coefficient, threshold_coefficient, partial(ziegler_coefficient, gain=4.9)],
)
def test_coefficients_stay_within_bounds(rule):
    assert rule(1.5e-8, 0.0, target=6.0) == 1e-8
    assert rule(0.8e8, 100.0, target=6.0) == 1e8
    assert rule(1e-8, 100.0, target=6.0) > 1e-8
    assert rule(1e8, 0.0, target=6.0) < 1e8

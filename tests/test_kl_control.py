"""The price of leaving the reference."""

import pytest
import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.kl_control import AdaptiveKLControl, KLControl


def test_adaptive_coefficient_steps_as_in_ziegler():
    control = AdaptiveKLControl(0.1, target=6.0, gain=0.1)
    control.update(6.6)  # error 0.1: β (1 + 0.1 × 0.1)
    assert control.coef == pytest.approx(0.101)
    control.update(60.0)  # error cut to 0.2: β (1 + 0.02)
    assert control.coef == pytest.approx(0.101 * 1.02)
    control.update(-1.0)  # an estimate may be negative; error cut to −0.2
    assert control.coef == pytest.approx(0.101 * 1.02 * 0.98)
    control.update(6.0)
    assert control.coef == pytest.approx(0.101 * 1.02 * 0.98)


def test_fixed_coefficient_stays():
    control = KLControl(0.1)
    control.update(100.0)
    assert control.coef == 0.1


def test_adaptive_control_reaches_its_target():
    # a policy whose KL falls as the price rises: KL = 1 / β
    control = AdaptiveKLControl(1.0, target=4.0, gain=0.5)
    for _ in range(100):
        control.update(1 / control.coef)
    assert 1 / control.coef == pytest.approx(4.0, rel=1e-3)


def test_state_is_restored():
    first = AdaptiveKLControl(0.1)
    first.update(60.0)
    second = AdaptiveKLControl(0.1)
    second.load_state_dict(first.state_dict())
    assert second.coef == first.coef != 0.1
    assert all(type(value) is float for value in first.state_dict().values())


@pytest.mark.parametrize(("estimator", "expected"), [("k1", 0.5), ("k2", 0.125), ("k3", 0.106531)])
def test_estimators_by_hand(estimator, expected):
    # Δ = 0.5: Δ, Δ²/2, e^−0.5 − 1 + 0.5
    kl = KLControl(0.1, estimator).estimate(torch.tensor([[-1.0]]), torch.tensor([[-1.5]]), None)
    assert kl.item() == pytest.approx(expected, abs=1e-6)


def test_exact_estimator_passes_on_what_was_summed():
    control = KLControl(0.1, "exact")
    zeros, exact = torch.zeros(1, 2), torch.tensor([[0.3, 0.4]])
    assert control.needs_full_vocabulary
    assert torch.equal(control.estimate(zeros, zeros, exact), exact)
    with pytest.raises(ValueError, match="whole vocabulary"):
        control.estimate(zeros, zeros, None)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: KLControl(-0.1), "kl.coef"),
        (lambda: KLControl(float("nan")), "kl.coef"),
        (lambda: KLControl(0.1, "k4"), "kl.estimator"),
        (lambda: AdaptiveKLControl(0.0), "kl.coef"),
        (lambda: AdaptiveKLControl(0.1, target=0.0), "kl.target"),
        (lambda: AdaptiveKLControl(0.1, gain=0.0), "kl.gain"),
        (lambda: AdaptiveKLControl(0.1, gain=5.0), "kl.gain"),
    ],
)
def test_bad_values_are_named_in_one_line(build, named):
    with pytest.raises(UserError) as error:
        build()
    assert named in str(error.value)
    assert "\n" not in str(error.value)

"""The price of leaving the reference."""

import pytest
import torch

from rlhf_lightning.algorithms.parts.kl_control import (
    AdaptiveKLControl,
    HalveDoubleKLControl,
    KLControl,
    KLLoss,
    TargetedKLControl,
    ThresholdKLControl,
    estimated,
)
from rlhf_lightning.errors import UserError

TARGETED = TargetedKLControl.__subclasses__()


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


def test_halve_double_follows_a_sequence():
    control = HalveDoubleKLControl(0.1, target=6.0)  # halved below 6 / 1.5 = 4, doubled above 6 · 1.5 = 9
    coefficients = []
    for kl in (3.9, 4.0, 6.0, 9.0, 9.1, 100.0, -1.0):
        control.update(kl)
        coefficients.append(control.coef)
    assert coefficients == pytest.approx([0.05, 0.05, 0.05, 0.05, 0.1, 0.2, 0.1])


def test_threshold_follows_a_sequence():
    control = ThresholdKLControl(0.1, target=6.0)  # 0.5 times below 6 / 2 = 3, 1.5 times above 6 · 2 = 12
    coefficients = []
    for kl in (12.1, 12.0, 6.0, 3.0, 2.9, 50.0, -1.0):
        control.update(kl)
        coefficients.append(control.coef)
    assert coefficients == pytest.approx([0.15, 0.15, 0.15, 0.15, 0.075, 0.1125, 0.05625])


@pytest.mark.parametrize("controller", TARGETED)
def test_a_coefficient_comes_back_from_either_end(controller):
    # 3000 iterations far from the target: by halves or doublings β would be 0 or infinite after 1100
    control = controller(0.1, target=1.0)
    for kl, end in ((0.0, 1e-8), (1e6, 1e8)):
        for _ in range(3000):
            control.update(kl)
        assert control.coef == end
    for _ in range(3000):
        control.update(0.0)
    assert control.coef == 1e-8


@pytest.mark.parametrize("controller", TARGETED)
def test_controllers_hold_a_policy_near_the_target(controller):
    # a policy whose KL falls as the price rises: KL = 1 / β
    control = controller(1.0, target=4.0)
    for _ in range(100):
        control.update(1 / control.coef)
    assert 4 / 2 <= 1 / control.coef <= 4 * 2


@pytest.mark.parametrize("controller", TARGETED)
def test_state_is_restored(controller):
    first, second = controller(0.1), controller(0.1)
    first.update(60.0)
    second.load_state_dict(first.state_dict())
    assert second.coef == first.coef != 0.1
    assert all(type(value) in (float, str) for value in first.state_dict().values())


@pytest.mark.parametrize("state", [KLControl(0.2).state_dict(), {"coef": 0.2}])
def test_state_of_another_controller_is_refused_in_one_line(state):
    control = ThresholdKLControl(0.1)
    with pytest.raises(UserError, match=r"kl (KLControl|None), and this run has ThresholdKLControl") as error:
        control.load_state_dict(state)
    assert "\n" not in str(error.value)
    assert control.coef == 0.1


def test_a_price_in_the_loss_leaves_the_reward():
    inside = KLControl(0.1, loss=KLLoss())
    assert (inside.reward_coef, inside.active_loss) == (0.0, KLLoss("k2", "reverse"))
    outside = KLControl(0.1)
    assert (outside.reward_coef, outside.active_loss) == (0.1, None)
    assert KLControl(0.0, loss=KLLoss()).active_loss is None


@pytest.mark.parametrize(("estimator", "expected"), [("k1", 0.5), ("k2", 0.125), ("k3", 0.106531)])
def test_estimators_by_hand(estimator, expected):
    # Δ = 0.5: Δ, Δ²/2, e^−0.5 − 1 + 0.5
    kl = estimated(estimator, torch.tensor([[-1.0]]), torch.tensor([[-1.5]]), None)
    assert kl.item() == pytest.approx(expected, abs=1e-6)


def test_exact_estimator_passes_on_what_was_summed():
    zeros, exact = torch.zeros(1, 2), torch.tensor([[0.3, 0.4]])
    assert KLControl(0.1, "exact").needs_full_vocabulary
    assert torch.equal(estimated("exact", zeros, zeros, exact), exact)
    with pytest.raises(ValueError, match="whole vocabulary"):
        estimated("exact", zeros, zeros, None)


def test_k3_times_the_ratio_asks_for_the_policy_that_sampled():
    old, now, reference = torch.tensor([-2.0]), torch.tensor([-1.0]), torch.tensor([-1.5])
    # Δ = 0.5, log ratio 1: e (e^−0.5 − 1 + 0.5)
    assert estimated("k3_ratio", now, reference, None, old).item() == pytest.approx(0.106531 * 2.718282, abs=1e-5)
    with pytest.raises(ValueError, match="at sampling"):
        estimated("k3_ratio", now, reference, None)


def test_estimators_ask_for_the_reference():
    with pytest.raises(ValueError, match="k2 needs the log-probabilities under the reference"):
        estimated("k2", torch.zeros(1), None, torch.zeros(1))


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
        (lambda: HalveDoubleKLControl(0.0), "kl.coef"),
        (lambda: HalveDoubleKLControl(1e-9), "kl.coef"),
        (lambda: ThresholdKLControl(1e9), "kl.coef"),
        (lambda: ThresholdKLControl(0.1, target=float("inf")), "kl.target"),
        (lambda: KLLoss("k1"), "kl.loss.estimator"),
        (lambda: KLLoss("k4"), "kl.loss.estimator"),
        (lambda: KLControl(0.1, "k3_ratio"), "kl.estimator"),
        (lambda: KLLoss("k2", "forward"), "kl.loss.direction"),
        (lambda: KLLoss("k3_ratio", "forward"), "kl.loss.direction"),
        (lambda: KLLoss("k3", "forward"), "kl.loss.direction"),
        (lambda: KLLoss("exact", "sideways"), "kl.loss.direction"),
    ],
)
def test_bad_values_are_named_in_one_line(build, named):
    with pytest.raises(UserError) as error:
        build()
    assert named in str(error.value)
    assert "\n" not in str(error.value)

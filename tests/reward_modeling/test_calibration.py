"""How far stated probabilities can be trusted: against hand-computed bins, loops, and data of a known temperature."""

import math

import pytest
import torch
from scipy.special import expit, logit

from rlhf_lightning.reward_modeling.calibration import (
    calibration_error,
    confidence,
    fitted_temperature,
    reliability_bins,
    rightness,
    scaled_out_of_fold,
)


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def drawn(count, temperature, seed=0):
    """Differences that come true with probability σ(d / T)."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randn(count, generator=generator, dtype=torch.float64).abs() * 2 * temperature
    right = torch.rand(count, generator=generator, dtype=torch.float64) < (sizes / temperature).sigmoid()
    return torch.where(right, sizes, -sizes)


def error_by_loop(differences, bins):
    """Every tie is one pair right and one wrong, every other pair is two pairs."""
    rows = [[] for _ in range(bins)]
    for difference in differences:
        stated = expit(abs(difference))
        for right in (difference > 0, difference >= 0):
            rows[min(int(stated * bins), bins - 1)].append((stated, right))
    total = sum(map(len, rows))
    return sum(abs(sum(s for s, _ in row) - sum(r for _, r in row)) for row in rows) / total


def test_rightness_and_confidence_by_hand():
    differences = doubles(0.3, -2.0, 0.0)
    assert rightness(differences).tolist() == [1, 0, 0.5]
    assert confidence(differences).tolist() == pytest.approx([expit(0.3), expit(2.0), 0.5])


def test_calibration_error_by_hand():
    # two at 0.731, of which half are right; one at 0.622, right; one at 0.5, a tie, half right
    expected = (2 * abs(0.731059 - 0.5) + (1 - 0.622459)) / 4
    assert calibration_error(doubles(1.0, -1.0, 0.0, 0.5)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("bins", [5, 15])
def test_calibration_error_against_a_loop(bins):
    differences = torch.cat([drawn(300, 2.5), doubles(0.0, 0.0)])
    assert calibration_error(differences, bins=bins) == pytest.approx(
        error_by_loop(differences.tolist(), bins), abs=1e-5
    )


def test_calibrated_differences_have_no_calibration_error():
    assert calibration_error(drawn(20_000, 1.0)) < 0.02
    assert calibration_error(drawn(20_000, 3.0)) > 0.1


def test_reliability_bins_by_hand():
    # σ(0.2) = 0.550, σ(1) = 0.731, σ(2) = 0.881, σ(5) = 0.993
    found = reliability_bins(doubles(0.2, -0.2, 1.0, 1.0, -1.0, 2.0, 5.0, 0.0))
    # bins of width 0.05 from 0.5: the tie, then both 0.550 (just below the edge), then 0.731, 0.881, 0.993
    assert [(row["count"], row["accuracy"]) for row in found] == [
        (3, 0.5),
        (3, pytest.approx(2 / 3)),
        (1, 1.0),
        (1, 1.0),
    ]
    stated = [(2 * 0.549834 + 0.5) / 3, 0.731059, 0.880797, 0.993307]
    assert [row["confidence"] for row in found] == pytest.approx(stated, abs=1e-5)


def test_reliability_bins_hold_every_pair():
    found = reliability_bins(torch.linspace(-40, 40, 201))
    assert sum(row["count"] for row in found) == 201
    assert found[-1]["confidence"] <= 1
    assert [row["confidence"] for row in found] == sorted(row["confidence"] for row in found)


@pytest.mark.parametrize("temperature", [0.02, 0.4, 1.0, 3.0, 50.0])
def test_a_known_temperature_is_recovered(temperature):
    assert fitted_temperature(drawn(20_000, temperature)) == pytest.approx(temperature, rel=0.05)


def test_fitted_temperature_by_hand():
    # differences of one size: σ(2 / T) must be the share that is right, 3 of 4
    assert fitted_temperature(doubles(2.0, 2.0, 2.0, -2.0)) == pytest.approx(2 / math.log(3), rel=1e-4)


def test_the_fitted_temperature_has_the_least_loss():
    differences = drawn(200, 2.0)
    best = fitted_temperature(differences)
    losses = [-torch.nn.functional.logsigmoid(differences / (best * by)).mean() for by in (0.9, 0.99, 1, 1.01, 1.1)]
    assert losses.index(min(losses)) == 2


def test_temperature_where_it_has_no_optimum():
    assert fitted_temperature(doubles(0.0, 0.0)) == 1
    # all right: the surer the better; most wrong: nothing is to be believed
    assert 0 < fitted_temperature(doubles(1.0, 2.0)) < 0.01
    assert 100 < fitted_temperature(doubles(1.0, -2.0, -1.0)) < math.inf


def test_out_of_fold_each_half_is_scaled_by_the_other():
    # first half: 3 of 4 right at size 2; second half: 4 of 5 right at size 1
    differences = doubles(2.0, 2.0, 2.0, -2.0, 1.0, 1.0, 1.0, 1.0, -1.0)
    folds = torch.tensor([0] * 4 + [1] * 5)
    first, second = 2 / logit(3 / 4), 1 / logit(4 / 5)
    scaled = scaled_out_of_fold(differences, folds)
    assert scaled[:4].tolist() == pytest.approx([2 / second] * 3 + [-2 / second], rel=1e-4)
    assert scaled[4:].tolist() == pytest.approx([1 / first] * 4 + [-1 / first], rel=1e-4)
    assert differences[0] == 2


def test_scaling_takes_the_calibration_error_of_overconfident_scores_away():
    differences = drawn(8000, 1.0) * 4
    scaled = scaled_out_of_fold(differences, torch.arange(8000) % 2)
    assert calibration_error(differences) > 0.1
    assert calibration_error(scaled) < 0.02

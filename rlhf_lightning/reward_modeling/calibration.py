"""Calibration of the probabilities that a reward model predicts.

A score difference d, preferred − other, predicts that the response with the higher score wins with probability σ(|d|).
The prediction is right if d > 0, and half right if d = 0. Guo et al. 2017, "On Calibration of Modern Neural Networks".
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error

LOG_RANGE = 7.0
"""Largest distance between the logarithms of the temperature and of the root mean square of the differences: if all
pairs are right, or most are wrong, the best temperature would be 0 or infinity."""


def rightness(differences: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """1 if the preferred response has the higher score, 0 if the other one has, ½ for a tie."""
    return ((differences > 0).double() + (differences >= 0).double()) / 2


def confidence(differences: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Predicted probability that the response with the higher score is preferred, in [½, 1]."""
    return differences.abs().sigmoid()


def calibration_error(differences: Float[Tensor, " N"], *, bins: int = 15) -> float:
    """Mean distance between predicted and observed share over bins of [0, 1] (Guo et al. 2017, eq. 3)."""
    # each pair twice, so that a tie counts once as right and once as wrong
    right = torch.cat([differences > 0, differences >= 0]).long()
    return binary_calibration_error(confidence(differences).float().repeat(2), right, n_bins=bins, norm="l1").item()


def reliability_bins(differences: Float[Tensor, " N"], *, bins: int = 10) -> list[dict[str, float]]:
    """Mean predicted probability, observed share and number of pairs in each bin of [½, 1] that is not empty."""
    predicted, right = confidence(differences), rightness(differences)
    edges = torch.linspace(0.5, 1.0, bins + 1, device=predicted.device, dtype=predicted.dtype)
    bin_of = torch.bucketize(predicted, edges[1:-1], right=True)
    inside = [bin_of == number for number in bin_of.unique().tolist()]
    return [
        {"confidence": predicted[rows].mean().item(), "accuracy": right[rows].mean().item(), "count": int(rows.sum())}
        for rows in inside
    ]


def fitted_temperature(differences: Float[Tensor, " N"]) -> float:
    """T > 0 that minimizes the mean of −log σ(d / T) (Guo et al. 2017, § 4.2); 1 if every pair is a tie.

    Above 1 the scores are overconfident, below 1 underconfident.
    """
    values = differences.double().cpu().numpy()
    scale = math.sqrt(float((values**2).mean())) if len(values) else 0.0
    if scale == 0:
        return 1.0

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0.0, -values / (scale * math.exp(log_temperature))).mean())

    best = minimize_scalar(loss, bounds=(-LOG_RANGE, LOG_RANGE), method="bounded", options={"xatol": 1e-6})
    return scale * math.exp(best.x)


def scaled_out_of_fold(differences: Float[Tensor, " N"], folds: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Each difference divided by a temperature that was fitted on the other folds.

    Args:
        folds: the fold of each pair; at least two folds.
    """
    scaled = differences.clone()
    for fold in folds.unique():
        scaled[folds == fold] /= fitted_temperature(differences[folds != fold])
    return scaled

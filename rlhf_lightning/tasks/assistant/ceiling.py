"""The accuracy of a preference model that sees the gold components instead of the text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.assistant.gold import COMPONENTS, GoldReward
from rlhf_lightning.types import PreferencePair

RIDGE = 1e-4
"""Weight of the squared norm in the loss; keeps the weights finite where the pairs are linearly separable."""


def component_ceiling(gold: GoldReward, train: Sequence[PreferencePair], heldout: Sequence[PreferencePair]) -> float:
    """Held-out accuracy of a Bradley–Terry model on the gold components, fitted on the training pairs.

    Minimizes −mean log σ(w·(c_chosen − c_rejected)) over w; each objective that was judged has a w of its own. A pair
    with equal scores counts one half.

    Raises:
        UserError: there are no training or no held-out pairs.
    """
    if not train or not heldout:
        raise UserError(f"the ceiling needs training and held-out pairs, got {len(train)} and {len(heldout)}")
    objectives = list(dict.fromkeys(pair.objective for pair in train))
    differences = _differences(gold, train, objectives)

    def objective(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margins = differences @ weights
        loss = np.logaddexp(0.0, -margins).mean() + RIDGE / 2 * weights @ weights
        gradient = -(differences * expit(-margins)[:, None]).mean(0) + RIDGE * weights
        return float(loss), gradient

    weights = minimize(objective, np.zeros(differences.shape[1]), jac=True, method="L-BFGS-B").x
    margins = (_differences(gold, heldout, objectives) @ weights).round(9)
    return float(np.where(margins == 0, 0.5, margins > 0).mean())


def _differences(
    gold: GoldReward, pairs: Sequence[PreferencePair], objectives: Sequence[str | None]
) -> NDArray[np.float64]:
    """Components of the chosen response minus those of the rejected one, in the columns of the pair's objective."""
    rows = np.zeros((len(pairs), len(objectives), len(COMPONENTS)))
    for row, pair in zip(rows, pairs, strict=True):
        if pair.objective in objectives:  # otherwise all differences stay 0: a tie
            chosen, rejected = (gold.components(pair.prompt, response) for response in pair.responses)
            row[objectives.index(pair.objective)] = np.subtract(chosen, rejected)
    return rows.reshape(len(pairs), -1)

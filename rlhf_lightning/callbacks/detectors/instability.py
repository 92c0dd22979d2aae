"""Instability: single updates change the policy too much."""

from __future__ import annotations

from statistics import median
from typing import ClassVar

from typing_extensions import override

from rlhf_lightning.callbacks.detectors.detector import Detector
from rlhf_lightning.callbacks.detectors.history import REMEMBERED, History
from rlhf_lightning.errors import UserError

KL_OLD, RATIO, GRADIENT = "policy/kl_old", "policy/ratio_max", "policy/grad_norm"
RECENT = 3
"""Number of rows whose median is compared, so that a single outlier gives no warning."""


class Instability(Detector):
    """Warns of three signs that updates change the policy too much, each if its metric is logged.

    A threshold of None disables its sign.

    Args:
        kl_old: limit on the KL between the policies before and after an update, in nats per action.
        ratio_max: limit on the largest probability ratio of an update.
        grad_norm_factor: warn if the gradient norm exceeds the median of the rows before by this factor.
        before: number of rows of that median.
        stop: end training at the first warning and export the state of ``best.ckpt``.
    """

    advice: ClassVar[str] = "a lower learning rate, fewer inner_epochs, a stop_kl, or larger batches"

    def __init__(
        self,
        kl_old: float | None = 0.1,
        ratio_max: float | None = 1e5,
        grad_norm_factor: float | None = 10.0,
        before: int = 20,
        stop: bool = False,
    ) -> None:
        if not 1 <= before <= REMEMBERED - RECENT:
            raise UserError(f"Instability.before is {before}; expected at least 1 and at most {REMEMBERED - RECENT}")
        self.kl_old, self.ratio_max, self.grad_norm_factor, self.before = kl_old, ratio_max, grad_norm_factor, before
        super().__init__((KL_OLD, RATIO, GRADIENT), stop=stop)

    @override
    def finding(self, history: History) -> str | None:
        return (
            self._above(history, KL_OLD, self.kl_old, "an update moves the policy by")
            or self._above(history, RATIO, self.ratio_max, "an update changes a probability by up to")
            or self._jumped(history)
        )

    @staticmethod
    def _above(history: History, name: str, limit: float | None, what: str) -> str | None:
        series = history[name]
        if limit is None or len(series) < RECENT or series.now(RECENT) <= limit:
            return None
        return f"{what} {name} {series.now(RECENT):.3g} (limit {limit:g})"

    def _jumped(self, history: History) -> str | None:
        norms = history[GRADIENT]
        if self.grad_norm_factor is None or len(norms) < RECENT + self.before:
            return None
        usual = median(norms.values[-RECENT - self.before : -RECENT])
        # near convergence gradients are tiny, and a return to their initial size is no instability
        if norms.now(RECENT) <= max(self.grad_norm_factor * usual, norms.start()):
            return None
        return f"{GRADIENT} jumped from {usual:.3g} to {norms.now(RECENT):.3g}"

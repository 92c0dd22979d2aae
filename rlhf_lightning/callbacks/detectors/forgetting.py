"""Forgetting: demonstrations become unlikely under the policy."""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import override

from rlhf_lightning.callbacks.detectors.detector import Detector
from rlhf_lightning.callbacks.detectors.history import History
from rlhf_lightning.errors import UserError

PERPLEXITY = "eval/perplexity"


class Forgetting(Detector):
    """Warns when the perplexity on held-out demonstrations has grown by a factor.

    Args:
        factor: warn if the perplexity has grown by more than this factor since the first evaluation.
        stop: end training at the first warning and export the state of ``best.ckpt``.
    """

    advice: ClassVar[str] = "a larger model.init_args.kl.coef, a lower learning rate, or fewer iterations"

    def __init__(self, factor: float = 2.5, stop: bool = False) -> None:
        if factor <= 1:
            raise UserError(f"Forgetting.factor is {factor}; expected above 1")
        self.factor = factor
        super().__init__((PERPLEXITY,), stop=stop)

    @override
    def finding(self, history: History) -> str | None:
        perplexity = history[PERPLEXITY]
        # no median is needed, since all evaluations use the same demonstrations
        if not perplexity.grew(self.factor, rows=1):
            return None
        return f"{PERPLEXITY} on held-out demonstrations rose from {perplexity.start(1):.3g} to {perplexity.now(1):.3g}"

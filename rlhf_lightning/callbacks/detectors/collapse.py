"""Mode collapse: the policy gives nearly the same response to every prompt."""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import override

from rlhf_lightning.callbacks.detectors.detector import Detector
from rlhf_lightning.callbacks.detectors.history import ROWS, History
from rlhf_lightning.errors import UserError

DIVERSITY = ("rollout/distinct_1", "rollout/distinct_2", "rollout/distinct_3")
ENTROPY = "objective/entropy"


class ModeCollapse(Detector):
    """Warns when the responses of a rollout lose most of their variety, or the policy most of its entropy.

    For text only: in an environment, an optimal policy is often deterministic.

    Args:
        distinct: warn if the share of distinct n-grams falls below this fraction of its first value; None to ignore it.
        entropy: warn if the entropy falls below this fraction of its first value; None to ignore it.
        stop: end training at the first warning and export the state of ``best.ckpt``.
    """

    advice: ClassVar[str] = "a larger model.init_args.kl.coef, an entropy_coef above 0, or a lower learning rate"

    def __init__(self, distinct: float | None = 0.4, entropy: float | None = 0.1, stop: bool = False) -> None:
        for name, fraction in {"distinct": distinct, "entropy": entropy}.items():
            if fraction is not None and not 0 < fraction < 1:
                raise UserError(f"ModeCollapse.{name} is {fraction}; expected between 0 and 1")
        self.distinct, self.entropy = distinct, entropy
        super().__init__((*DIVERSITY, ENTROPY), stop=stop)

    @override
    def finding(self, history: History) -> str | None:
        if not any(len(history[name]) for name in DIVERSITY):
            return None
        for name, fraction in {**dict.fromkeys(DIVERSITY, self.distinct), ENTROPY: self.entropy}.items():
            if fraction is None or len(history[name]) <= ROWS:
                continue
            # only the first rollout is from before any update; the median of five could be too late
            start, now = history[name].start(1), history[name].now()
            if now < fraction * start:
                return f"{name} fell from {start:.3g} to {now:.3g}, {now / start:.0%} of where it began"
        return None

"""Mode collapse: the policy says the same to everybody."""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import override

from rlhf_lightning.callbacks.detectors.detector import Detector
from rlhf_lightning.callbacks.detectors.history import ROWS, History
from rlhf_lightning.errors import UserError

DIVERSITY = ("rollout/distinct_1", "rollout/distinct_2", "rollout/distinct_3")
ENTROPY = "objective/entropy"


class ModeCollapse(Detector):
    """Warns when the responses of a rollout have lost most of their variety, or the policy all of its entropy.

    Only on text, by distinct n-grams: in an environment, an optimal policy is often a certain one.

    Args:
        distinct: share of the distinct n-grams at the start below which variety is lost; None to ignore them.
        entropy: share of the entropy at the start below which the policy is all but certain; None to ignore it.
        stop: end training at the first warning and export the state of ``best.ckpt``.
    """

    advice: ClassVar[str] = "a larger model.init_args.kl.coef, an entropy_coef above 0, or a lower learning rate"

    def __init__(self, distinct: float | None = 0.4, entropy: float | None = 0.1, stop: bool = False) -> None:
        for name, share in {"distinct": distinct, "entropy": entropy}.items():
            if share is not None and not 0 < share < 1:
                raise UserError(f"ModeCollapse.{name} is {share}; expected between 0 and 1")
        self.distinct, self.entropy = distinct, entropy
        super().__init__((*DIVERSITY, ENTROPY), stop=stop)

    @override
    def finding(self, history: History) -> str | None:
        if not any(len(history[name]) for name in DIVERSITY):
            return None
        for name, share in {**dict.fromkeys(DIVERSITY, self.distinct), ENTROPY: self.entropy}.items():
            if share is None or len(history[name]) <= ROWS:
                continue
            # the first rollout alone: it is of the policy before any update, and five may be too late
            start, now = history[name].start(1), history[name].now()
            if now < share * start:
                return f"{name} fell from {start:.3g} to {now:.3g}, {now / start:.0%} of where it began"
        return None

"""Reward hacking: the score rises and the true reward does not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from typing_extensions import override

from rlhf_lightning.callbacks.detectors.detector import Detector
from rlhf_lightning.callbacks.detectors.history import ROWS, History, standard_error_of_median
from rlhf_lightning.errors import UserError

SCORE, DISAGREEMENT = "objective/score", "objective/disagreement"
KL, ENTROPY, LENGTH = "objective/kl_ref_token", "objective/entropy", "rollout/length_mean"
LOOK_BACK = 6
"""Number of iterations over which growth is measured."""


@dataclass(frozen=True)
class Peak:
    """The highest level of the second reward model so far.

    Args:
        at: iteration of the peak.
        level: level of the second reward model.
        score: level of the score at that time; None if it had not been logged.
    """

    at: int
    level: float
    score: float | None


class RewardHacking(Detector):
    """Warns of four signs that the score rises at the expense of the true reward, each if its metrics are logged.

    Gao, Schulman & Hilton 2023, "Scaling Laws for Reward Model Overoptimization": an optimized score continues
    to rise while the true reward falls, the sooner the fewer pairs the reward model was trained on; Coste et al. 2024,
    "Reward Model Ensembles Help Mitigate Overoptimization": members agree on responses like their data, and disagree on
    responses that exploit one of them.

    - A second reward model, trained on other pairs and only measured (``data.init_args.monitors``), falls from its
      peak while the score does not.
    - The members of an ensemble disagree more than at the start.
    - The KL to the reference, not small before, doubles within a few iterations without a fall of the entropy: the
      entropy of an improving policy falls, that of a policy that leaves the reward model's training data does not.
    - Responses become much longer: length is what reward models overrate most (Singhal et al. 2023, "A Long Way to
      Go: Investigating Length Correlations in RLHF").

    A threshold of None disables its sign.

    Args:
        monitor: name of the second reward model; ``objective/NAME`` is watched, ``eval/NAME`` chooses ``best.ckpt``.
        monitor_errors: warn if it has fallen from its peak by this many standard errors.
        disagreement_factor: warn if the disagreement of the members has grown by this factor.
        kl_token: warn if the KL to the reference reaches this many nats per token, from at least a quarter of it.
        kl_growth: and if it has grown by this factor within `LOOK_BACK` iterations.
        length_factor: warn if responses have grown by this factor; None if they should become longer.
        stop: end training at the first warning and export the state of ``best.ckpt``.
    """

    advice: ClassVar[str] = (
        "a larger model.init_args.kl.coef, an ensemble of reward models (worst case or uncertainty-weighted), or more "
        "pairs labelled on this policy's responses"
    )

    def __init__(
        self,
        monitor: str = "heldout_score",
        monitor_errors: float | None = 4.0,
        disagreement_factor: float | None = 1.6,
        kl_token: float | None = 0.08,
        kl_growth: float = 2.0,
        length_factor: float | None = 1.5,
        stop: bool = False,
    ) -> None:
        for name, value in {"disagreement_factor": disagreement_factor, "length_factor": length_factor}.items():
            if value is not None and value <= 1:
                raise UserError(f"RewardHacking.{name} is {value}; expected above 1")
        self.monitor, self.best_by = f"objective/{monitor}", f"eval/{monitor}"
        self.monitor_errors, self.disagreement_factor = monitor_errors, disagreement_factor
        self.kl_token, self.kl_growth, self.length_factor = kl_token, kl_growth, length_factor
        self._peak: Peak | None = None
        self._drifting = False
        super().__init__((SCORE, self.monitor, DISAGREEMENT, KL, ENTROPY, LENGTH), stop=stop)

    @override
    def taints(self, metric: str) -> bool:
        """A score that is being hacked must not choose the best checkpoint."""
        return self.stop or metric == "eval/score"

    @override
    def finding(self, history: History) -> str | None:
        # evaluate all signs on every row, since two of them have a state
        signs = [sign(history) for sign in (self._turned, self._disagrees, self._drifts, self._longer)]
        return next((sign for sign in signs if sign is not None), None)

    def _turned(self, history: History) -> str | None:
        """The second reward model has fallen from its peak, and the score has not."""
        watched, score = history[self.monitor], history[SCORE]
        if self.monitor_errors is None or len(watched) < ROWS:
            return None
        now = watched.now()
        if self._peak is None or now > self._peak.level:
            self._peak = Peak(watched.at[-1], now, score.now() if len(score) else None)
        peak = self._peak
        # the standard error of a difference of two medians is √2 times that of one
        error = 2**0.5 * standard_error_of_median(watched.values)
        fallen = len(watched) >= 2 * ROWS and peak.level - now > self.monitor_errors * error
        if not fallen or peak.score is None or score.now() < peak.score:
            return None
        return (
            f"{self.monitor} fell from {peak.level:.3g} at iteration {peak.at} to {now:.3g} while "
            f"{SCORE} went from {peak.score:.3g} to {score.now():.3g}"
        )

    def _disagrees(self, history: History) -> str | None:
        """The members of the ensemble disagree."""
        spread = history[DISAGREEMENT]
        if not spread.grew(self.disagreement_factor):
            return None
        return f"the ensemble's disagreement rose from {spread.start():.3g} to {spread.now():.3g}{_score(history)}"

    def _drifts(self, history: History) -> str | None:
        """The KL grows fast, and the entropy does not fall."""
        kl, entropy = history[KL], history[ENTROPY]
        if self.kl_token is None or len(kl) <= LOOK_BACK or len(entropy) <= LOOK_BACK:
            return None
        now, then = kl.now(), kl.level(LOOK_BACK)
        grows = then >= self.kl_token / 4 and now >= self.kl_growth * then
        surer = entropy.now() < entropy.level(LOOK_BACK)
        self._drifting = now >= self.kl_token and ((grows and not surer) or self._drifting)
        if not self._drifting:
            return None
        return (
            f"within {LOOK_BACK} iterations the KL to the reference grew from {then:.2g} to {now:.2g} nats per token, "
            f"and the entropy did not fall{_score(history)}"
        )

    def _longer(self, history: History) -> str | None:
        """Responses have become longer."""
        length = history[LENGTH]
        # without a KL these are lengths of episodes
        if not len(history[KL]) or not length.grew(self.length_factor):
            return None
        return f"responses grew from {length.start():.0f} to {length.now():.0f} tokens{_score(history)}"

    @override
    def state_dict(self) -> dict[str, Any]:
        peak = None if self._peak is None else asdict(self._peak)
        return super().state_dict() | {"peak": peak, "unheld": self._drifting}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._peak = None if state_dict["peak"] is None else Peak(**state_dict["peak"])
        self._drifting = state_dict["unheld"]


def _score(history: History) -> str:
    score = history[SCORE]
    return f" while {SCORE} went from {score.start():.3g} to {score.now():.3g}" if len(score) else ""

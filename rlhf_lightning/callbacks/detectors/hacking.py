"""Reward hacking: the score rises, and what it stands for does not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from typing_extensions import override

from rlhf_lightning.callbacks.detectors.detector import Detector
from rlhf_lightning.callbacks.detectors.history import ROWS, History, Series, standard_error_of_median
from rlhf_lightning.errors import UserError

SCORE, DISAGREEMENT = "objective/score", "objective/disagreement"
KL, ENTROPY, LENGTH = "objective/kl_ref_token", "objective/entropy", "rollout/length_mean"
LOOK_BACK = 6
"""Iterations over which a metric counts as still growing."""


@dataclass(frozen=True)
class Peak:
    """The highest level of the second opinion so far.

    Args:
        at: iteration.
        level: of the second opinion.
        score: level of the score then; None where none had been logged.
    """

    at: int
    level: float
    score: float | None


class RewardHacking(Detector):
    """Warns when the score rises at the expense of the true reward, by four signs, each used where it is logged.

    Gao, Schulman & Hilton 2023, "Scaling Laws for Reward Model Overoptimization": a score under optimization rises on
    while the true reward turns, the sooner the fewer pairs the reward model has seen; Coste et al. 2024, "Reward Model
    Ensembles Help Mitigate Overoptimization": members agree on what is like their data and no longer on what exploits
    one of them.

    - A second reward model, trained on other pairs and only measured (``data.init_args.monitors``), turns down from
      its peak while the score does not.
    - The members of an ensemble disagree more than at the start.
    - The KL to the reference doubles within a few iterations although it was not small before, and the entropy does not
      fall: a policy that gets better becomes surer, one that leaves what the reward model knows does not.
    - Responses have grown much longer: length is what reward models overrate most (Singhal et al. 2023, "A Long Way to
      Go: Investigating Length Correlations in RLHF").

    None as a threshold switches that sign off.

    Args:
        monitor: name of the second reward model: ``objective/NAME`` is watched, ``best.ckpt`` goes by ``eval/NAME``.
        monitor_errors: standard errors by which it must have fallen from its peak.
        disagreement_factor: by how much the members' disagreement must have grown.
        kl_token: nats per token, on the sampled responses; it must have been a quarter of it before.
        kl_growth: factor by which the KL must have grown within `LOOK_BACK` iterations.
        length_factor: by how much responses must have grown; None where answers should become longer.
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
        self._unheld = False
        super().__init__((SCORE, self.monitor, DISAGREEMENT, KL, ENTROPY, LENGTH), stop=stop)

    @override
    def taints(self, metric: str) -> bool:
        """The score that is being hacked chooses no checkpoint."""
        return self.stop or metric == "eval/score"

    @override
    def finding(self, history: History) -> str | None:
        # all of them, each row: two remember something
        signs = [sign(history) for sign in (self._turned, self._disagrees, self._drifts, self._longer)]
        return next((sign for sign in signs if sign is not None), None)

    def _turned(self, history: History) -> str | None:
        """A second opinion has fallen from its peak, and the score has not."""
        watched, score = history[self.monitor], history[SCORE]
        if self.monitor_errors is None or len(watched) < ROWS:
            return None
        now = watched.now()
        if self._peak is None or now > self._peak.level:
            self._peak = Peak(watched.at[-1], now, score.now() if len(score) else None)
        peak = self._peak
        # the difference of two medians has √2 times the error of one
        error = 2**0.5 * standard_error_of_median(watched.values)
        fallen = len(watched) >= 2 * ROWS and peak.level - now > self.monitor_errors * error
        if not fallen or peak.score is None or score.now() < peak.score:
            return None
        return (
            f"{self.monitor} fell from {peak.level:.3g} at iteration {peak.at} to {now:.3g} while "
            f"{SCORE} went from {peak.score:.3g} to {score.now():.3g}"
        )

    def _disagrees(self, history: History) -> str | None:
        """The members of the ensemble no longer agree."""
        spread = history[DISAGREEMENT]
        if self.disagreement_factor is None or len(spread) < ROWS:
            return None
        if spread.now() <= self.disagreement_factor * spread.start():
            return None
        return f"the ensemble's disagreement rose from {spread.start():.3g} to {spread.now():.3g}{_score(history)}"

    def _drifts(self, history: History) -> str | None:
        """The KL doubles, and the policy becomes no surer of what it does."""
        kl, entropy = history[KL], history[ENTROPY]
        if self.kl_token is None or len(kl) <= LOOK_BACK or len(entropy) <= LOOK_BACK:
            return None
        now, then = kl.now(), kl.level(LOOK_BACK)
        grows = then >= self.kl_token / 4 and now >= self.kl_growth * then
        surer = entropy.now() < entropy.level(LOOK_BACK)
        self._unheld = now >= self.kl_token and ((grows and not surer) or self._unheld)
        if not self._unheld:
            return None
        return (
            f"within {LOOK_BACK} iterations the KL to the reference grew from {then:.2g} to {now:.2g} nats per token, "
            f"and the entropy did not fall{_score(history)}"
        )

    def _longer(self, history: History) -> str | None:
        """Responses are longer than they were."""
        length = history[LENGTH]
        if self.length_factor is None or len(length) < ROWS or not len(history[KL]):  # in an environment: of episodes
            return None
        if length.now() <= self.length_factor * length.start():
            return None
        return f"responses grew from {length.start():.0f} to {length.now():.0f} tokens{_score(history)}"

    @override
    def state_dict(self) -> dict[str, Any]:
        peak = None if self._peak is None else asdict(self._peak)
        return super().state_dict() | {"peak": peak, "unheld": self._unheld}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._peak = None if state_dict["peak"] is None else Peak(**state_dict["peak"])
        self._unheld = state_dict["unheld"]


def _score(history: History) -> str:
    score: Series = history[SCORE]
    return f" while {SCORE} went from {score.start():.3g} to {score.now():.3g}" if len(score) else ""

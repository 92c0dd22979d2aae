"""Reward hacking: the score rises, and what it stands for does not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from typing_extensions import override

from rlhf_lightning.callbacks.detectors.detector import Detector
from rlhf_lightning.callbacks.detectors.history import ROWS, History, Series, standard_error_of_median
from rlhf_lightning.errors import UserError

SCORE, DISAGREEMENT = "objective/score", "objective/disagreement"
KL, LENGTH = "objective/kl_ref_token", "rollout/length_mean"
LOOK_BACK = 10
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
    """Warns when the score rises at the expense of the true reward, by five signs, each used where it is logged.

    Gao, Schulman & Hilton 2023, "Scaling Laws for Reward Model Overoptimization": a score under optimization rises on
    while the true reward turns, the sooner the fewer pairs the reward model has seen; Coste et al. 2024, "Reward Model
    Ensembles Help Mitigate Overoptimization": members agree on what is like their data and no longer on what exploits
    one of them.

    - A second reward model, trained on other pairs and only measured (``data.init_args.monitors``), turns down from
      its peak while the score does not.
    - The members of an ensemble disagree more than at the start.
    - The KL to the reference is high and still growing: under a penalty it settles where a nat costs what it gains.
    - Responses have grown much longer; or a little, while the policy has left the reference: length is what reward
      models overrate most (Singhal et al. 2023, "A Long Way to Go: Investigating Length Correlations in RLHF").

    None as a threshold switches that sign off.

    Args:
        monitor: name of the second reward model: ``objective/NAME`` is watched, ``best.ckpt`` goes by ``eval/NAME``.
        monitor_errors: standard errors by which it must have fallen from its peak.
        disagreement_factor: by how much the members' disagreement must have grown.
        kl_token: nats per token, on the sampled responses.
        kl_growth: factor by which the KL must have grown within `LOOK_BACK` iterations.
        length_factor: by how much responses must have grown; None where answers should become longer.
        drift_kl: nats per token that make a little growth suspicious; None where answers should become longer.
        drift_length: that growth, as a factor.
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
        kl_token: float | None = 0.3,
        kl_growth: float = 1.5,
        length_factor: float | None = 1.5,
        drift_kl: float | None = 0.08,
        drift_length: float = 1.1,
        stop: bool = False,
    ) -> None:
        factors = {"disagreement_factor": disagreement_factor, "length_factor": length_factor}
        for name, value in (factors | {"drift_length": drift_length}).items():
            if value is not None and value <= 1:
                raise UserError(f"RewardHacking.{name} is {value}; expected above 1")
        self.monitor, self.best_by = f"objective/{monitor}", f"eval/{monitor}"
        self.monitor_errors, self.disagreement_factor = monitor_errors, disagreement_factor
        self.kl_token, self.kl_growth, self.length_factor = kl_token, kl_growth, length_factor
        self.drift_kl, self.drift_length = drift_kl, drift_length
        self._peak: Peak | None = None
        self._unheld = False
        super().__init__((SCORE, self.monitor, DISAGREEMENT, KL, LENGTH), stop=stop)

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
        """The KL is high and grew on since it became so."""
        kl = history[KL]
        if self.kl_token is None or len(kl) <= LOOK_BACK:
            return None
        now = kl.now()
        grows = now >= self.kl_growth * kl.level(LOOK_BACK)
        self._unheld = now >= self.kl_token and (grows or self._unheld)
        if not self._unheld:
            return None
        return f"the KL to the reference is {now:.2g} nats per token, and nothing held it{_score(history)}"

    def _longer(self, history: History) -> str | None:
        """Responses are longer than they were."""
        length = history[LENGTH]
        if len(length) < ROWS or not len(history[KL]):  # in an environment it is that of episodes
            return None
        grown, kl = length.now() / length.start(), history[KL].now()
        alone = self.length_factor is not None and grown > self.length_factor
        drifting = self.drift_kl is not None and grown > self.drift_length and kl > self.drift_kl
        if not (alone or drifting):
            return None
        away = "" if alone else f" and the KL to the reference to {kl:.2g} nats per token"
        return f"responses grew from {length.start():.3g} to {length.now():.3g} tokens{away}{_score(history)}"

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

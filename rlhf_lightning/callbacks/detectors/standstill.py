"""Standstill: training goes on, and the weights stay where they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from typing_extensions import override

from rlhf_lightning.callbacks.detectors.detector import Detector
from rlhf_lightning.callbacks.detectors.history import History, Series
from rlhf_lightning.callbacks.listener import axis_of
from rlhf_lightning.errors import UserError

CHANGE, GRADIENT = "/weight_change", "/grad_norm"
"""Ends of the names of metrics, behind the name of a network."""

UNCHANGED = 1e-9
"""Of the norm at the start: float32 cannot resolve so little, except in entries that are 0."""

LR, STEPS, STEP_SIZE = "lr", "policy/steps", "trust_region/step_size"


class Standstill(Detector):
    """Warns when the weights of a network have not changed in many steps, and says why where that is known.

    They count as unchanged while their distance from the start stays the same to `UNCHANGED` of their norm there.

    Args:
        steps: of the optimizer; an iteration of a policy optimizer counts as those that it reports, one at least.
        stop: end training at the first warning and export the state of ``best.ckpt``.
    """

    advice: ClassVar[str] = (
        "a larger optimization.lr; rewards, or feedback, that tell the responses to a prompt apart; and whether what "
        "is trained is what the loss depends on"
    )

    def __init__(self, steps: int = 100, stop: bool = False) -> None:
        if steps < 1:
            raise UserError(f"Standstill.steps is {steps}; expected at least 1")
        self.steps = steps
        super().__init__((LR, STEPS, STEP_SIZE), stop=stop)

    @override
    def observe(self, row: Mapping[str, float]) -> str | None:
        self._follow(row)
        if not any(name.endswith(CHANGE) for name in row):  # an evaluation: nothing can have moved since the last row
            return None
        if axis_of(row) == "iteration":
            row = {**row, STEPS: max(1.0, row.get(STEPS, 1.0))}
        return super().observe(row)

    @override
    def finding(self, history: History) -> str | None:
        for name, changes in history.items():
            if name.endswith(CHANGE) and len(changes) and (since := self._standing_since(changes)) is not None:
                network = name.removesuffix(CHANGE)
                return f"the weights of the {network} have not changed since {since}: {self._reason(network, since)}"
        return None

    def _standing_since(self, changes: Series) -> int | None:
        """The row since which the weights have stood still for long enough; None where they have not."""
        since, now = changes.at[-1], changes.values[-1]
        for at, value in zip(reversed(changes.at), reversed(changes.values), strict=True):
            if abs(value - now) > UNCHANGED:
                break
            since = at
        steps = self.history[STEPS]
        taken = sum(self._after(steps, since)) if len(steps) else changes.at[-1] - since
        return since if taken >= self.steps else None

    def _reason(self, network: str, since: int) -> str:
        """Why nothing moved, by the numbers that were logged meanwhile."""
        norms = self._after(self.history[network + GRADIENT], since)
        rates, sizes = (self._after(self.history[name], since) for name in (LR, STEP_SIZE))
        if not norms:
            return "no finite gradient was measured (in 16-bit mixed precision, every step may have been skipped)"
        if not any(norms):
            return "its gradient is 0"
        if network == "policy" and sizes:
            return "each step of the trust region is rejected" if not any(sizes) else "its steps are too small"
        if rates and not any(rates):
            return f"the learning rate is 0, and its gradient's norm {norms[-1]:.3g}"
        rate = f" at a learning rate of {rates[-1]:.3g}" if rates else ""
        return f"with a gradient of norm {norms[-1]:.3g}{rate}, steps are too small for the precision of its weights"

    @staticmethod
    def _after(series: Series, since: int) -> list[float]:
        return [value for at, value in zip(series.at, series.values, strict=True) if at > since]

    def _follow(self, names: Iterable[str]) -> None:
        """Keep the history of every network that is named: an ensemble has any number of them."""
        for name in names:
            if name.endswith(CHANGE):
                self.history.setdefault(name, Series())
                self.history.setdefault(name.removesuffix(CHANGE) + GRADIENT, Series())

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._follow(state_dict["history"])
        super().load_state_dict(state_dict)

"""What Lightning's callbacks monitor in a run that is counted in iterations, and what ended a run before its time."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, Timer

from rlhf_lightning.callbacks.detectors.detector import Detector
from rlhf_lightning.errors import UserError, suggestion
from rlhf_lightning.lightning_seams import callbacks_of


def monitoring(trainer: Trainer) -> list[Callback]:
    """The callbacks that stop or save by a metric, which must be there.

    `EarlyStopping` refuses a metric that is absent, as one is between evaluations: from now on it waits for the next.
    """
    found: list[Callback] = []
    for callback in callbacks_of(trainer):
        if isinstance(callback, EarlyStopping) and callback.strict:
            callback.strict = False
            found.append(callback)
        elif isinstance(callback, Checkpoint) and getattr(callback, "monitor", None) is not None:
            found.append(callback)
    return found


def check_monitors(callbacks: Collection[Callback], reported: Collection[str]) -> None:
    """Check that what callbacks go by is among the metrics of a run.

    Raises:
        UserError: it is not; the message names metrics that are.
    """
    for callback in callbacks:
        monitor = str(getattr(callback, "monitor", None))
        if monitor not in (*reported, "epoch", "step"):
            hint = suggestion(monitor, reported, otherwise=f"expected one of {', '.join(sorted(reported))}", most=3)
            raise UserError(f"{type(callback).__name__} monitors {monitor}, which this run does not report; {hint}")


def early_end(trainer: Trainer) -> str | None:
    """Who ended training before its budget, and why, in words; None where nobody did."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    if not trainer.should_stop or 0 <= steps <= trainer.global_step:
        return None
    if epochs is not None and 0 <= epochs <= trainer.current_epoch:
        return None
    reasons = [reason for callback in callbacks_of(trainer) if (reason := _reason(callback))]
    who = "; ".join(reasons) or "a callback or the model asked for it (trainer.should_stop)"
    after = f"step {trainer.global_step}" if steps >= 0 else f"iteration {trainer.current_epoch}"
    return f"training ends early, after {after}: {who}"


def _reason(callback: Callback) -> str | None:
    name = type(callback).__name__
    if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
        return f"{name}: {callback.stopping_reason_message.removesuffix(' Signaling Trainer to stop.')}"
    if isinstance(callback, Timer) and (left := callback.time_remaining()) is not None and left <= 0:
        return f"{name}: the time is up ({timedelta(seconds=int(callback.time_elapsed()))})"
    if isinstance(callback, Detector) and callback.stopped:
        return f"{name}: see its warning"
    return None

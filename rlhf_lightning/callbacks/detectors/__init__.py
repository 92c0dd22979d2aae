"""Callbacks that detect typical failures of training from the rows of metrics.

No detector reads the gold reward: the failures must be detectable where the true reward is unknown.
"""

from collections.abc import Iterable

from lightning.pytorch import Callback

from rlhf_lightning.callbacks.detectors.collapse import ModeCollapse
from rlhf_lightning.callbacks.detectors.detector import Detector, replay
from rlhf_lightning.callbacks.detectors.forgetting import Forgetting
from rlhf_lightning.callbacks.detectors.hacking import RewardHacking
from rlhf_lightning.callbacks.detectors.instability import Instability
from rlhf_lightning.callbacks.detectors.warnings_file import WarningsFile

__all__ = [
    "Detector",
    "Forgetting",
    "Instability",
    "ModeCollapse",
    "RewardHacking",
    "WarningsFile",
    "default_detectors",
    "replay",
]


def default_detectors(besides: Iterable[Callback] = ()) -> list[Detector]:
    """A detector of each kind that ``besides`` lacks, with default thresholds; none of them stops a run."""
    given = {type(callback) for callback in besides}
    return [kind() for kind in (RewardHacking, ModeCollapse, Forgetting, Instability) if kind not in given]

"""Callbacks that warn of what goes wrong in training, each by the rows of metrics alone.

No detector looks at gold: what they warn of must be seen where nobody knows the true reward.
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
    """One of each kind that is not given, with the default thresholds; none of them stops a run."""
    given = {type(callback) for callback in besides}
    return [kind() for kind in (RewardHacking, ModeCollapse, Forgetting, Instability) if kind not in given]

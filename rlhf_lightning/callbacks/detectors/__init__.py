"""Callbacks that detect typical failures of training from the rows of metrics.

No detector reads the gold reward: the failures must be detectable where the true reward is unknown.
"""

from collections.abc import Callable, Iterable

from lightning.pytorch import Callback

from rlhf_lightning.callbacks.detectors.collapse import ModeCollapse
from rlhf_lightning.callbacks.detectors.detector import Detector, replay
from rlhf_lightning.callbacks.detectors.forgetting import Forgetting
from rlhf_lightning.callbacks.detectors.hacking import RewardHacking
from rlhf_lightning.callbacks.detectors.instability import Instability
from rlhf_lightning.callbacks.detectors.standstill import Standstill
from rlhf_lightning.callbacks.detectors.warnings_file import WarningsFile

__all__ = [
    "Detector",
    "Forgetting",
    "Instability",
    "ModeCollapse",
    "RewardHacking",
    "Standstill",
    "WarningsFile",
    "default_detectors",
    "replay",
]


OF_POLICIES = (RewardHacking, ModeCollapse, Forgetting, Instability)
"""What looks at the rows of a policy that acts."""


def default_detectors(besides: Iterable[Callback] = (), *, of_policy: bool = True) -> list[Detector]:
    """A detector of each kind that ``besides`` lacks, with default thresholds; none of them stops a run.

    Args:
        of_policy: whether a policy is trained that acts; otherwise only those for all runs.
    """
    given = {type(callback) for callback in besides}
    kinds: list[Callable[[], Detector]] = [*(OF_POLICIES if of_policy else ()), Standstill]
    return [kind() for kind in kinds if kind not in given]

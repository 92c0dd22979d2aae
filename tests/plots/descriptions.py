"""What runs of some algorithms declare, put together without training anything."""

from types import SimpleNamespace

from rlhf_lightning.algorithms.base.feedback import FeedbackAlgorithm
from rlhf_lightning.algorithms.dpo import DPO
from rlhf_lightning.algorithms.parts.metrics import (
    CG_RESIDUAL,
    CLIP_FRACTION,
    ENTROPY,
    GRADIENT,
    KL_COEFFICIENT,
    KL_OLD,
    KL_TO_REFERENCE,
    STEPS,
    UNSHOWN,
    VALUE,
    kl_of_step,
)
from rlhf_lightning.algorithms.unlikelihood import Unlikelihood
from rlhf_lightning.data.environments import EnvironmentDataModule
from rlhf_lightning.data.preferences import PreferenceDataModule
from rlhf_lightning.data.rollouts import RolloutDataModule
from rlhf_lightning.records.metrics import Description, Experience, Metric


def of_text(*, gold=True, on_gold=False, objectives=(), monitors=(), more=()):
    """PPO on text: trained on gold, on another score beside it, or without any gold."""
    reward = object()
    data = SimpleNamespace(
        reward=reward,
        gold=reward if on_gold else object() if gold else None,
        objectives=objectives,
        responses=SimpleNamespace(monitors=monitors),
    )
    reference = (KL_TO_REFERENCE, KL_COEFFICIENT)
    own = (ENTROPY, GRADIENT, *UNSHOWN, *VALUE, KL_OLD, STEPS, CLIP_FRACTION, *more)
    metrics = (*RolloutDataModule.metrics(data), *reference, *own)
    return Description(RolloutDataModule.kind, "PPO", RolloutDataModule.experience, metrics)


def of_control(*, max_kl):
    """TRPO in an environment; ``max_kl`` None where nothing bounds the step."""
    line_search = (
        Metric("Length of the step", "share", "trust_region/step_size", floor=0, smooth=False, own=True),
        Metric("Rejected steps", "so far", "trust_region/rejections", floor=0, smooth=False),
        Metric(
            "Improvement",
            "as a share of what is expected",
            "trust_region/improvement_actual",
            per="trust_region/improvement_expected",
            mark=1.0,
            mark_name="as expected",
            floor=0,
        ),
    )
    own = (ENTROPY, GRADIENT, *UNSHOWN, *VALUE, kl_of_step(max_kl), *line_search, CG_RESIDUAL)
    metrics = (*EnvironmentDataModule.metrics(None), *own)
    return Description(EnvironmentDataModule.kind, "TRPO", EnvironmentDataModule.experience, metrics)


def of_pairs(group, *, batch_size):
    """DPO or Unlikelihood on preference pairs."""
    algorithm = {"dpo": DPO, "unlikelihood": Unlikelihood}[group]
    module = SimpleNamespace(group=group, own_metrics=lambda: algorithm.own_metrics(None))
    experience = Experience(PreferenceDataModule.unit, per_step=batch_size)
    return Description(FeedbackAlgorithm.kind, algorithm.__name__, experience, FeedbackAlgorithm.metrics(module))

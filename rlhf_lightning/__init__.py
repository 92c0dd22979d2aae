"""The bench on which people compare policy optimizers for language models trained from human feedback.

Everything the command line does is plain Python too::

    from lightning.pytorch import Trainer, seed_everything
    from rlhf_lightning import PPO, Assistant, LanguageBackbone, RolloutDataModule

    seed_everything(1)
    task = Assistant()
    Trainer(max_epochs=100).fit(PPO(task, LanguageBackbone()), RolloutDataModule(task))

Names are imported when they are first used, so that ``import rlhf_lightning`` takes no time.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "AdaptiveKLControl": "kl_control",
    "Assistant": "tasks.assistant.task",
    "Checkpoints": "callbacks.checkpoints",
    "CriticOptions": "algorithms.ppo",
    "DemonstrationDataModule": "data.demonstrations",
    "Export": "callbacks.export",
    "KLControl": "kl_control",
    "LanguageBackbone": "models.backbone",
    "LearnedReward": "rewards.learned",
    "MetricsFile": "callbacks.metrics_file",
    "Optimization": "optimization",
    "PPO": "algorithms.ppo",
    "PreferenceDataModule": "data.preferences",
    "Progress": "callbacks.progress",
    "RewardModeling": "reward_modeling",
    "RewardSource": "rewards.source",
    "RolloutDataModule": "data.rollouts",
    "SFT": "algorithms.sft",
    "SamplesFile": "callbacks.samples_file",
    "Task": "tasks.task",
    "TextTask": "tasks.text.task",
    "UserError": "errors",
    "load_run": "runs",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"rlhf_lightning.{_HOME[name]}"), name)
    raise AttributeError(f"module 'rlhf_lightning' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})

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
    "A2C": "algorithms.a2c",
    "AdaptiveKLControl": "kl_control",
    "Arithmetic": "tasks.arithmetic.task",
    "Assistant": "tasks.assistant.task",
    "Bandit": "tasks.bandit.task",
    "BatchMean": "baselines",
    "CPI": "algorithms.cpi",
    "Checkpoints": "callbacks.checkpoints",
    "Clip": "surrogates",
    "Control": "tasks.control",
    "ControlBackbone": "models.control_backbone",
    "CriticOptions": "actor_critic",
    "DPO": "algorithms.dpo",
    "DemonstrationDataModule": "data.demonstrations",
    "EnvironmentDataModule": "data.environments",
    "Export": "callbacks.export",
    "FisherOptions": "fisher",
    "GRPO": "algorithms.grpo",
    "KLControl": "kl_control",
    "LanguageBackbone": "models.backbone",
    "LearnedReward": "rewards.learned",
    "LoRA": "models.lora",
    "MeanRatio": "surrogates",
    "MetricsFile": "callbacks.metrics_file",
    "MovingAverage": "baselines",
    "NPG": "algorithms.npg",
    "NoBaseline": "baselines",
    "Optimization": "optimization",
    "PPO": "algorithms.ppo",
    "Penalty": "surrogates",
    "PreferredFT": "algorithms.preferred_ft",
    "PreferenceDataModule": "data.preferences",
    "Progress": "callbacks.progress",
    "RAFT": "algorithms.raft",
    "REINFORCE": "algorithms.reinforce",
    "RLOO": "algorithms.rloo",
    "RewardModeling": "reward_modeling",
    "RewardSource": "rewards.source",
    "RolloutDataModule": "data.rollouts",
    "SFT": "algorithms.sft",
    "SamplesFile": "callbacks.samples_file",
    "SequenceRatio": "surrogates",
    "Surrogate": "surrogates",
    "TRPO": "algorithms.trpo",
    "TabularBackbone": "models.tabular",
    "Task": "tasks.task",
    "TextTask": "tasks.text.task",
    "TokenRatio": "surrogates",
    "Unlikelihood": "algorithms.unlikelihood",
    "UserError": "errors",
    "ValueBaseline": "baselines",
    "load_run": "runs",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"rlhf_lightning.{_HOME[name]}"), name)
    raise AttributeError(f"module 'rlhf_lightning' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})

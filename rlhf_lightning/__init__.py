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
    "AdaptiveKLControl": "algorithms.parts.kl_control",
    "AllPairs": "reward_modeling.losses",
    "Arithmetic": "tasks.arithmetic.task",
    "Assistant": "tasks.assistant.task",
    "Bandit": "tasks.bandit.task",
    "BatchMean": "algorithms.parts.baselines",
    "BradleyTerry": "reward_modeling.losses",
    "CPI": "algorithms.cpi",
    "Checkpoints": "callbacks.checkpoints",
    "Clip": "algorithms.parts.surrogates",
    "CompositeReward": "rewards.composite",
    "Control": "tasks.control",
    "ControlBackbone": "models.control.backbone",
    "CriticOptions": "algorithms.parts.critic",
    "DPO": "algorithms.dpo",
    "DeclaredWeights": "rewards.objectives",
    "DemonstrationDataModule": "data.demonstrations",
    "EnvironmentDataModule": "data.environments",
    "Export": "callbacks.export",
    "FisherOptions": "algorithms.parts.fisher",
    "FunctionReward": "rewards.function",
    "GRPO": "algorithms.grpo",
    "HalveDoubleKLControl": "algorithms.parts.kl_control",
    "JointEncoder": "models.reward.architectures",
    "Judgement": "rewards.source",
    "KLControl": "algorithms.parts.kl_control",
    "KLLoss": "algorithms.parts.kl_control",
    "Lagrangian": "rewards.objectives",
    "LanguageBackbone": "models.language.backbone",
    "LearnedReward": "rewards.learned",
    "LoRA": "models.language.lora",
    "Log": "rewards.scaling",
    "MeanRatio": "algorithms.parts.surrogates",
    "MeanScore": "models.reward.combination",
    "MetricsFile": "callbacks.metrics_file",
    "MinMax": "rewards.scaling",
    "MovingAverage": "algorithms.parts.baselines",
    "NPG": "algorithms.npg",
    "NoBaseline": "algorithms.parts.baselines",
    "Optimization": "training.optimization",
    "PPO": "algorithms.ppo",
    "Penalty": "algorithms.parts.surrogates",
    "PlackettLuce": "reward_modeling.losses",
    "PreferenceDataModule": "data.preferences",
    "PreferredFT": "algorithms.preferred_ft",
    "Progress": "callbacks.progress",
    "RAFT": "algorithms.raft",
    "REINFORCE": "algorithms.reinforce",
    "RLOO": "algorithms.rloo",
    "RankingDataModule": "data.preferences",
    "RatingDataModule": "data.preferences",
    "Regression": "reward_modeling.losses",
    "RewardModel": "models.reward.reward_model",
    "RewardModeling": "reward_modeling.module",
    "RewardSource": "rewards.source",
    "RolloutDataModule": "data.rollouts",
    "RunningZScore": "rewards.scaling",
    "SFT": "algorithms.sft",
    "SamplesFile": "callbacks.samples_file",
    "SeparateEncoders": "models.reward.architectures",
    "SequenceRatio": "algorithms.parts.surrogates",
    "Surrogate": "algorithms.parts.surrogates",
    "TRPO": "algorithms.trpo",
    "TabularBackbone": "models.tabular",
    "Task": "tasks.task",
    "TaskReward": "rewards.task_reward",
    "TextTask": "tasks.text.task",
    "ThresholdKLControl": "algorithms.parts.kl_control",
    "TokenRatio": "algorithms.parts.surrogates",
    "UncertaintyWeighted": "models.reward.combination",
    "Unlikelihood": "algorithms.unlikelihood",
    "UserError": "errors",
    "ValueBaseline": "algorithms.parts.baselines",
    "WorstCase": "models.reward.combination",
    "ZScore": "rewards.scaling",
    "load_run": "records.runs",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"rlhf_lightning.{_HOME[name]}"), name)
    raise AttributeError(f"module 'rlhf_lightning' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})

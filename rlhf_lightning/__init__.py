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
    "AllPairs": "reward_losses",
    "Arithmetic": "tasks.arithmetic.task",
    "Assistant": "tasks.assistant.task",
    "Bandit": "tasks.bandit.task",
    "BatchMean": "baselines",
    "BradleyTerry": "reward_losses",
    "CPI": "algorithms.cpi",
    "Checkpoints": "callbacks.checkpoints",
    "Clip": "surrogates",
    "CompositeReward": "rewards.composite",
    "Control": "tasks.control",
    "ControlBackbone": "models.control_backbone",
    "CriticOptions": "actor_critic",
    "DPO": "algorithms.dpo",
    "DeclaredWeights": "rewards.objectives",
    "DemonstrationDataModule": "data.demonstrations",
    "EnvironmentDataModule": "data.environments",
    "Export": "callbacks.export",
    "FisherOptions": "fisher",
    "FunctionReward": "rewards.function",
    "GRPO": "algorithms.grpo",
    "HalveDoubleKLControl": "kl_control",
    "JointEncoder": "models.architectures",
    "Judgement": "rewards.source",
    "KLControl": "kl_control",
    "KLLoss": "kl_control",
    "Lagrangian": "rewards.objectives",
    "LanguageBackbone": "models.backbone",
    "LearnedReward": "rewards.learned",
    "LoRA": "models.lora",
    "Log": "rewards.scaling",
    "MeanRatio": "surrogates",
    "MeanScore": "models.combination",
    "MetricsFile": "callbacks.metrics_file",
    "MinMax": "rewards.scaling",
    "MovingAverage": "baselines",
    "NPG": "algorithms.npg",
    "NoBaseline": "baselines",
    "Optimization": "optimization",
    "PPO": "algorithms.ppo",
    "Penalty": "surrogates",
    "PlackettLuce": "reward_losses",
    "PreferenceDataModule": "data.preferences",
    "PreferredFT": "algorithms.preferred_ft",
    "Progress": "callbacks.progress",
    "RAFT": "algorithms.raft",
    "REINFORCE": "algorithms.reinforce",
    "RLOO": "algorithms.rloo",
    "RankingDataModule": "data.preferences",
    "RatingDataModule": "data.preferences",
    "Regression": "reward_losses",
    "RewardModel": "models.reward_model",
    "RewardModeling": "reward_modeling",
    "RewardSource": "rewards.source",
    "RolloutDataModule": "data.rollouts",
    "RunningZScore": "rewards.scaling",
    "SFT": "algorithms.sft",
    "SamplesFile": "callbacks.samples_file",
    "SeparateEncoders": "models.architectures",
    "SequenceRatio": "surrogates",
    "Surrogate": "surrogates",
    "TRPO": "algorithms.trpo",
    "TabularBackbone": "models.tabular",
    "Task": "tasks.task",
    "TaskReward": "rewards.task_reward",
    "TextTask": "tasks.text.task",
    "ThresholdKLControl": "kl_control",
    "TokenRatio": "surrogates",
    "UncertaintyWeighted": "models.combination",
    "Unlikelihood": "algorithms.unlikelihood",
    "UserError": "errors",
    "ValueBaseline": "baselines",
    "WorstCase": "models.combination",
    "ZScore": "rewards.scaling",
    "load_run": "runs",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"rlhf_lightning.{_HOME[name]}"), name)
    raise AttributeError(f"module 'rlhf_lightning' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})

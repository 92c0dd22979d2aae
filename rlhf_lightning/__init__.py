"""The bench on which people compare policy optimizers for language models trained from human feedback.

Everything the command line does is plain Python too::

    from rlhf_lightning import PPO, Assistant, LanguageBackbone, RolloutDataModule, train

    task = Assistant()
    run = train(PPO(task, LanguageBackbone()), RolloutDataModule(task), name="ppo-1", max_epochs=100)
    run.series("eval/gold")

Names are imported when they are first used, so that ``import rlhf_lightning`` takes no time.
"""

import re
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

_HOME = {
    "AdaptiveKLControl": "algorithms.parts.kl_control",
    "AllPairs": "reward_modeling.losses",
    "Arithmetic": "tasks.arithmetic.task",
    "Assistant": "tasks.assistant.task",
    "Bandit": "tasks.bandit.task",
    "BatchMean": "algorithms.parts.baselines",
    "BradleyTerry": "reward_modeling.losses",
    "Checkpoints": "callbacks.checkpoints",
    "Clip": "algorithms.parts.surrogates",
    "CompositeReward": "rewards.composite",
    "Control": "tasks.control",
    "ControlBackbone": "models.control.backbone",
    "CriticOptions": "algorithms.parts.critic",
    "DeclaredWeights": "rewards.objectives",
    "DemonstrationDataModule": "data.demonstrations",
    "EnvironmentDataModule": "data.environments",
    "Export": "callbacks.export",
    "FisherOptions": "algorithms.parts.fisher",
    "FunctionReward": "rewards.function",
    "HalveDoubleKLControl": "algorithms.parts.kl_control",
    "JointEncoder": "models.reward.architectures",
    "Judgement": "rewards.source",
    "KLControl": "algorithms.parts.kl_control",
    "KLLoss": "algorithms.parts.kl_control",
    "LabelDataModule": "data.preferences",
    "LabelledResponse": "types",
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
    "NoBaseline": "algorithms.parts.baselines",
    "Optimization": "training.optimization",
    "Penalty": "algorithms.parts.surrogates",
    "PlackettLuce": "reward_modeling.losses",
    "PreferenceDataModule": "data.preferences",
    "Progress": "callbacks.progress",
    "RankingDataModule": "data.preferences",
    "RatingDataModule": "data.preferences",
    "Regression": "reward_modeling.losses",
    "RewardModel": "models.reward.reward_model",
    "RewardModeling": "reward_modeling.module",
    "RewardSource": "rewards.source",
    "RolloutDataModule": "data.rollouts",
    "RunningZScore": "rewards.scaling",
    "SamplesFile": "callbacks.samples_file",
    "SeparateEncoders": "models.reward.architectures",
    "SequenceRatio": "algorithms.parts.surrogates",
    "Surrogate": "algorithms.parts.surrogates",
    "TabularBackbone": "models.tabular",
    "Task": "tasks.task",
    "TaskReward": "rewards.task_reward",
    "TextTask": "tasks.text.task",
    "ThresholdKLControl": "algorithms.parts.kl_control",
    "TokenRatio": "algorithms.parts.surrogates",
    "UncertaintyWeighted": "models.reward.combination",
    "UserError": "errors",
    "ValueBaseline": "algorithms.parts.baselines",
    "WorstCase": "models.reward.combination",
    "ZScore": "rewards.scaling",
    "load_run": "records.runs",
    "train": "cli.train",
}

_CLASS = re.compile(r"^class ([A-Z]\w*)\(", re.MULTILINE)


@cache
def public_names() -> dict[str, str]:
    """Every public class and function, and the module that holds it; an algorithm is named like its file."""
    names = dict(_HOME)
    for file in sorted((Path(__file__).parent / "algorithms").glob("[a-z]*.py")):
        classes = _CLASS.findall(file.read_text("utf-8"))
        names |= {one: f"algorithms.{file.stem}" for one in classes if one.lower() == file.stem.replace("_", "")}
    return names


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted(public_names())
    if name in public_names():
        return getattr(import_module(f"rlhf_lightning.{public_names()[name]}"), name)
    raise AttributeError(f"module 'rlhf_lightning' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *public_names()})

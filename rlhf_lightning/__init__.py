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
    "algorithms.base.diagnostics": "GradientDiagnostics KLDiagnostics",
    "algorithms.parts.baselines": "BatchMean MovingAverage NoBaseline ValueBaseline",
    "algorithms.parts.critic": "CriticOptions",
    "algorithms.parts.fisher": "FisherOptions",
    "algorithms.parts.kl_control": "AdaptiveKLControl HalveDoubleKLControl KLControl KLLoss ThresholdKLControl",
    "algorithms.parts.surrogates": "Clip MeanRatio Penalty SequenceRatio Surrogate TokenRatio",
    "callbacks.checkpoints": "Checkpoints",
    "callbacks.export": "Export",
    "callbacks.metrics_file": "MetricsFile",
    "callbacks.progress": "Progress",
    "callbacks.samples_file": "SamplesFile",
    "cli.train": "train",
    "data.demonstrations": "DemonstrationDataModule",
    "data.environments": "EnvironmentDataModule",
    "data.preferences": "LabelDataModule PreferenceDataModule RankingDataModule RatingDataModule",
    "data.rollouts": "RolloutDataModule",
    "errors": "UserError",
    "models.control.backbone": "ControlBackbone",
    "models.language.backbone": "LanguageBackbone",
    "models.language.lora": "LoRA",
    "models.reward.architectures": "JointEncoder SeparateEncoders",
    "models.reward.combination": "MeanScore UncertaintyWeighted WorstCase",
    "models.reward.reward_model": "RewardModel",
    "models.tabular": "TabularBackbone",
    "records.many_runs": "load_runs",
    "experiment.loading": "load_comparison",
    "records.runs": "load_run",
    "reward_modeling.losses": "AllPairs BradleyTerry PlackettLuce Regression",
    "reward_modeling.module": "RewardModeling",
    "rewards.composite": "CompositeReward",
    "rewards.function": "FunctionReward",
    "rewards.learned": "LearnedReward",
    "rewards.objectives": "DeclaredWeights Lagrangian",
    "rewards.scaling": "Log MinMax RunningZScore ZScore",
    "rewards.source": "Judgement RewardSource",
    "rewards.task_reward": "TaskReward",
    "tasks.arithmetic.task": "Arithmetic",
    "tasks.assistant.task": "Assistant",
    "tasks.bandit.task": "Bandit",
    "tasks.control": "Control",
    "tasks.task": "Task",
    "tasks.text.task": "TextTask",
    "training.optimization": "Optimization",
    "types": "LabelledResponse",
}
"""The public names of each module, but for algorithms."""

_CLASS = re.compile(r"^class ([A-Z]\w*)\(", re.MULTILINE)


@cache
def public_names() -> dict[str, str]:
    """Every public class and function, and the module that holds it; an algorithm is named like its file."""
    names = {name: module for module, its_names in _HOME.items() for name in its_names.split()}
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

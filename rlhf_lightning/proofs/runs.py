"""Short runs of every algorithm on tasks that come with the package, to be repeated under other circumstances.

Each has what could tell circumstances apart: a schedule, clipping, weight decay, prompts and responses of several
lengths, batches that do not divide evenly. An algorithm's runs follow from what it is and from which arguments it has.
"""

from __future__ import annotations

import copy
import importlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor

from rlhf_lightning.algorithms import all_algorithms
from rlhf_lightning.algorithms.base.feedback import FeedbackAlgorithm
from rlhf_lightning.algorithms.base.on_policy import OnPolicy
from rlhf_lightning.algorithms.parts.critic import CriticOptions
from rlhf_lightning.algorithms.parts.fisher import FisherOptions
from rlhf_lightning.algorithms.parts.kl_control import AdaptiveKLControl, KLControl
from rlhf_lightning.algorithms.sft import SFT
from rlhf_lightning.cli.introspection import argument_names
from rlhf_lightning.data.demonstrations import DemonstrationDataModule
from rlhf_lightning.data.environments import EnvironmentDataModule
from rlhf_lightning.data.preferences import LabelDataModule, PreferenceDataModule
from rlhf_lightning.data.rollouts import RolloutDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.control.backbone import ControlBackbone
from rlhf_lightning.models.language.backbone import LanguageBackbone
from rlhf_lightning.reward_modeling.module import RewardModeling
from rlhf_lightning.rewards.source import RewardSource
from rlhf_lightning.tasks.arithmetic import Arithmetic
from rlhf_lightning.tasks.bandit import Bandit
from rlhf_lightning.tasks.control import Control
from rlhf_lightning.tasks.task import Split
from rlhf_lightning.training.module import Module
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import Demonstration, Prompt

Build = Callable[[Optimization], tuple[LightningModule, LightningDataModule]]


@dataclass(frozen=True)
class ShortRun:
    """A run of a few iterations or steps.

    Args:
        algorithm: is trained.
        task: name of the task.
        build: module and data, from how the module is to be stepped.
        length: the trainer's budget.
        checkpoint_every: iterations or steps between checkpoints.
        killed_at: iterations or steps that are complete when the run is killed, in the middle of the next.
    """

    algorithm: type[Module]
    task: str
    build: Build
    length: dict[str, int]
    checkpoint_every: int
    killed_at: int

    @property
    def name(self) -> str:
        """Of the algorithm."""
        return self.algorithm.__name__

    @property
    def key(self) -> str:
        """What finds it again in another process, see `run_of_key`."""
        return f"{self.algorithm.__module__}:{self.algorithm.__qualname__}:{self.task}"

    def optimization(self, microbatch_size: int | None) -> Optimization:
        """Everything that a resumed or divided run could get wrong."""
        return Optimization(3e-3, "linear", max_grad_norm=0.1, weight_decay=0.1, microbatch_size=microbatch_size)


class Whim(RewardSource):
    """A fixed pseudo-random number from 0 to 1 for each pair of prompt and response."""

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Tensor:
        """The numbers."""
        pairs = zip(prompts, responses, strict=True)
        return torch.tensor([random.Random(f"{prompt}/{response}").random() for prompt, response in pairs])


class FewSums(Arithmetic):
    """Sums modulo 5, and no more demonstrations than a short run can be judged on one by one."""

    def __init__(self) -> None:
        super().__init__(modulus=5, problems=13)

    def demonstrations(self, split: Split) -> Sequence[Demonstration]:
        """The first 13."""
        return super().demonstrations(split)[:13]


def network() -> LanguageBackbone:
    """A transformer of one block."""
    return LanguageBackbone(width=16, layers=1, heads=2, context_length=32)


MINIBATCHES: dict[str, Any] = {
    "kl": AdaptiveKLControl(0.1, target=0.05),
    "critic": CriticOptions(warmup=1),
    "minibatch_size": 4,
    "inner_epochs": 2,
    "stop_kl": 0.01,
    "fisher": FisherOptions(iterations=3),
}
"""Arguments for short runs, each for the algorithms that have it."""


def settings_for(algorithm: type[Module], **settings: Any) -> dict[str, Any]:
    """Those settings that an algorithm's constructor takes, as copies."""
    known = argument_names(algorithm)
    return {name: copy.deepcopy(value) for name, value in settings.items() if name in known}


def on_text(algorithm: type[OnPolicy[Any]]) -> ShortRun:
    """Three iterations on twelve responses, an odd number of held-out prompts."""
    group_size = 3 if "groups" in algorithm.requires else 1

    def build(optimization: Optimization) -> tuple[LightningModule, LightningDataModule]:
        task = FewSums()
        module = algorithm(task, network(), optimization, **settings_for(algorithm, **MINIBATCHES, eval_every=2))
        data = RolloutDataModule(
            task, Whim(), rollout_batch_size=12, samples_per_prompt=group_size, max_new_tokens=5, eval_prompts=7
        )
        return module, data

    return ShortRun(algorithm, "Arithmetic", build, {"max_epochs": 3}, checkpoint_every=1, killed_at=2)


def in_environment(algorithm: type[OnPolicy[Any]]) -> ShortRun:
    """Three iterations in four environments, everything normalized; episodes go on from one to the next."""
    settings = MINIBATCHES | {"kl": KLControl(0.0), "critic": CriticOptions(), "minibatch_size": 16, "gamma": 0.99}
    del settings["stop_kl"]

    def build(optimization: Optimization) -> tuple[LightningModule, LightningDataModule]:
        task = Control("CartPole-v1")
        backbone = ControlBackbone(hidden=(8,), normalize_observations=True)
        module = algorithm(task, backbone, optimization, **settings_for(algorithm, **settings, eval_every=2))
        return module, EnvironmentDataModule(task, 4, 64, normalize_rewards=True, eval_episodes=3)

    return ShortRun(algorithm, "CartPole", build, {"max_epochs": 3}, checkpoint_every=1, killed_at=2)


def on_feedback(algorithm: type[FeedbackAlgorithm[Any]] | type[RewardModeling]) -> ShortRun:
    """Four steps; the third batch holds one example only, so that a second rank has none."""
    labels = issubclass(algorithm.data_class, LabelDataModule)
    data_class = LabelDataModule if labels else PreferenceDataModule
    batch_size = 104 if labels else 52  # of 210 labels or 105 pairs, and the last batch has at least one of them

    def build(optimization: Optimization) -> tuple[LightningModule, LightningDataModule]:
        task = Bandit(comparisons=1)
        settings = settings_for(algorithm, max_new_tokens=3, eval_prompts=7, log_every=1)
        module = algorithm(task, network(), optimization, **settings)
        return module, data_class(task, batch_size=batch_size, eval_limit=21)

    return ShortRun(algorithm, "Bandit", build, {"max_steps": 4}, checkpoint_every=2, killed_at=3)


def on_demonstrations(algorithm: type[SFT]) -> ShortRun:
    """Six steps; the fourth batch holds one demonstration only, so that a second rank has none."""

    def build(optimization: Optimization) -> tuple[LightningModule, LightningDataModule]:
        task = FewSums()
        return algorithm(task, network(), optimization, log_every=1), DemonstrationDataModule(task, batch_size=4)

    return ShortRun(algorithm, "Arithmetic", build, {"max_steps": 6}, checkpoint_every=2, killed_at=5)


def runs_of(algorithm: type[Module]) -> list[ShortRun]:
    """The runs of an algorithm: on every kind of task that provides what it requires."""
    if issubclass(algorithm, OnPolicy):
        anywhere = not algorithm.requires
        return [on_text(algorithm), *([in_environment(algorithm)] if anywhere else [])]
    if issubclass(algorithm, FeedbackAlgorithm | RewardModeling):
        return [on_feedback(algorithm)]
    return [on_demonstrations(algorithm)] if issubclass(algorithm, SFT) else []


@cache
def all_runs() -> tuple[ShortRun, ...]:
    """Those of every algorithm of the package, in the order of the table."""
    return tuple(run for algorithm in (*all_algorithms(), RewardModeling) for run in runs_of(algorithm))


def run_of_key(key: str) -> ShortRun:
    """The run that has this `ShortRun.key`, of any algorithm that can be imported."""
    path, _, task = key.rpartition(":")
    return next(run for run in runs_of(imported_class(path)) if run.task == task)


def imported_class(path: str) -> type:
    """The class that ``module:Class`` names.

    Raises:
        UserError: there is none.
    """
    module, _, name = path.replace(":", ".").rpartition(".")
    if not module:
        raise UserError(f"{path} names no class; expected MODULE:CLASS, such as my_module:MyLoss")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path} cannot be imported ({error}); expected MODULE:CLASS, such as my_module:MyLoss"
        ) from error
    if not isinstance(found, type):
        raise UserError(f"{path} is no class; expected MODULE:CLASS, such as my_module:MyLoss")
    return found

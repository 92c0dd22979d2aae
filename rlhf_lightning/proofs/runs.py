"""Short runs of every algorithm on tasks that come with the package, to be repeated under other circumstances.

Each has what could tell circumstances apart: a schedule, clipping, weight decay, prompts and responses of several
lengths, batches that do not divide evenly. A new algorithm gets its row in `RUNS`.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor

from rlhf_lightning.algorithms.a2c import A2C
from rlhf_lightning.algorithms.base.on_policy import OnPolicy
from rlhf_lightning.algorithms.cpi import CPI
from rlhf_lightning.algorithms.dpo import DPO
from rlhf_lightning.algorithms.grpo import GRPO
from rlhf_lightning.algorithms.npg import NPG
from rlhf_lightning.algorithms.parts.critic import CriticOptions
from rlhf_lightning.algorithms.parts.fisher import FisherOptions
from rlhf_lightning.algorithms.parts.kl_control import AdaptiveKLControl, KLControl
from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.algorithms.preferred_ft import PreferredFT
from rlhf_lightning.algorithms.raft import RAFT
from rlhf_lightning.algorithms.reinforce import REINFORCE
from rlhf_lightning.algorithms.rloo import RLOO
from rlhf_lightning.algorithms.sft import SFT
from rlhf_lightning.algorithms.trpo import TRPO
from rlhf_lightning.algorithms.unlikelihood import Unlikelihood
from rlhf_lightning.data.demonstrations import DemonstrationDataModule
from rlhf_lightning.data.environments import EnvironmentDataModule
from rlhf_lightning.data.preferences import PreferenceDataModule
from rlhf_lightning.data.rollouts import RolloutDataModule
from rlhf_lightning.models.control.backbone import ControlBackbone
from rlhf_lightning.models.language.backbone import LanguageBackbone
from rlhf_lightning.reward_modeling.module import RewardModeling
from rlhf_lightning.rewards.source import RewardSource
from rlhf_lightning.tasks.arithmetic import Arithmetic
from rlhf_lightning.tasks.bandit import Bandit
from rlhf_lightning.tasks.control import Control
from rlhf_lightning.tasks.task import Split
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import Demonstration, Prompt

Build = Callable[[Optimization], tuple[LightningModule, LightningDataModule]]


@dataclass(frozen=True)
class Run:
    """A run of a few iterations or steps.

    Args:
        name: of the algorithm.
        task: name of the task.
        build: module and data, from how the module is to be stepped.
        length: the trainer's budget.
        checkpoint_every: iterations or steps between checkpoints.
        killed_at: iterations or steps that are complete when the run is killed, in the middle of the next.
    """

    name: str
    task: str
    build: Build
    length: dict[str, int]
    checkpoint_every: int
    killed_at: int

    def optimization(self, microbatch_size: int | None) -> Optimization:
        """Everything that a resumed or divided run could get wrong."""
        return Optimization(3e-3, "linear", max_grad_norm=0.1, weight_decay=0.1, microbatch_size=microbatch_size)


class Whim(RewardSource):
    """A number between 0 and 1 for each prompt with each response, drawn once and for all."""

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


def on_text(algorithm: type[OnPolicy], *, group_size: int = 1, **settings: Any) -> Run:
    """Three iterations on twelve responses, an odd number of held-out prompts."""

    def build(optimization: Optimization) -> tuple[LightningModule, LightningDataModule]:
        task = FewSums()
        module = algorithm(task, network(), optimization, eval_every=2, **copy.deepcopy(settings))
        rollouts = {"rollout_batch_size": 12, "samples_per_prompt": group_size, "max_new_tokens": 5, "eval_prompts": 7}
        return module, RolloutDataModule(task, Whim(), **rollouts)

    return Run(algorithm.__name__, "Arithmetic", build, {"max_epochs": 3}, checkpoint_every=1, killed_at=2)


def in_environment(algorithm: type[OnPolicy], **settings: Any) -> Run:
    """Three iterations in four environments, everything normalized; episodes go on from one to the next."""

    def build(optimization: Optimization) -> tuple[LightningModule, LightningDataModule]:
        task = Control("CartPole-v1")
        backbone = ControlBackbone(hidden=[8], normalize_observations=True)
        free = {"kl": KLControl(0.0), "gamma": 0.99, "eval_every": 2, **settings}
        data = EnvironmentDataModule(task, 4, 64, normalize_rewards=True, eval_episodes=3)
        return algorithm(task, backbone, optimization, **free), data

    return Run(algorithm.__name__, "CartPole", build, {"max_epochs": 3}, checkpoint_every=1, killed_at=2)


def on_pairs(algorithm: type[LightningModule], **settings: Any) -> Run:
    """Four steps on pairs; the third batch holds one only, so that a second rank has none."""

    def build(optimization: Optimization) -> tuple[LightningModule, LightningDataModule]:
        task = Bandit(comparisons=1)  # 105 pairs
        module = algorithm(task, network(), optimization, log_every=1, **settings)
        return module, PreferenceDataModule(task, batch_size=52, eval_limit=21)

    return Run(algorithm.__name__, "Bandit", build, {"max_steps": 4}, checkpoint_every=2, killed_at=3)


def on_demonstrations() -> Run:
    """Six steps; the fourth batch holds one demonstration only, so that a second rank has none."""

    def build(optimization: Optimization) -> tuple[LightningModule, LightningDataModule]:
        task = FewSums()
        return SFT(task, network(), optimization, log_every=1), DemonstrationDataModule(task, batch_size=4)

    return Run("SFT", "Arithmetic", build, {"max_steps": 6}, checkpoint_every=2, killed_at=5)


MINIBATCHES: dict[str, Any] = {"minibatch_size": 4, "inner_epochs": 2}
SOLVER = FisherOptions(iterations=3)
FREE_RUNNING: dict[str, Any] = {"max_new_tokens": 3, "eval_prompts": 7}

RUNS = (
    on_demonstrations(),
    on_pairs(RewardModeling),
    on_text(PPO, kl=AdaptiveKLControl(0.1, target=0.05), critic=CriticOptions(warmup=1), stop_kl=0.01, **MINIBATCHES),
    on_text(REINFORCE),
    on_text(A2C, entropy_coef=0.01),
    on_text(RLOO, group_size=3),
    on_text(GRPO, group_size=3, minibatch_size=6, inner_epochs=2),
    on_text(TRPO, minibatch_size=4, fisher=SOLVER),
    on_text(NPG, minibatch_size=4, fisher=SOLVER),
    on_text(CPI, **MINIBATCHES),
    on_text(RAFT, group_size=3),
    on_pairs(DPO, **FREE_RUNNING),
    on_pairs(PreferredFT, **FREE_RUNNING),
    on_pairs(Unlikelihood, **FREE_RUNNING),
    in_environment(PPO, minibatch_size=16, inner_epochs=2),
    in_environment(A2C),
    in_environment(TRPO, minibatch_size=16, fisher=SOLVER),
)
"""What the table shows, in this order."""

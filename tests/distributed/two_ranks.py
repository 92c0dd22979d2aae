"""The same runs on any number of devices; as a script, on two.

python two_ranks.py FOLDER starts one more process and writes what each rank ends with to FOLDER/RANK.pt.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from training_helpers import CountsB, Letters, PaysFor, fit, ppo, quiet_trainer, rollouts, snapshot, tiny

from rlhf_lightning.algorithms.a2c import A2C
from rlhf_lightning.algorithms.base.diagnostics import GradientDiagnostics, KLDiagnostics
from rlhf_lightning.algorithms.cpi import CPI
from rlhf_lightning.algorithms.dpo import DPO
from rlhf_lightning.algorithms.grpo import GRPO
from rlhf_lightning.algorithms.npg import NPG
from rlhf_lightning.algorithms.parts.baselines import ValueBaseline
from rlhf_lightning.algorithms.parts.critic import CriticOptions
from rlhf_lightning.algorithms.parts.fisher import FisherOptions
from rlhf_lightning.algorithms.parts.kl_control import AdaptiveKLControl, KLControl, KLLoss, ThresholdKLControl
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
from rlhf_lightning.data.preferences import PreferenceDataModule, RankingDataModule
from rlhf_lightning.distributed import rank
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.control.backbone import ControlBackbone
from rlhf_lightning.reward_modeling.losses import PlackettLuce
from rlhf_lightning.reward_modeling.module import RewardModeling
from rlhf_lightning.rewards.composite import CompositeReward
from rlhf_lightning.rewards.objectives import Lagrangian
from rlhf_lightning.rewards.scaling import ClipScores, RunningZScore
from rlhf_lightning.tasks.control import Control
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import Ranking


class Ranked(Letters):
    """Two or three answers to a prompt, those with more ``b`` first."""

    provides = Letters.provides | {"rankings"}

    def rankings(self, split):
        texts = ("b b", "b a", "a a")
        return [
            Ranking(self.noun_prompt(i), texts[: 2 + i % 2], annotator=f"person {i % 2}")
            for i in self.numbers("preferences", split)
        ]


class HalfEqual(Letters):
    """Every second pair is one of equal responses, which is left out."""

    def preferences(self, split):
        found = super().preferences(split)
        return [replace(pair, rejected=pair.chosen) if n % 2 else pair for n, pair in enumerate(found)]


def optimization(microbatch_size: int | None) -> Optimization:
    """Everything that could differ: a schedule, clipping, weight decay."""
    return Optimization(3e-3, "linear", max_grad_norm=0.1, weight_decay=0.1, microbatch_size=microbatch_size)


def run_sft(microbatch_size: int | None = None, **settings: Any) -> tuple[Any, torch.nn.Module]:
    """Five steps; the fourth batch holds one demonstration only, so that a second rank has none."""
    task = Letters()
    module = SFT(task, tiny(), optimization(microbatch_size), log_every=1)
    rows = fit(module, DemonstrationDataModule(task, 4), max_steps=5, **settings)
    return rows, module


def reward_run(of_task: type[Letters]) -> Callable[..., tuple[Any, torch.nn.Module]]:
    """Five steps; the fourth batch holds one pair only."""

    def run(microbatch_size: int | None = None, **settings: Any) -> tuple[Any, torch.nn.Module]:
        task = of_task()
        module = RewardModeling(task, tiny(), optimization(microbatch_size), log_every=1)
        return fit(module, PreferenceDataModule(task, batch_size=4), max_steps=5, **settings), module

    return run


def run_ensemble(microbatch_size: int | None = None, **settings: Any) -> tuple[Any, torch.nn.Module]:
    """Three members on lists of unequal length."""
    task = Ranked()
    loss = {"loss": PlackettLuce(), "centering": 0.1}
    module = RewardModeling(task, tiny(), optimization(microbatch_size), log_every=1, members=3, **loss)
    return fit(module, RankingDataModule(task, batch_size=4), max_steps=5, **settings), module


def run_objectives(microbatch_size: int | None = None, **settings: Any) -> tuple[Any, torch.nn.Module]:
    """PPO with two objectives, one of them held above a floor: a value of each, running scaling, the KL in the loss."""
    task = Letters()
    module = ppo(
        task,
        minibatch_size=4,
        critic=CriticOptions(per_objective=True),
        kl=ThresholdKLControl(0.1, loss=KLLoss("k2"), target=0.05),
        optimization=optimization(microbatch_size),
        eval_every=2,
    )
    data = rollouts(
        task,
        CompositeReward({"b": CountsB(), "one": PaysFor("b")}, {"one": 0.5}),
        size=12,
        eval_prompts=7,
        scaling=[RunningZScore(), ClipScores(-3, 3)],
        weights=Lagrangian("b", {"one": 0.3}, lr=0.5),
        monitors={"watched": PaysFor("a")},
        length_penalty=0.01,
    )
    return fit(module, data, max_epochs=3, **settings), module


def run_ppo(microbatch_size: int | None = None, **settings: Any) -> tuple[Any, torch.nn.Module]:
    """Three iterations with an odd number of held-out prompts; the limit on the KL ends updates early."""
    task = Letters()
    module = ppo(
        task,
        minibatch_size=4,
        inner_epochs=3,
        eval_every=2,
        entropy_coef=0.01,
        stop_kl=0.001,
        temperature=0.9,
        kl=AdaptiveKLControl(0.1, target=0.05),
        critic=CriticOptions(lr=1e-2, clip_range=0.2, warmup=1),
        optimization=optimization(microbatch_size),
    )
    data = rollouts(task, size=10, eval_prompts=7, decode_batch_size=3)
    return fit(module, data, max_epochs=3, **settings), module


def policy_run(algorithm: type, **arguments: Any) -> Callable[..., tuple[Any, torch.nn.Module]]:
    """Two iterations of a policy optimizer on ten responses, an odd number of them to held-out prompts."""

    def run(microbatch_size: int | None = None, **settings: Any) -> tuple[Any, torch.nn.Module]:
        task = Letters()
        module = algorithm(task, tiny(), optimization(microbatch_size), eval_every=2, **copy.deepcopy(arguments))
        data = rollouts(task, size=12, eval_prompts=7, samples_per_prompt=3)
        return fit(module, data, max_epochs=2, **settings), module

    return run


def run_diagnosed(microbatch_size: int | None = None, **settings: Any) -> tuple[Any, torch.nn.Module]:
    """Two iterations on four groups, of which each update is measured in three parts, and against another optimizer."""
    task = Letters()
    module = ppo(task, minibatch_size=6, optimization=optimization(microbatch_size))
    data = rollouts(task, size=12, samples_per_prompt=3)
    measures = (GradientDiagnostics(every=1, parts=3, against=RLOO), KLDiagnostics(every=1))
    return fit(module, data, *measures, max_epochs=2, **settings), module


def preference_run(algorithm: type, of_task: type[Letters] = Letters) -> Callable[..., tuple[Any, torch.nn.Module]]:
    """Five steps on pairs; the fourth batch holds one pair only."""

    def run(microbatch_size: int | None = None, **settings: Any) -> tuple[Any, torch.nn.Module]:
        task = of_task()
        sampled = {"max_new_tokens": 4, "eval_prompts": 3}
        module = algorithm(task, tiny(), optimization(microbatch_size), log_every=1, **sampled)
        return fit(module, PreferenceDataModule(task, batch_size=4), max_steps=5, **settings), module

    return run


def run_control_trpo(microbatch_size: int | None = None, **settings: Any) -> tuple[Any, torch.nn.Module]:
    """Two iterations of trust-region steps in four environments, the Fisher matrix over some of the transitions."""
    task = Control("CartPole-v1")
    steps = optimization(None if microbatch_size is None else 16 * microbatch_size)
    fisher = FisherOptions(iterations=3, fraction=0.7)
    module = TRPO(task, ControlBackbone(hidden=[8]), steps, kl=KLControl(0.0), minibatch_size=16, fisher=fisher)
    return fit(module, EnvironmentDataModule(task, 4, 64, eval_episodes=3), max_epochs=2, **settings), module


def run_control(microbatch_size: int | None = None, **settings: Any) -> tuple[Any, torch.nn.Module]:
    """Three iterations in four environments, everything normalized; episodes go on from one to the next."""
    task = Control("CartPole-v1")
    backbone = ControlBackbone(hidden=[8], normalize_observations=True)
    steps = optimization(None if microbatch_size is None else 16 * microbatch_size)
    module = PPO(task, backbone, steps, kl=KLControl(0.0), minibatch_size=16, gamma=0.99, eval_every=2)
    data = EnvironmentDataModule(task, 4, 64, normalize_rewards=True, eval_episodes=3)
    return fit(module, data, max_epochs=3, **settings), module


MINIBATCHES = {"minibatch_size": 4, "kl": KLControl(0.1)}
RUNS = {
    "sft": run_sft,
    "reward_modeling": reward_run(Letters),
    "reward_modeling_half_equal": reward_run(HalfEqual),
    "ensemble": run_ensemble,
    "objectives": run_objectives,
    "ppo": run_ppo,
    "dpo": preference_run(DPO),
    "dpo_half_equal": preference_run(DPO, HalfEqual),
    "preferred_ft": preference_run(PreferredFT),
    "unlikelihood": preference_run(Unlikelihood),
    "control": run_control,
    "control_trpo": run_control_trpo,
    "reinforce": policy_run(REINFORCE),
    "reinforce_value": policy_run(REINFORCE, baseline=ValueBaseline()),
    "a2c": policy_run(A2C, entropy_coef=0.01),
    "trpo": policy_run(TRPO, fisher=FisherOptions(iterations=3, fraction=0.7), **MINIBATCHES),
    "npg": policy_run(NPG, fisher=FisherOptions(iterations=3, fraction=0.5), **MINIBATCHES),
    "cpi": policy_run(CPI, **MINIBATCHES),
    "rloo": policy_run(RLOO),
    "grpo": policy_run(GRPO, minibatch_size=6, inner_epochs=2, dynamic_sampling=2),
    "raft": policy_run(RAFT),
    "diagnosed": run_diagnosed,
}


def refusal(**settings: Any) -> dict[str, Any]:
    """What a minibatch of three on two devices ends in, and how many rollouts were collected before."""
    task = Letters()
    data = rollouts(task, size=10)
    collected, collect = [], data.collect
    data.collect = lambda *args: collected.append(1) or collect(*args)
    try:
        fit(ppo(task, minibatch_size=3), data, max_epochs=1, **settings)
    except UserError as error:
        return {"message": str(error), "collected": len(collected)}
    return {"message": "", "collected": len(collected)}


def evaluated(**settings: Any) -> dict[str, list[dict[str, float]]]:
    """What ``validate`` and ``test`` return of networks as they start."""
    rows: dict[str, list[dict[str, float]]] = {}
    for method in ("validate", "test"):
        task = Letters()
        modules = {
            "ppo": (ppo(task), rollouts(task, size=10, eval_prompts=7)),
            "sft": (SFT(task, tiny(), optimization(None)), DemonstrationDataModule(task, 4)),
            "reward": (RewardModeling(task, tiny(), optimization(None)), PreferenceDataModule(task, batch_size=4)),
        }
        for kind, (module, data) in modules.items():
            found = getattr(quiet_trainer(**settings), method)(module, data, verbose=False)
            rows[f"{method} {kind}"] = [{k: v for k, v in row.items() if not k.startswith("timing/")} for row in found]
    return rows


def main(folder: Path) -> None:
    """All runs on two ranks."""
    torch.set_num_threads(1)
    settings = {"devices": 2, "strategy": "ddp", "precision": "64-true", "default_root_dir": folder / "runs"}
    results: dict[str, Any] = {}
    for name, run in RUNS.items():
        rows, module = run(**settings)
        results[name] = {"rows": rows.untimed(), "parameters": snapshot(module)}
    results["evaluated"] = evaluated(**settings)
    results["refusal"] = refusal(**settings)
    torch.save(results, folder / f"{rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""What goes wrong on the second of two ranks only, and a run in float32; a script.

python one_rank.py FOLDER starts one more process and writes what each rank ends with to FOLDER/RANK.pt.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from training_helpers import AtHook, BeforeUpdate, CountsB, Letters, fit, ppo, rollouts, snapshot, tiny

from rlhf_lightning.algorithms.a2c import A2C
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.algorithms.sft import SFT
from rlhf_lightning.data.demonstrations import DemonstrationDataModule
from rlhf_lightning.data.environments import EnvironmentDataModule
from rlhf_lightning.distributed import rank, world_size
from rlhf_lightning.models.control.backbone import ControlBackbone
from rlhf_lightning.rewards.source import Judgement
from rlhf_lightning.tasks.control import Control
from rlhf_lightning.types import Demonstration


def second() -> bool:
    """Whether this is rank 1."""
    return rank() == 1


class FailsInThirdCall(CountsB):
    """Raises on rank 1 in the second iteration: the first calls try the source and judge the held-out prompts."""

    calls = 0

    def score(self, prompts, responses):
        self.calls += 1
        if second() and self.calls == 5:
            raise ValueError("the judge hung up")
        return super().score(prompts, responses)


class NotANumber(CountsB):
    """NaN for a response of rank 1."""

    def score(self, prompts, responses):
        scores = super().score(prompts, responses)
        scores[-1] = float("nan") if second() else scores[-1]
        return scores


class MeasuresMore(CountsB):
    """Measures something on rank 1 that it does not on rank 0."""

    def judge(self, prompts, responses):
        scores = self.score(prompts, responses)
        return Judgement(scores, measures={"more": scores} if second() else {})


class OneWithoutTokens(Letters):
    """The last demonstration of the first batch has an empty prompt: one row, on one rank."""

    def demonstrations(self, split):
        return [
            Demonstration("" if i == 5 else self.noun_prompt(i), "a") for i in self.numbers("demonstrations", split)
        ]


class BreaksDown(Control):
    """An environment that raises on rank 1."""

    def environments(self, count):
        vector = super().environments(count)
        if second():
            vector.envs[0].step = self.broken
        return vector

    def broken(self, actions):
        raise ArithmeticError("the simulator diverged")


def with_reward(reward: CountsB, *callbacks: Any, **settings: Any) -> Any:
    task = Letters()
    return fit(ppo(task), rollouts(task, reward), *callbacks, max_epochs=3, **settings)


def empty_prompt(**settings: Any) -> Any:
    task = OneWithoutTokens()
    return fit(SFT(task, tiny()), DemonstrationDataModule(task, 13), max_steps=2, **settings)


def broken_environment(**settings: Any) -> Any:
    task = BreaksDown("CartPole-v1")
    module = A2C(task, ControlBackbone(hidden=[8]), kl=KLControl(0.0), eval_every=100)
    return fit(module, EnvironmentDataModule(task, 4, 16, eval_episodes=2), max_epochs=1, **settings)


def broken_loss(**settings: Any) -> Any:
    """Advantages are not finite in the rows of one rank."""

    def spoil(trainer: Any, module: Any, prepared: Any) -> None:
        if second():
            prepared.batch.advantages[1::2] = float("nan")  # its rows, where the order is that of the batch

    return with_reward(CountsB(), BeforeUpdate(spoil), **settings)


def broken_gradient(**settings: Any) -> Any:
    """The gradients of one rank are not finite, and its loss is."""

    def spoil(trainer: Any, module: Any) -> None:
        if second():
            next(module.policy.parameters()).register_hook(lambda gradient: gradient * float("nan"))

    return with_reward(CountsB(), AtHook("on_train_start", spoil), **settings)


def other_seed(**settings: Any) -> Any:
    return with_reward(CountsB(), seed=int(os.environ.get("LOCAL_RANK", "0")), **settings)


def other_checkpoint(**settings: Any) -> Any:
    """Rank 1 sees a checkpoint, as where the run directory is not shared."""
    checkpoint = Path(settings["default_root_dir"]) / "one.ckpt"
    task = Letters()
    save = AtHook("on_train_end", lambda trainer, module: trainer.save_checkpoint(checkpoint))
    fit(ppo(task), rollouts(task), save, max_epochs=1, **settings)
    return with_reward(CountsB(), ckpt_path=checkpoint if second() else None, **settings)


CASES: dict[str, Callable[..., Any]] = {
    "reward raises": lambda **settings: with_reward(FailsInThirdCall(), **settings),
    "reward is not a number": lambda **settings: with_reward(NotANumber(), **settings),
    "reward measures more": lambda **settings: with_reward(MeasuresMore(), **settings),
    "prompt without tokens": empty_prompt,
    "environment raises": broken_environment,
    "loss is not finite": broken_loss,
    "gradient is not finite": broken_gradient,
    "seeds differ": other_seed,
    "checkpoints differ": other_checkpoint,
}


def in_float32(**settings: Any) -> dict[str, Any]:
    """Rows, parameters, and where they started, of a short run of PPO."""
    task, start = Letters(), {}
    keep = AtHook("on_train_start", lambda trainer, module: start.update(snapshot(module)))
    module = ppo(task, minibatch_size=4, inner_epochs=2)
    rows = fit(module, rollouts(task), keep, max_epochs=3, precision="32-true", **settings)
    return {"rows": rows.untimed(), "parameters": snapshot(module), "start": start}


def main(folder: Path) -> None:
    """All cases on two ranks."""
    torch.set_num_threads(1)
    settings = {"devices": 2, "strategy": "ddp", "default_root_dir": folder / "runs"}
    results: dict[str, Any] = {"float32": in_float32(**settings), "raised": {}}
    assert world_size() == 2
    for name, case in CASES.items():
        try:
            case(**settings)
        except Exception as error:
            results["raised"][name] = f"{type(error).__name__}: {error}"
    torch.save(results, folder / f"{rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

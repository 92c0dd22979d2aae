"""Small stand-ins for task, backbone, data and models, named in configurations by their paths."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader

from rlhf_lightning.callbacks.listener import Listener
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.tasks.task import Task


class ToyTask(Task):
    """Provides prompts.

    Args:
        size: any number.
        path: any file.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"prompts"})

    def __init__(self, size: int = 3, path: str | None = None) -> None:
        self.size, self.path = size, path


class ToyBackbone(Backbone):
    """Builds nothing."""

    built = 0

    def __init__(self, width: int = 4, checkpoint: str | None = None) -> None:
        type(self).built += 1
        self.width, self.checkpoint = width, checkpoint

    def policy(self, *args: Any, **kwargs: Any) -> Any: ...

    def critic(self, *args: Any, **kwargs: Any) -> Any: ...


class Options:
    """Nested options."""

    def __init__(self, lr: float = 0.1, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        self.lr, self.betas = lr, betas


class ToyData(LightningDataModule):
    """Counts to ``length``."""

    def __init__(self, task: Task, length: int = 1, sizes: list[int] | None = None) -> None:
        super().__init__()
        self.task, self.length, self.sizes = task, length, sizes

    def train_dataloader(self) -> DataLoader:
        return DataLoader(range(self.length), batch_size=None)


class ToyHeldout(ToyData):
    """With something to evaluate on."""

    def val_dataloader(self) -> DataLoader:
        return DataLoader(range(2), batch_size=None)


class ToyModel(LightningModule):
    """Adds the step's number to one weight, so that its value tells which steps were taken.

    The variable ``TOY_FAIL`` says where it fails, as ``when:number``; see `fail_if`.

    Args:
        optimization: nested options.
        clip_range: above 0.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"prompts"})

    def __init__(
        self,
        task: Task,
        backbone: Backbone,
        optimization: Options | None = None,
        clip_range: float = 0.2,
    ) -> None:
        super().__init__()
        if clip_range <= 0:
            raise UserError(f"model.init_args.clip_range must be above 0, got {clip_range}")
        self.automatic_optimization = False
        self.strict_loading = False
        self.fail_when, _, number = os.environ.get("TOY_FAIL", "").partition(":")
        self.fail_at = int(number or 0)
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=1.0)

    def configure_model(self) -> None:
        self.fail_if("configure", 0)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        number = self.number() + 1
        self.fail_if("before", number)
        self.weight.grad = torch.full_like(self.weight, -float(number))
        self.optimizers().step()
        self.stepped(number)
        self.fail_if("after", number)
        self.fail_if("interrupt", number)
        self.fail_if("terminate", number)
        self.fail_if("bug", number)
        self.fail_if("memory", number)

    def fail_if(self, when: str, number: int) -> None:
        if self.fail_when != when or self.fail_at != number:
            return
        if when == "bug":
            raise RuntimeError("a bug")
        if when == "memory":
            torch.empty(10**15)
        if when == "interrupt":
            raise KeyboardInterrupt
        if when == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            raise UserError(f"the toy fails at {when} {number}")

    def export(self, folder: Path) -> None:
        (folder / "weight.txt").write_text(str(self.weight.item()))

    def publish(self, row: Mapping[str, float]) -> None:
        for callback in self.trainer.callbacks:
            if isinstance(callback, Listener):
                callback.on_row(self.trainer, self, row)

    def stepped(self, number: int) -> None: ...

    def number(self) -> int:
        raise NotImplementedError


class ToyIterations(ToyModel):
    """A row and a sample per iteration, as policy optimizers report them; an evaluation every second one."""

    def number(self) -> int:
        return self.current_epoch

    def on_train_start(self) -> None:
        if self.current_epoch == 0:
            self.publish({"iteration": 0, "eval/score": 0.0})

    def on_train_epoch_end(self) -> None:
        done = self.current_epoch + 1
        row = {"iteration": done, "objective/score": self.weight.item() / 3, "objective/kl_ref_sequence": 0.5}
        if done % 2 == 0:
            # rises to iteration 4 and falls from there: best.ckpt is that of iteration 4
            row["eval/score"] = -abs(done - 4.0)
            sample = {"iteration": done, "row": 0, "prompt": "a\u2028b", "response": "é", "score": float("nan")}
            for callback in self.trainer.callbacks:
                if isinstance(callback, Listener):
                    callback.on_samples(self.trainer, self, [sample])
        self.publish(row)
        self.fail_if("epoch_end", done)


class ToySteps(ToyModel):
    """A row every second step, and one after each evaluation, as supervised training reports them."""

    def number(self) -> int:
        return self.global_step

    def stepped(self, number: int) -> None:
        if number % 2 == 0:
            self.publish({"step": self.global_step, "sft/loss": 1 / (1 + self.weight.item())})

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.fail_if("validation", self.global_step)

    def on_validation_epoch_end(self) -> None:
        self.publish({"step": self.global_step, "eval/loss": abs(self.global_step - 6.0)})


class NeedsPairs(ToyIterations):
    """Requires what the toy task does not have."""

    requires: ClassVar[frozenset[str]] = frozenset({"prompts", "preferences"})

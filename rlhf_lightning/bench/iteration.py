"""A whole iteration, and where its time goes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback

from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.algorithms.rloo import RLOO
from rlhf_lightning.bench.models import Shape, Size
from rlhf_lightning.bench.words import RandomWords
from rlhf_lightning.cli.train import train
from rlhf_lightning.data.rollouts import RolloutDataModule
from rlhf_lightning.models.language.backbone import LanguageBackbone
from rlhf_lightning.training.optimization import Optimization

_STAGES = ("rollout", "score", "reference", "update")


@dataclass(frozen=True)
class Stages:
    """Seconds of an iteration and of its stages, medians over iterations.

    Args:
        whole: from the beginning of an iteration to that of the next.
        besides: what no stage counts: advantages, Lightning's loop, detectors, metrics, files.
    """

    whole: float
    stages: Mapping[str, float]
    besides: float


class Clock(Callback):
    """The time at which each iteration, or each step, begins."""

    def __init__(self, track: Callable[[Sequence[int]], Iterable[int]] | None = None, count: int = 0) -> None:
        self.times: list[float] = []
        self._shown = iter(track(range(count))) if track else None

    def on_train_batch_start(self, *_: Any) -> None:
        """Look at the clock."""
        self.times.append(time.perf_counter())
        if self._shown is not None:
            next(self._shown, None)


def stages_of_iterations(
    size: Size,
    shape: Shape,
    device: torch.device,
    rounds: int,
    *,
    ends: int,
    track: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Stages:
    """Train with RLOO, as a run does with everything that it writes.

    Args:
        ends: number of tokens that end a response; 0 for responses of full length.
    """
    count = rounds + 2  # the first one warms up, the last one has no end
    task = RandomWords(size.vocabulary)
    clock = Clock(track, count)
    with tempfile.TemporaryDirectory() as folder:
        size.save(Path(folder), context_length=2 * shape.context_length, ends=ends)
        late = 10 * count
        run = train(
            RLOO(task, LanguageBackbone(checkpoint=folder), Optimization(lr=1e-6), KLControl(0.05), eval_every=late),
            RolloutDataModule(
                task,
                rollout_batch_size=shape.responses,
                samples_per_prompt=shape.samples,
                max_new_tokens=shape.length,
                eval_prompts=2,
            ),
            name="run",
            callbacks=[clock],
            runs_dir=Path(folder) / "runs",
            max_epochs=count,
            checkpoint_every=late,
            accelerator="gpu" if device.type == "cuda" else "cpu",
            precision="bf16-mixed" if size.dtype == torch.bfloat16 else "32-true",
            progress_bar=False,
        )
        columns = {stage: run.series(f"timing/{stage}_seconds").tolist()[1:-1] for stage in _STAGES}
    whole = [later - sooner for sooner, later in zip(clock.times[1:-1], clock.times[2:], strict=True)]
    besides = [took - sum(column[i] for column in columns.values()) for i, took in enumerate(whole)]
    return Stages(median(whole), {stage: median(column) for stage, column in columns.items()}, median(besides))

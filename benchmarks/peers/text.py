"""Language models by this package and by TRL: the same model, prompts, lengths, reward and kind of step."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
)

from peers.clock import run_of_ours, seconds_of_iteration
from rlhf_lightning import DPO, GRPO, RLOO, LanguageBackbone, PreferenceDataModule, RewardModeling, RolloutDataModule
from rlhf_lightning.algorithms.parts.kl_control import KLControl, KLLoss
from rlhf_lightning.bench.models import Size
from rlhf_lightning.bench.words import RandomWords, distinct_words
from rlhf_lightning.training.optimization import Optimization

PROMPTS, SAMPLES, NEW_TOKENS, LR, BETA = 16, 4, 64, 1e-6, 0.05
PAIRS = 32
"""In a step of DPO or of a reward model."""


class Work:
    """A model in a folder, and what both packages do with it.

    Args:
        ends: how many of the vocabulary's tokens end a response; 0 for responses of full length.
    """

    def __init__(self, size: Size, folder: Path, *, ends: int = 0) -> None:
        self.folder = folder
        self.task = RandomWords(size.vocabulary)
        size.save(folder, context_length=256, ends=ends)
        self.optimization = Optimization(lr=LR)

    # -- ours ----------------------------------------------------------------------------------------------------

    def ours(self, kind: str, steps: int) -> float:
        """Seconds of an iteration, or of a step."""
        backbone = LanguageBackbone(checkpoint=str(self.folder))
        shared: dict[str, Any] = {"accelerator": "cpu"}
        if kind in ("RLOO", "GRPO"):
            data = RolloutDataModule(
                self.task,
                rollout_batch_size=PROMPTS * SAMPLES,
                samples_per_prompt=SAMPLES,
                max_new_tokens=NEW_TOKENS,
                eval_prompts=2,
            )
            late = 10 * steps
            model: Any = (
                RLOO(self.task, backbone, self.optimization, KLControl(BETA), eval_every=late)
                if kind == "RLOO"
                else GRPO(self.task, backbone, self.optimization, KLControl(BETA, "k3", KLLoss("k3")), eval_every=late)
            )
            return run_of_ours(model, data, max_epochs=steps, checkpoint_every=late, **shared)
        model = (
            DPO(self.task, backbone, self.optimization, eval_prompts=2)
            if kind == "DPO"
            else RewardModeling(self.task, backbone, self.optimization)
        )
        data = PreferenceDataModule(self.task, batch_size=PAIRS)
        return run_of_ours(model, data, max_steps=steps, checkpoint_every=10 * steps, limit_val_batches=0, **shared)

    # -- TRL -----------------------------------------------------------------------------------------------------

    def theirs(self, kind: str, steps: int) -> float:
        """Seconds of an iteration, or of a step."""
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        beat = _Beat()
        with tempfile.TemporaryDirectory() as out:
            shared: dict[str, Any] = {
                "output_dir": out,
                "use_cpu": True,
                "bf16": False,
                "gradient_checkpointing": False,
                "learning_rate": LR,
                "max_steps": steps,
                "logging_steps": 1,
                "save_strategy": "no",
                "report_to": "none",
                "disable_tqdm": True,
            }
            trainer: Any
            if kind in ("RLOO", "GRPO"):
                sampling: dict[str, Any] = {
                    "per_device_train_batch_size": PROMPTS * SAMPLES,
                    "num_generations": SAMPLES,
                    "max_completion_length": NEW_TOKENS,
                    "beta": BETA,
                }
                config, make = (RLOOConfig, RLOOTrainer) if kind == "RLOO" else (GRPOConfig, GRPOTrainer)
                trainer = make(
                    model=str(self.folder),
                    reward_funcs=lambda completions, **_: distinct_words(completions),
                    args=config(**shared, **sampling),
                    train_dataset=Dataset.from_list([{"prompt": text} for text in self.task.texts]),
                    processing_class=tokenizer,
                    callbacks=[beat],
                )
            else:
                rows = [vars(pair) for pair in self.task.pairs]
                pairs = Dataset.from_list(
                    [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
                )
                trainer = self._preference_trainer(kind, pairs, tokenizer, shared, beat)
            trainer.train()
        return seconds_of_iteration(beat.times)

    def _preference_trainer(self, kind: str, pairs: Any, tokenizer: Any, shared: dict[str, Any], beat: Any) -> Any:
        settings = {**shared, "per_device_train_batch_size": PAIRS, "max_length": 256}
        if kind == "DPO":
            return DPOTrainer(
                model=str(self.folder),
                args=DPOConfig(**settings),
                train_dataset=pairs,
                processing_class=tokenizer,
                callbacks=[beat],
            )
        model = AutoModelForSequenceClassification.from_pretrained(self.folder, num_labels=1, dtype=torch.float32)
        return RewardTrainer(
            model=model,
            args=RewardConfig(**settings),
            train_dataset=pairs,
            processing_class=tokenizer,
            callbacks=[beat],
        )


class _Beat(TrainerCallback):
    """The time at which each step begins."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Look at the clock."""
        self.times.append(time.perf_counter())

"""Prompts, decoding and scores: everything between a policy and a batch of scored responses."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from rlhf_lightning.distributed import (
    Stream,
    all_sum,
    gather_items,
    gather_padded,
    gather_rows,
    own_rows,
    run_seed,
    world_size,
)
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.policy import LanguagePolicy
from rlhf_lightning.models.text import decode_responses, encode_prompts
from rlhf_lightning.ops.noise import permutation, row_keys
from rlhf_lightning.rewards.source import RewardSource, checked_scores
from rlhf_lightning.rollout.decode import decode
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.types import Prompt, Rollout, ScoredRollout, TokenContext

log = logging.getLogger(__name__)


class RolloutDataModule(LightningDataModule):
    """Fresh responses every iteration.

    Args:
        task: where prompts come from.
        reward: judges the responses; None takes the task's own gold reward.
        rollout_batch_size: responses per iteration, across all devices; 32 to 512.
        max_new_tokens: a response that has not ended by then is cut.
        missing_eos_penalty: subtracted from the score of a cut response.
        eval_prompts: held-out prompts that the policy is judged on.
        decode_batch_size: responses that one device decodes at a time; None for all at once.
    """

    def __init__(
        self,
        task: Task,
        reward: RewardSource | None = None,
        rollout_batch_size: int = 64,
        max_new_tokens: int = 48,
        missing_eos_penalty: float = 0.0,
        eval_prompts: int = 256,
        decode_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if reward is None and task.gold() is None:
            raise UserError(
                f"data.init_args.reward is missing: task {type(task).__name__} has no reward of its own; give a reward "
                "model: --data.init_args.reward LearnedReward --data.init_args.reward.init_args.path runs/NAME/export"
            )
        counts = {
            "rollout_batch_size": rollout_batch_size,
            "max_new_tokens": max_new_tokens,
            "eval_prompts": eval_prompts,
            "decode_batch_size": decode_batch_size,
        }
        for name, value in counts.items():
            if value is not None and value < 1:
                raise UserError(f"data.init_args.{name} must be at least 1, got {value}")
        self.task = task
        self.gold = task.gold()
        self.reward = reward if reward is not None else self.gold
        self.rollout_batch_size = rollout_batch_size
        self.max_new_tokens = max_new_tokens
        self.missing_eos_penalty = missing_eos_penalty
        self.eval_prompts = eval_prompts
        self.decode_batch_size = decode_batch_size
        self.prompts_shortened = 0

    def setup(self, stage: str | None = None) -> None:
        """Read the prompts and move the reward source to the device."""
        self.train_prompts = self.task.prompts("train")
        self.heldout_prompts = self.task.prompts("heldout")[: self.eval_prompts]
        if not self.train_prompts or len(self.heldout_prompts) < world_size():
            raise UserError(
                f"{type(self.task).__name__} gives {len(self.train_prompts)} training and {len(self.heldout_prompts)} "
                f"held-out prompts; expected at least one of each, and a held-out one for each device"
            )
        if self.trainer is not None:
            self.reward.to(self.trainer.strategy.root_device)
        if self.rollout_batch_size % world_size():
            raise UserError(
                f"data.init_args.rollout_batch_size is {self.rollout_batch_size}, "
                f"which {world_size()} devices do not divide"
            )

    def train_dataloader(self) -> DataLoader:
        """One entry per iteration: the module collects its rollout itself."""
        return DataLoader(range(1), batch_size=None)

    def val_dataloader(self) -> DataLoader:
        """One entry: the module evaluates on all held-out prompts at once."""
        return DataLoader(range(1), batch_size=None)

    def test_dataloader(self) -> DataLoader:
        """The held-out prompts again."""
        return self.val_dataloader()

    def iteration_prompts(self, iteration: int) -> list[Prompt]:
        """The prompts of an iteration: shuffled passes over the training prompts, cut into batches."""
        size, count = self.rollout_batch_size, len(self.train_prompts)
        chosen: list[Prompt] = []
        place = iteration * size
        while len(chosen) < size:
            number, start = divmod(place + len(chosen), count)
            order = permutation(seed=run_seed(), stream=Stream.PROMPT, iteration=number, size=count)
            chosen += [self.train_prompts[i] for i in order[start : start + size - len(chosen)].tolist()]
        return chosen

    def collect(self, policy: LanguagePolicy, iteration: int) -> ScoredRollout:
        """Answer the iteration's prompts and score the answers; every rank gets the whole batch."""
        return self._collect(policy, self.iteration_prompts(iteration), Stream.ROLLOUT, iteration)

    def collect_heldout(self, policy: LanguagePolicy) -> ScoredRollout:
        """Answer the held-out prompts, always with the same noise."""
        return self._collect(policy, self.heldout_prompts, Stream.EVALUATION, 0)

    def _collect(
        self, policy: LanguagePolicy, prompts: Sequence[Prompt], stream: Stream, iteration: int
    ) -> ScoredRollout:
        started, shortened_before = time.perf_counter(), self.prompts_shortened
        count, rows = len(prompts), own_rows(len(prompts))
        keys = row_keys(seed=run_seed(), stream=stream, iteration=iteration, rows=rows)
        parts = [
            self._decode(policy, [prompts[i] for i in r.tolist()], r, k)
            for r, k in zip(*(x.split(self.decode_batch_size or len(rows)) for x in (rows, keys)), strict=True)
        ]
        texts = [text for _, part in parts for text in part]
        rollout = _gathered([rollout for rollout, _ in parts], count)
        decoded = time.perf_counter()
        device = rollout.actions.device
        scores, measures = self._judge([prompts[i] for i in rows.tolist()], texts, count, device)
        scores = scores - self.missing_eos_penalty * rollout.truncated
        shortened = torch.tensor(self.prompts_shortened - shortened_before, device=device)
        return ScoredRollout(
            rollout=rollout,
            scores=scores,
            prompts=list(prompts),
            responses=gather_items(texts, count),
            measures=measures,
            timings={"rollout_seconds": decoded - started, "score_seconds": time.perf_counter() - decoded},
            prompts_shortened=int(all_sum(shortened)),
        )

    def _decode(
        self, policy: LanguagePolicy, prompts: list[Prompt], rows: Tensor, keys: Tensor
    ) -> tuple[Rollout, list[str]]:
        device = policy.model.device
        room = policy.context_length - self.max_new_tokens
        context, shortened = encode_prompts(prompts, policy.tokenizer, max_tokens=room)
        if shortened and not self.prompts_shortened:
            log.warning(
                "%d of %d prompts are longer than %d tokens and keep their last ones (counted from now on, "
                "as rollout/prompts_shortened); a longer context or a smaller data.init_args.max_new_tokens leaves "
                "more room",
                *(shortened, len(prompts), room),
            )
        self.prompts_shortened += shortened
        rollout = decode(
            policy,
            context.to(device),
            keys=keys.to(device),
            rows=rows.to(device),
            max_new_tokens=self.max_new_tokens,
        )
        return rollout, decode_responses(rollout.actions, rollout.action_mask, policy.tokenizer)

    def _judge(
        self, prompts: list[Prompt], texts: list[str], count: int, device: torch.device
    ) -> tuple[Tensor, dict[str, Tensor]]:
        scores = checked_scores(self.reward, prompts, texts)
        measures: dict[str, Tensor] = {}
        if self.gold is not None:
            gold = scores if self.gold is self.reward else checked_scores(self.gold, prompts, texts)
            parts = self.gold.components(prompts, texts)
            measures = {"gold": gold} | {f"gold_{name}": value for name, value in parts.items()}
        scores, *values = (gather_rows(value.to(device), count) for value in (scores, *measures.values()))
        return scores, dict(zip(measures, values, strict=True))


def _gathered(parts: Sequence[Rollout], count: int) -> Rollout:
    """One rollout of all ranks' parts, in global order."""
    width = max(part.actions.shape[1] for part in parts)
    prompt_width = max(part.context.input_ids.shape[1] for part in parts)

    def right(name: str) -> Tensor:
        pieces = [getattr(p, name) for p in parts]
        padded = [torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in pieces]
        return gather_padded(torch.cat(padded), count)

    def left(name: str) -> Tensor:
        pieces = [getattr(p.context, name).flip(1) for p in parts]
        padded = [torch.nn.functional.pad(x, (0, prompt_width - x.shape[1])) for x in pieces]
        return gather_padded(torch.cat(padded), count).flip(1)

    flat: dict[str, Any] = {
        name: gather_rows(torch.cat([getattr(p, name) for p in parts]), count) for name in ("truncated", "rows")
    }
    return Rollout(
        context=TokenContext(left("input_ids"), left("attention_mask")),
        actions=right("actions"),
        action_mask=right("action_mask"),
        old_logprobs=right("old_logprobs"),
        **flat,
    )

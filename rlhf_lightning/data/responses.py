"""Everything between a policy with prompts and a batch of scored responses."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.distributed import (
    Stream,
    all_sum,
    gather_items,
    gather_padded,
    gather_rows,
    own_rows,
    run_seed,
)
from rlhf_lightning.models.policy import TextPolicy
from rlhf_lightning.models.text import decode_responses, encode_prompts
from rlhf_lightning.ops.noise import row_keys
from rlhf_lightning.ops.rewards import last_action_rewards
from rlhf_lightning.rewards.source import RewardSource, judged
from rlhf_lightning.rollout.decode import decode
from rlhf_lightning.types import Prompt, Rollout, ScoredRollout, TokenContext

log = logging.getLogger(__name__)


class ResponseCollector:
    """Has a policy answer prompts, and a reward source judge the answers.

    Args:
        reward: judges the responses.
        gold: the known true reward, for measuring only; None where there is none.
        max_new_tokens: a response that has not ended by then is cut.
        missing_eos_penalty: subtracted from the score of a cut response.
        decode_batch_size: responses that one device decodes at a time; None for all at once.
    """

    def __init__(
        self,
        reward: RewardSource,
        gold: RewardSource | None,
        *,
        max_new_tokens: int,
        missing_eos_penalty: float = 0.0,
        decode_batch_size: int | None = None,
    ) -> None:
        self.reward, self.gold = reward, gold
        self.max_new_tokens = max_new_tokens
        self.missing_eos_penalty = missing_eos_penalty
        self.decode_batch_size = decode_batch_size
        self.prompts_shortened = 0

    def collect(
        self, policy: TextPolicy, prompts: Sequence[Prompt], *, stream: Stream, iteration: int, group_size: int = 1
    ) -> ScoredRollout:
        """One response per entry of ``prompts``, in which each prompt stands ``group_size`` times in a row.

        Every rank decodes and scores its own rows and gets the whole batch.
        """
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
        scores = scores - self.missing_eos_penalty * rollout.truncated.any(-1)
        shortened = torch.tensor(self.prompts_shortened - shortened_before, device=device)
        return ScoredRollout(
            rollout=rollout,
            rewards=last_action_rewards(scores.to(rollout.old_logprobs.dtype), rollout.action_mask),
            scores=scores,
            group_size=group_size,
            prompts=list(prompts),
            responses=gather_items(texts, count),
            measures=measures,
            timings={"rollout_seconds": decoded - started, "score_seconds": time.perf_counter() - decoded},
            prompts_shortened=int(all_sum(shortened)),
        )

    def _decode(
        self, policy: TextPolicy, prompts: list[Prompt], rows: Tensor, keys: Tensor
    ) -> tuple[Rollout, list[str]]:
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
            context.to(policy.device),
            keys=keys.to(policy.device),
            rows=rows.to(policy.device),
            max_new_tokens=self.max_new_tokens,
        )
        return rollout, decode_responses(rollout.actions, rollout.action_mask, policy.tokenizer)

    def _judge(
        self, prompts: list[Prompt], texts: list[str], count: int, device: torch.device
    ) -> tuple[Tensor, dict[str, Tensor]]:
        judgement = judged(self.reward, prompts, texts)
        measures: dict[str, Tensor] = dict(judgement.measures)
        if self.gold is not None:
            gold = judgement if self.gold is self.reward else judged(self.gold, prompts, texts)
            measures |= {"gold": gold.scores} | {f"gold_{name}": value for name, value in gold.objectives.items()}
        scores, *values = (gather_rows(value.to(device), count) for value in (judgement.scores, *measures.values()))
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

    names = ("actions", "action_mask", "old_logprobs", "terminated", "truncated")
    steps: dict[str, Any] = {name: right(name) for name in names}
    return Rollout(
        context=TokenContext(left("input_ids"), left("attention_mask")),
        rows=gather_rows(torch.cat([p.rows for p in parts]), count),
        **steps,
    )

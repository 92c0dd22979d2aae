"""Everything between a policy with prompts and a batch of scored responses."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.distributed import (
    Stream,
    all_sum,
    failing_together,
    gather_items,
    gather_padded,
    gather_rows,
    own_rows,
    run_seed,
    world_size,
)
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.text import decode_responses, encode_prompts
from rlhf_lightning.models.policy import TextPolicy
from rlhf_lightning.ops.noise import row_keys
from rlhf_lightning.ops.rewards import last_action_rewards
from rlhf_lightning.rewards.source import Judgement, RewardSource, judged
from rlhf_lightning.rewards.task_reward import give_gold
from rlhf_lightning.rollout.decode import decode
from rlhf_lightning.types import Prompt, Rollout, ScoredRollout, TokenContext

log = logging.getLogger(__name__)


class ResponseCollector:
    """Has a policy answer prompts, and a reward source judge the answers.

    Args:
        reward: judges the responses.
        gold: the known true reward, for measuring only; None where there is none.
        max_new_tokens: a response that has not ended by then is cut.
        monitors: further sources by name, for measuring only, too.
        decode_batch_size: responses that one device decodes at a time; None for all at once.
    """

    def __init__(
        self,
        reward: RewardSource,
        gold: RewardSource | None,
        *,
        max_new_tokens: int,
        monitors: Mapping[str, RewardSource] | None = None,
        decode_batch_size: int | None = None,
    ) -> None:
        self.reward, self.gold = reward, gold
        self.monitors = dict(monitors or {})
        for source in (reward, *self.monitors.values()):
            give_gold(source, gold)
        self.max_new_tokens = max_new_tokens
        self.decode_batch_size = decode_batch_size
        self.prompts_shortened = 0

    def to(self, device: torch.device | str) -> None:
        """Move everything that judges."""
        for source in (self.reward, self.gold, *self.monitors.values()):
            if source is not None:
                source.to(device)

    def collect(
        self, policy: TextPolicy, prompts: Sequence[Prompt], *, stream: Stream, iteration: int, group_size: int = 1
    ) -> ScoredRollout:
        """One response per entry of ``prompts``, in which each prompt stands ``group_size`` times in a row.

        Every rank decodes and scores its own rows and gets the whole batch: scores, objectives and weights as the
        source has them, and its score at the last action as the reward of each response.
        """
        started, shortened_before = time.perf_counter(), self.prompts_shortened
        count, rows = len(prompts), own_rows(len(prompts))
        keys = row_keys(seed=run_seed(), stream=stream, iteration=iteration, rows=rows)
        with failing_together():
            parts = [
                self._decode(policy, [prompts[i] for i in r.tolist()], r, k)
                for r, k in zip(*(x.split(self.decode_batch_size or len(rows)) for x in (rows, keys)), strict=True)
            ]
        texts = [text for _, part in parts for text in part]
        rollout = _gathered([rollout for rollout, _ in parts], count)
        decoded = time.perf_counter()
        device = rollout.actions.device
        judgement = self._judge([prompts[i] for i in rows.tolist()], texts, count, device)
        shortened = torch.tensor(self.prompts_shortened - shortened_before, device=device)
        return ScoredRollout(
            rollout=rollout,
            rewards=last_action_rewards(judgement.scores.to(rollout.old_logprobs.dtype), rollout.action_mask),
            scores=judgement.scores,
            objectives=judgement.objectives,
            weights=dict(self.reward.objectives),
            group_size=group_size,
            prompts=list(prompts),
            responses=gather_items(texts, count),
            measures=judgement.measures,
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

    def _judge(self, prompts: list[Prompt], texts: list[str], count: int, device: torch.device) -> Judgement:
        """What is said of all responses; the measures have the objectives and what others say, too."""
        with failing_together():
            judgement = judged(self.reward, prompts, texts)
            measures: dict[str, Tensor] = {}
            for name, values in self._measured(judgement, prompts, texts):
                if name in measures:
                    raise UserError(f"{name} is measured twice; expected other names of monitors, objectives or parts")
                measures[name] = values
        _check_alike({"score": judgement.scores, **measures})
        scores, *columns = (gather_rows(values.to(device), count) for values in (judgement.scores, *measures.values()))
        gathered = dict(zip(measures, columns, strict=True))
        return Judgement(scores, {name: gathered[f"score_{name}"] for name in judgement.objectives}, gathered)

    def _measured(self, judgement: Judgement, prompts: list[Prompt], texts: list[str]) -> Iterator[tuple[str, Tensor]]:
        for name, values in judgement.objectives.items():
            yield f"score_{name}", values
        yield from judgement.measures.items()
        watching = {"gold": self.gold, **self.monitors}
        for name, source in watching.items():
            if source is not None:
                own = judgement if source is self.reward else judged(source, prompts, texts)
                yield name, own.scores
                for part, values in (own.objectives | own.measures).items():
                    yield f"{name}_{part}", values


def _check_alike(columns: Mapping[str, Tensor]) -> None:
    """Refuse what cannot be gathered: a source that measures one thing here and another on the next device."""
    kinds = [f"{name} ({str(values.dtype).removeprefix('torch.')})" for name, values in columns.items()]
    for number, others in enumerate(all_kinds := gather_items([kinds], world_size())):
        if others != all_kinds[0]:
            raise UserError(
                f"the reward sources give {', '.join(all_kinds[0])} for responses on rank 0 and {', '.join(others)} "
                f"on rank {number}; expected the same for all responses"
            )


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

"""`ResponseCollector`: from a policy and prompts to a batch of scored responses."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence

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
    rank,
    run_seed,
    world_size,
)
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.spelling import spells_special_tokens
from rlhf_lightning.models.language.text import decode_responses, encode_prompts
from rlhf_lightning.models.policy import TextPolicy
from rlhf_lightning.ops.noise import row_keys
from rlhf_lightning.ops.rewards import last_action_rewards
from rlhf_lightning.rewards.source import Judgement, RewardSource, is_reserved, judged
from rlhf_lightning.rewards.task_reward import give_gold
from rlhf_lightning.rollout.decode import FastDecoder
from rlhf_lightning.rollout.engine import DecodingEngine
from rlhf_lightning.rollout.joining import join_rollouts
from rlhf_lightning.types import Prompt, Rollout, ScoredRollout

log = logging.getLogger(__name__)


class ResponseCollector:
    """Lets a policy answer prompts, and a reward source score the responses.

    Args:
        reward: scores the responses.
        gold: the known true reward, which is only measured; None if there is none.
        max_new_tokens: maximum length of a response; longer ones are cut.
        monitors: further sources by name, which are only measured, too.
        decode_batch_size: number of responses that one device decodes at a time; None for all at once.
        keep_special_tokens: responses are scored and shown with the special tokens in them, the last one excepted.
        engine: samples the responses; None for `FastDecoder`.
    """

    def __init__(
        self,
        reward: RewardSource,
        gold: RewardSource | None,
        *,
        max_new_tokens: int,
        monitors: Mapping[str, RewardSource] | None = None,
        decode_batch_size: int | None = None,
        keep_special_tokens: bool = False,
        engine: DecodingEngine | None = None,
    ) -> None:
        self.reward, self.gold = reward, gold
        self.monitors = dict(monitors or {})
        for source in (reward, *self.monitors.values()):
            give_gold(source, gold)
        self.max_new_tokens = max_new_tokens
        self.decode_batch_size = decode_batch_size
        self.keep_special_tokens = keep_special_tokens
        self.engine = engine or FastDecoder()
        self.prompts_shortened = 0

    def to(self, device: torch.device | str) -> None:
        """Move all reward sources to a device."""
        for source in (self.reward, self.gold, *self.monitors.values()):
            if source is not None:
                source.to(device)

    def try_out(self, rows: Sequence[tuple[Prompt, str]], *, invented: bool) -> None:
        """Score a few responses, so that a source that fails does so before networks are built.

        Args:
            invented: whether the responses are none that the task knows of; gold is then left out, since it may be a
                table of possible responses.
        """
        prompts, responses = [prompt for prompt, _ in rows], [response for _, response in rows]
        for source in (self.reward, self.gold, *self.monitors.values()):
            if source is not None and not (invented and source is self.gold):
                judged(source, prompts, responses)

    def collect(
        self, policy: TextPolicy, prompts: Sequence[Prompt], *, stream: Stream, iteration: int, group_size: int = 1
    ) -> ScoredRollout:
        """One scored response per entry of ``prompts``, in which each prompt is repeated ``group_size`` times in a row.

        Every rank decodes and scores its own rows and gets the whole batch. The reward of a response is its score, at
        the last action.
        """
        started, shortened_before = time.perf_counter(), self.prompts_shortened
        count, rows = len(prompts), own_rows(len(prompts))
        keys = row_keys(seed=run_seed(), stream=stream, iteration=iteration, rows=rows)
        with failing_together():
            size = self.decode_batch_size or len(rows)
            parts = [
                self._decode(policy, [prompts[row] for row in some.tolist()], some, some_keys)
                for some, some_keys in zip(rows.split(size), keys.split(size), strict=True)
            ]
        texts = gather_items([text for _, part in parts for text in part], count)
        rollout = _gathered([part for part, _ in parts], count)
        decoded = time.perf_counter()
        device = rollout.actions.device
        judgement = self._judge(prompts, texts, device)
        shortened = torch.tensor(self.prompts_shortened - shortened_before, device=device)
        return ScoredRollout(
            rollout=rollout,
            rewards=last_action_rewards(judgement.scores.to(rollout.old_logprobs.dtype), rollout.action_mask),
            scores=judgement.scores,
            objectives=judgement.objectives,
            weights=dict(self.reward.objectives),
            group_size=group_size,
            prompts=list(prompts),
            responses=texts,
            measures=judgement.measures,
            timings={"rollout_seconds": decoded - started, "score_seconds": time.perf_counter() - decoded},
            prompts_shortened=int(all_sum(shortened)),
            prompts_spelled=sum(spells_special_tokens(prompt, policy.tokenizer) for prompt in prompts),
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
                shortened,
                len(prompts),
                room,
            )
        self.prompts_shortened += shortened
        rollout = self.engine.generate(
            policy,
            context.to(policy.device),
            keys=keys.to(policy.device),
            rows=rows.to(policy.device),
            max_new_tokens=self.max_new_tokens,
        )
        stops = policy.stop_ids if self.keep_special_tokens else None
        return rollout, decode_responses(rollout.actions, rollout.action_mask, policy.tokenizer, stop_ids=stops)

    def _judge(self, prompts: Sequence[Prompt], texts: Sequence[str], device: torch.device) -> Judgement:
        """The judgement of all ranks' responses; its measures include the objectives, gold and the monitors.

        A response that several rows give to the same prompt is judged once, so that they have the same scores: those of
        a network depend, in their last digits, on what else is in its batch.
        """
        distinct, copies = distinct_responses(prompts, texts)
        own = distinct[rank() :: world_size()] or distinct[:1]  # a source always has something to judge
        own_prompts, own_texts = [prompts[row] for row in own], [texts[row] for row in own]
        with failing_together():
            judgement = judged(self.reward, own_prompts, own_texts)
            measures: dict[str, Tensor] = {}
            for name, values in self._measured(judgement, own_prompts, own_texts):
                if name in measures or (is_reserved(name) and name != "gold"):
                    raise UserError(f"{name} is measured twice; expected other names of monitors, objectives or parts")
                measures[name] = values
        _check_same_measures({"score": judgement.scores, **measures})

        def of_all_rows(values: Tensor) -> Tensor:
            return gather_rows(values.to(device), len(distinct))[torch.tensor(copies, device=device)]

        gathered = {name: of_all_rows(values) for name, values in measures.items()}
        objectives = {name: gathered[f"score_{name}"] for name in judgement.objectives}
        return Judgement(of_all_rows(judgement.scores), objectives, gathered)

    def _measured(self, judgement: Judgement, prompts: list[Prompt], texts: list[str]) -> Iterator[tuple[str, Tensor]]:
        for name, values in judgement.objectives.items():
            yield f"score_{name}", values
        yield from judgement.measures.items()
        for name, source in {"gold": self.gold, **self.monitors}.items():
            if source is not None:
                other = judgement if source is self.reward else judged(source, prompts, texts)
                yield name, other.scores
                for part, values in (other.objectives | other.measures).items():
                    yield f"{name}_{part}", values


def distinct_responses(prompts: Sequence[Prompt], texts: Sequence[str]) -> tuple[list[int], list[int]]:
    """The first row of each distinct pair of prompt and response, and for every row the place of its own in these."""
    pairs = [(repr(prompt), text) for prompt, text in zip(prompts, texts, strict=True)]
    first: dict[tuple[str, str], int] = {}
    for row, pair in enumerate(pairs):
        first.setdefault(pair, row)
    places = {pair: place for place, pair in enumerate(first)}
    return list(first.values()), [places[pair] for pair in pairs]


def _check_same_measures(measures: Mapping[str, Tensor]) -> None:
    """Refuse measures that cannot be gathered because their names or types differ between ranks."""
    kinds = [f"{name} ({str(values.dtype).removeprefix('torch.')})" for name, values in measures.items()]
    by_rank = gather_items([kinds], world_size())
    for number, others in enumerate(by_rank):
        if others != by_rank[0]:
            raise UserError(
                f"the reward sources give {', '.join(by_rank[0])} for responses on rank 0 and {', '.join(others)} "
                f"on rank {number}; expected the same for all responses"
            )


def _gathered(parts: Sequence[Rollout], count: int) -> Rollout:
    """One rollout of the parts of all ranks, in global order."""
    return join_rollouts(parts, lambda own: gather_rows(own, count) if own.ndim == 1 else gather_padded(own, count))

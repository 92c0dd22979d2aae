"""Responses of a policy to prompts of a task, and what a reward source says of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.data.pairs import Track
from rlhf_lightning.distributed import Stream
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.policy import LanguagePolicy
from rlhf_lightning.rewards.source import RewardSource, judged
from rlhf_lightning.rollout.responses import distinct_responses
from rlhf_lightning.rollout.sampling import sample_responses
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.types import Prompt


def heldout_prompts(task: Task, count: int, *, by: str) -> list[Prompt]:
    """The first ``count`` different held-out prompts of a task, or all: a repeated one would tell nothing new.

    Raises:
        UserError: the task has no prompts.
    """
    task.require(frozenset({"prompts"}), by=by)
    distinct = {repr(prompt): prompt for prompt in task.prompts("heldout")}
    if not distinct:
        raise UserError(f"{by}: task {type(task).__name__} has no held-out prompts; expected at least one")
    return list(distinct.values())[:count]


def sample_groups(
    policy: LanguagePolicy,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    track: Track,
    title: str,
) -> list[list[str]]:
    """``samples`` responses to each prompt; policies that are given the same arguments answer with the same noise.

    Args:
        batch_size: responses that are sampled at a time, as far as those to one prompt allow.
        title: what is shown beside the progress.
    """
    groups: list[list[str]] = []
    at_a_time = max(batch_size // samples, 1)
    for start in track(range(0, len(prompts), at_a_time), title):
        part = prompts[start : start + at_a_time]
        texts = sample_responses(
            policy,
            part,
            numbers=range(start, start + len(part)),
            samples=samples,
            seed=seed,
            stream=Stream.JUDGED,
            iteration=0,
            max_new_tokens=max_new_tokens,
        )
        groups += [texts[i : i + samples] for i in range(0, len(texts), samples)]
    return groups


def score_groups(
    source: RewardSource,
    prompts: Sequence[Prompt],
    groups: Sequence[Sequence[str]],
    *,
    batch_size: int,
    track: Track,
    title: str,
) -> Float[Tensor, "P N"]:
    """The score of each response, in float64; a row for each prompt.

    A response that is given to a prompt several times is judged once, so that it ties with itself.
    """
    repeated = [prompt for prompt, group in zip(prompts, groups, strict=True) for _ in group]
    texts = [text for group in groups for text in group]
    rows, places = distinct_responses(repeated, texts)
    parts = []
    for start in track(range(0, len(rows), batch_size), title):
        part = rows[start : start + batch_size]
        parts.append(judged(source, [repeated[i] for i in part], [texts[i] for i in part]).scores.double().cpu())
    return torch.cat(parts)[places].view(len(groups), -1)

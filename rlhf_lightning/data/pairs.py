"""Make preference pairs and rankings: sample responses from a policy and have them judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from rlhf_lightning.distributed import Stream
from rlhf_lightning.errors import UserError
from rlhf_lightning.judges.labels import ATTEMPTS, Comparison, Judge
from rlhf_lightning.models.language.policy import LanguagePolicy
from rlhf_lightning.rollout.sampling import sample_responses
from rlhf_lightning.types import Prompt

Track: TypeAlias = Callable[[Sequence[int], str], Iterable[int]]
"""Shows how far a loop is: from its items and a title to the same items."""


@dataclasses.dataclass
class JudgedGroup:
    """Responses to one prompt with the judgements of them.

    Args:
        responses: in the order in which they were drawn.
        judgements: at least one.
    """

    responses: tuple[str, ...]
    judgements: list[Comparison]

    def records(self) -> list[dict[str, Any]]:
        """As they are written to a file: a ranking refers to the responses by number."""
        return [self._record(judgement) for judgement in self.judgements]

    def _record(self, judgement: Comparison) -> dict[str, Any]:
        fields = dataclasses.asdict(judgement)
        if len(self.responses) > 2:
            order = [self.responses.index(text) for text in fields.pop("responses")]
            fields = {"prompt": fields.pop("prompt"), "responses": self.responses, "ranking": order, **fields}
        return {key: value for key, value in fields.items() if value is not None}


def judged_groups(
    policy: LanguagePolicy,
    prompts: Sequence[Prompt],
    judge: Judge,
    *,
    samples: int,
    batch_size: int,
    max_new_tokens: int,
    seed: int,
    track: Track,
) -> tuple[list[JudgedGroup], int]:
    """Judged responses to each prompt, and the number of responses that were sampled.

    Prompts whose responses cannot be judged are drawn again, all together, since a small batch takes as long as a large
    one; after `ATTEMPTS` draws they are left out.

    Args:
        samples: responses to each prompt; more than 2 make rankings.
        batch_size: responses that are sampled at a time.

    Raises:
        UserError: no prompt gets responses that can be judged.
    """
    if samples < 2:
        raise UserError(f"--samples is {samples}; expected at least 2 responses to compare")
    judged: dict[int, JudgedGroup] = {}
    sampled = 0
    prompts_per_batch = max(batch_size // samples, 1)
    for attempt in range(ATTEMPTS):
        remaining = [number for number in range(len(prompts)) if number not in judged]
        if not remaining:
            break
        for start in track(range(0, len(remaining), prompts_per_batch), "drawn again" if attempt else "pairs"):
            numbers = remaining[start : start + prompts_per_batch]
            texts = sample_responses(
                policy,
                [prompts[number] for number in numbers],
                numbers=numbers,
                samples=samples,
                seed=seed,
                stream=Stream.PAIR,
                iteration=attempt,
                max_new_tokens=max_new_tokens,
            )
            sampled += len(texts)
            groups = {number: tuple(texts[i * samples : (i + 1) * samples]) for i, number in enumerate(numbers)}
            usable = [number for number in numbers if all(groups[number]) and len(set(groups[number])) == samples]
            judgements = judge.judge(usable, [prompts[n] for n in usable], [groups[n] for n in usable])
            judged |= {n: JudgedGroup(groups[n], said) for n, said in zip(usable, judgements, strict=True) if said}
    if not judged:
        raise UserError(
            f"the policy gave {ATTEMPTS} times {judge.ties} to the prompt {prompts[0]!r}, and so to all others; "
            "expected one whose responses vary"
        )
    return [judged[number] for number in sorted(judged)], sampled

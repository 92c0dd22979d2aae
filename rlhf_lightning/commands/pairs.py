"""``pairs``: sample two responses to each prompt and have one preferred, by annotators or by the gold reward."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from rlhf_lightning.commands.arguments import exported, positive, writable
from rlhf_lightning.errors import UserError

if TYPE_CHECKING:
    from rlhf_lightning.distributed import Stream
    from rlhf_lightning.models.policy import LanguagePolicy
    from rlhf_lightning.tasks.task import Task
    from rlhf_lightning.types import PreferencePair, Prompt

HELP = "sample pairs of responses from a policy; the task's annotators or its gold reward prefer one of each"
EXAMPLE = "pairs --config configs/tasks/assistant.yaml --policy runs/quickstart/sft --count 8000 --out pairs.jsonl"
ATTEMPTS = 20
LABELS = ("annotators", "gold")

Judge: TypeAlias = "Callable[[list[int], list[Prompt], list[tuple[str, str]]], list[PreferencePair | None]]"
"""From numbers, prompts and pairs of responses to labelled pairs; None where neither response is better."""


def main(argv: list[str]) -> None:
    """Run the command."""
    from rlhf_lightning.commands.parser import LineParser

    parser = LineParser("pairs", HELP, EXAMPLE)
    parser.add_argument("--policy", required=True, help="run directory or folder of the policy to sample from")
    parser.add_argument("--out", type=writable, required=True, help="JSONL file to write")
    parser.add_argument("--count", type=positive, default=8000, help="number of pairs (default %(default)s)")
    parser.add_argument(
        "--labels",
        choices=LABELS,
        default=LABELS[0],
        help="who prefers: the task's annotators, or gold, which prefers the response with the higher gold reward "
        "(default %(default)s). Where it cannot be said which is better - equal responses, an empty one, equal gold "
        f"rewards - both are drawn again; after {ATTEMPTS} times the prompt is left out, and counted",
    )
    parser.add_argument("--max_new_tokens", type=positive, default=48, help="longest response (default %(default)s)")
    parser.add_argument("--batch_size", type=positive, default=512, help="responses at a time (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling noise (default %(default)s)")
    arguments, task = parser.parse_with_task(argv)
    write_pairs(
        task,
        policy_path=exported(arguments.policy, "sft"),
        out=arguments.out,
        count=arguments.count,
        labels=arguments.labels,
        max_new_tokens=arguments.max_new_tokens,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
    )


def write_pairs(
    task: Task,
    *,
    policy_path: str,
    out: str,
    count: int,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    labels: str = "annotators",
) -> None:
    """Write labelled pairs for ``count`` prompts, fewer where a prompt gets none that can be labelled.

    Raises:
        UserError: the task has nobody to prefer one, or no prompt gets a pair.
    """
    import dataclasses

    import torch

    from rlhf_lightning.commands.arguments import load_policy
    from rlhf_lightning.distributed import Stream
    from rlhf_lightning.ops.noise import permutation
    from rlhf_lightning.tasks.text.prompts_io import write_jsonl

    judge = _judge(task, labels)
    policy = load_policy(policy_path, temperature=1.0)
    prompts = task.prompts("train")
    passes = [
        permutation(seed=seed, stream=Stream.PAIR, iteration=number, size=len(prompts))
        for number in range(-(-count // len(prompts)))
    ]
    asked = [prompts[i] for i in torch.cat(passes)[:count].tolist()]
    settings = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "seed": seed}
    pairs, responses = _labelled(policy, asked, judge, **settings)
    if not pairs:
        same = "responses of equal gold reward" if labels == "gold" else "an empty response or twice the same"
        raise UserError(
            f"the policy gave {ATTEMPTS} times {same} to the prompt {asked[0]!r}, and so to all others; "
            "expected one whose responses vary"
        )
    records = [dataclasses.asdict(pair) for pair in pairs]
    write_jsonl(out, ({k: v for k, v in record.items() if v is not None} for record in records))
    left_out = f"; left out {count - len(pairs)} prompts without one" if len(pairs) < count else ""
    print(f"wrote {len(pairs)} pairs to {out} ({responses} responses sampled{left_out})")


def _judge(task: Task, labels: str) -> Judge:
    """Who prefers.

    Raises:
        UserError: the task has no such person or rule.
    """
    if labels == "annotators":
        task.require(frozenset({"prompts", "annotators"}), by="pairs")
        return lambda numbers, prompts, texts: [
            task.annotate(prompt, *two, number) for number, prompt, two in zip(numbers, prompts, texts, strict=True)
        ]

    from rlhf_lightning.rewards.source import checked_scores
    from rlhf_lightning.types import PreferencePair

    task.require(frozenset({"prompts"}), by="pairs")
    gold = task.gold()
    if gold is None:
        raise UserError(f"--labels gold needs a task with a gold reward, which {type(task).__name__} has not got")

    def by_gold(numbers: list[int], prompts: list[Prompt], texts: list[tuple[str, str]]) -> list[PreferencePair | None]:
        if not texts:
            return []
        first, second = ([two[i] for two in texts] for i in (0, 1))
        scores = checked_scores(gold, prompts * 2, first + second).view(2, -1).T.tolist()
        return [
            None if a == b else PreferencePair(prompt, *(two if a > b else two[::-1]), annotator="gold")
            for prompt, two, (a, b) in zip(prompts, texts, scores, strict=True)
        ]

    return by_gold


def _labelled(
    policy: LanguagePolicy, prompts: list[Prompt], judge: Judge, *, batch_size: int, max_new_tokens: int, seed: int
) -> tuple[list[PreferencePair], int]:
    """A pair for each prompt that gets one, and how many responses were drawn.

    Where it cannot be said which of two responses is better, both are drawn again with other noise, together with
    those of all other prompts: small batches take as long as large ones.
    """
    from rlhf_lightning.commands.progress import track
    from rlhf_lightning.distributed import Stream

    found: dict[int, PreferencePair] = {}
    drawn = 0
    per_batch = max(batch_size // 2, 1)
    for attempt in range(ATTEMPTS):
        left = [number for number in range(len(prompts)) if number not in found]
        if not left:
            break
        for start in track(range(0, len(left), per_batch), "drawn again" if attempt else "pairs"):
            numbers = left[start : start + per_batch]
            texts = sample_responses(
                policy,
                [prompts[number] for number in numbers],
                numbers=numbers,
                samples=2,
                seed=seed,
                stream=Stream.PAIR,
                iteration=attempt,
                max_new_tokens=max_new_tokens,
            )
            drawn += len(texts)
            two = dict(zip(numbers, zip(texts[::2], texts[1::2], strict=True), strict=True))
            usable = [number for number in numbers if all(two[number]) and len(set(two[number])) == 2]
            pairs = judge(usable, [prompts[number] for number in usable], [two[number] for number in usable])
            found |= {number: pair for number, pair in zip(usable, pairs, strict=True) if pair is not None}
    return [found[number] for number in sorted(found)], drawn


def sample_responses(
    policy: LanguagePolicy,
    prompts: list[Prompt],
    *,
    numbers: list[int],
    samples: int,
    seed: int,
    stream: Stream,
    iteration: int,
    max_new_tokens: int,
    **options: Any,
) -> list[str]:
    """``samples`` responses to each prompt, the prompt's next to each other.

    Args:
        numbers: what keys each prompt's noise.
        stream: likewise, for all of them.
        iteration: likewise.
        options: passed on to `decode`.

    Raises:
        UserError: the policy's probabilities are not finite.
    """
    import torch

    from rlhf_lightning.models.text import decode_responses, encode_prompts
    from rlhf_lightning.ops.noise import row_keys
    from rlhf_lightning.rollout.decode import decode

    device = policy.device
    room = policy.context_length - max_new_tokens
    context, shortened = encode_prompts(prompts, policy.tokenizer, max_tokens=room)
    if shortened:
        say = f"{shortened} of {len(prompts)} prompts are longer than {room} tokens and keep their last ones"
        print(say, file=sys.stderr)
    rows = (torch.tensor(numbers)[:, None] * samples + torch.arange(samples)).flatten().to(device)
    keys = row_keys(seed=seed, stream=stream, iteration=iteration, rows=rows)
    rollout = decode(policy, context.to(device), keys=keys, rows=rows, max_new_tokens=max_new_tokens, **options)
    bad = (~torch.isfinite(rollout.old_logprobs)).any(-1).nonzero()
    if len(bad):
        raise UserError(
            f"the policy's probabilities are not finite for the prompt {prompts[int(bad[0]) // samples]!r}; "
            "expected a model whose weights are"
        )
    return decode_responses(rollout.actions, rollout.action_mask, policy.tokenizer)

"""``pairs``: sample two responses to each prompt and let the task's annotators choose."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rlhf_lightning.commands.arguments import exported, positive, writable
from rlhf_lightning.errors import UserError

if TYPE_CHECKING:
    from rlhf_lightning.distributed import Stream
    from rlhf_lightning.models.policy import LanguagePolicy
    from rlhf_lightning.tasks.task import Task
    from rlhf_lightning.types import Prompt

HELP = "sample pairs of responses from a policy and let the task's annotators prefer one of each"
EXAMPLE = "pairs --config configs/tasks/assistant.yaml --policy runs/quickstart/sft --count 8000 --out pairs.jsonl"
ATTEMPTS = 20


def main(argv: list[str]) -> None:
    """Run the command."""
    from rlhf_lightning.commands.parser import LineParser

    parser = LineParser("pairs", HELP, EXAMPLE)
    parser.add_argument("--policy", required=True, help="run directory or folder of the policy to sample from")
    parser.add_argument("--out", type=writable, required=True, help="JSONL file to write")
    parser.add_argument("--count", type=positive, default=8000, help="number of pairs (default %(default)s)")
    parser.add_argument("--max_new_tokens", type=positive, default=48, help="longest response (default %(default)s)")
    parser.add_argument("--batch_size", type=positive, default=512, help="responses at a time (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling noise (default %(default)s)")
    arguments, task = parser.parse_with_task(argv)
    write_pairs(
        task,
        policy_path=exported(arguments.policy, "sft"),
        out=arguments.out,
        count=arguments.count,
        max_new_tokens=arguments.max_new_tokens,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
    )


def write_pairs(
    task: Task, *, policy_path: str, out: str, count: int, max_new_tokens: int, batch_size: int, seed: int
) -> None:
    """Write ``count`` annotated pairs; two equal responses are drawn again.

    Raises:
        UserError: the task has no annotators, or a prompt gets the same response again and again.
    """
    import dataclasses

    import torch

    from rlhf_lightning.commands.arguments import load_policy
    from rlhf_lightning.commands.progress import track
    from rlhf_lightning.distributed import Stream
    from rlhf_lightning.ops.noise import permutation
    from rlhf_lightning.tasks.text.prompts_io import write_jsonl

    task.require(frozenset({"prompts", "annotators"}), by="pairs")
    policy = load_policy(policy_path, temperature=1.0)
    prompts = task.prompts("train")
    passes = [
        permutation(seed=seed, stream=Stream.PAIR, iteration=number, size=len(prompts))
        for number in range(-(-count // len(prompts)))
    ]
    chosen = [prompts[i] for i in torch.cat(passes)[:count].tolist()]
    records = []
    per_batch = max(batch_size // 2, 1)
    for start in track(range(0, count, per_batch), "pairs"):
        asked = chosen[start : start + per_batch]
        sampled = _two_different(policy, asked, first=start, seed=seed, max_new_tokens=max_new_tokens)
        for number, (prompt, (one, two)) in enumerate(zip(asked, sampled, strict=True), start):
            records.append(dataclasses.asdict(task.annotate(prompt, one, two, number)))
    write_jsonl(out, ({k: v for k, v in record.items() if v is not None} for record in records))
    print(f"wrote {len(records)} pairs to {out}")


def _two_different(
    policy: LanguagePolicy, prompts: list[Prompt], *, first: int, seed: int, max_new_tokens: int
) -> list[tuple[str, str]]:
    """Two different responses to each prompt; where two are equal, both are drawn again with other noise."""
    from rlhf_lightning.distributed import Stream

    found: dict[int, tuple[str, str]] = {}
    for attempt in range(ATTEMPTS):
        open_rows = [row for row in range(len(prompts)) if row not in found]
        if not open_rows:
            break
        texts = sample_responses(
            policy,
            [prompts[row] for row in open_rows],
            numbers=[first + row for row in open_rows],
            samples=2,
            seed=seed,
            stream=Stream.PAIR,
            iteration=attempt,
            max_new_tokens=max_new_tokens,
        )
        for place, row in enumerate(open_rows):
            one, two = texts[2 * place : 2 * place + 2]
            if one != two and one and two:
                found[row] = (one, two)
    missing = [prompts[row] for row in range(len(prompts)) if row not in found]
    if missing:
        raise UserError(
            f"the policy gave {ATTEMPTS} times an empty response or twice the same to the prompt {missing[0]!r}; "
            "expected one whose responses vary"
        )
    return [found[row] for row in range(len(prompts))]


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

    device = policy.model.device
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

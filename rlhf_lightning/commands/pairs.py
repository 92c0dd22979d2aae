"""``pairs``: sample responses to each prompt and have them compared, by annotators or by the gold reward."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlhf_lightning.cli.arguments import exported, positive, writable
from rlhf_lightning.errors import UserError
from rlhf_lightning.judges.labels import LABELS, Judge, Judged, judge_of

if TYPE_CHECKING:
    from rlhf_lightning.distributed import Stream
    from rlhf_lightning.models.language.policy import LanguagePolicy
    from rlhf_lightning.tasks.task import Task
    from rlhf_lightning.types import Prompt

HELP = "sample responses from a policy; the task's annotators or its gold reward prefer one of each pair, or rank them"
EXAMPLE = "pairs --config configs/tasks/assistant.yaml --policy runs/quickstart/sft --count 8000 --out pairs.jsonl"
ATTEMPTS = 20


def main(argv: list[str]) -> None:
    """Run the command."""
    from rlhf_lightning.cli.parser import LineParser

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
        f"rewards - all are drawn again; after {ATTEMPTS} times the prompt is left out, and counted",
    )
    parser.add_argument(
        "--objectives",
        nargs="+",
        default=[],
        metavar="NAME",
        help="judge in each of these respects instead of all in all, such as helpful harmless concise: a record for "
        "each. Left out are those in which gold finds all responses to a prompt equal (--labels gold: any two); "
        "where that leaves none, they are drawn again",
    )
    parser.add_argument(
        "--annotations",
        type=positive,
        default=1,
        help="so many annotators judge the same responses: a record for each (default %(default)s)",
    )
    parser.add_argument(
        "--samples",
        type=positive,
        default=2,
        help="responses to compare; more than 2 make rankings, of responses that all differ (default %(default)s)",
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
        objectives=arguments.objectives,
        annotations=arguments.annotations,
        samples=arguments.samples,
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
    labels: str = LABELS[0],
    objectives: Sequence[str] = (),
    annotations: int = 1,
    samples: int = 2,
) -> None:
    """Write judged pairs or rankings for ``count`` prompts, fewer where a prompt gets none that can be judged.

    Raises:
        UserError: the task has nobody to judge them, or no prompt gets responses that can be judged.
    """
    import torch

    from rlhf_lightning.cli.arguments import load_policy
    from rlhf_lightning.distributed import Stream
    from rlhf_lightning.ops.noise import permutation
    from rlhf_lightning.tasks.text.prompts_io import write_jsonl

    if samples < 2:
        raise UserError(f"--samples is {samples}; expected at least 2 responses to compare")
    judge = judge_of(task, labels, list(dict.fromkeys(objectives)), annotations)
    policy = load_policy(policy_path, temperature=1.0)
    prompts = task.prompts("train")
    passes = [
        permutation(seed=seed, stream=Stream.PAIR, iteration=number, size=len(prompts))
        for number in range(-(-count // len(prompts)))
    ]
    asked = [prompts[i] for i in torch.cat(passes)[:count].tolist()]
    settings = {"samples": samples, "batch_size": batch_size, "max_new_tokens": max_new_tokens, "seed": seed}
    found, drawn = _judged(policy, asked, judge, **settings)
    if not found:
        same = "responses of equal gold reward" if labels == "gold" else "an empty response or twice the same"
        if objectives:
            same = f"{same}, or responses that are equally {' and '.join(objectives)},"
        raise UserError(
            f"the policy gave {ATTEMPTS} times {same} to the prompt {asked[0]!r}, and so to all others; "
            "expected one whose responses vary"
        )
    write_jsonl(out, (_record(one, texts) for texts, judged in found for one in judged))
    kind = "pairs" if samples == 2 else "rankings"
    written = sum(len(judged) for _, judged in found)
    what = kind if written == len(found) else f"judgements of {len(found)} {kind}"
    left_out = f"; left out {count - len(found)} prompts without one" if len(found) < count else ""
    print(f"wrote {written} {what} to {out} ({drawn} responses sampled{left_out})")
    if annotations > 1:
        _say_how_far_they_agree([one for _, judged in found for one in judged])


def _record(judged: Judged, texts: tuple[str, ...]) -> dict[str, Any]:
    """As it is written: a ranking by the numbers of the responses in the order in which they were drawn."""
    fields = dataclasses.asdict(judged)
    if len(texts) > 2:
        order = [texts.index(text) for text in fields.pop("responses")]
        fields = {"prompt": fields.pop("prompt"), "responses": texts, "ranking": order, **fields}
    return {key: value for key, value in fields.items() if value is not None}


def _say_how_far_they_agree(judged: list[Judged]) -> None:
    from rlhf_lightning.reward_modeling.agreement import annotator_agreement

    found = annotator_agreement(judged)
    if found is None:
        return
    kappa, pairs = found["fleiss_kappa"], f"{found['items']} pairs of responses, {found['raters']} judgements of each"
    print(f"agreement between annotators: Fleiss' kappa {'undefined' if kappa is None else f'{kappa:.2f}'} ({pairs})")


def _judged(
    policy: LanguagePolicy,
    prompts: list[Prompt],
    judge: Judge,
    *,
    samples: int,
    batch_size: int,
    max_new_tokens: int,
    seed: int,
) -> tuple[list[tuple[tuple[str, ...], list[Judged]]], int]:
    """Responses and judgements for each prompt that gets some, and how many responses were drawn.

    Where it cannot be said which of the responses is better, all are drawn again with other noise, together with
    those of all other prompts: small batches take as long as large ones.
    """
    from rlhf_lightning.cli.progress import track
    from rlhf_lightning.distributed import Stream

    found: dict[int, tuple[tuple[str, ...], list[Judged]]] = {}
    drawn = 0
    per_batch = max(batch_size // samples, 1)
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
                samples=samples,
                seed=seed,
                stream=Stream.PAIR,
                iteration=attempt,
                max_new_tokens=max_new_tokens,
            )
            drawn += len(texts)
            groups = {number: tuple(texts[i * samples : (i + 1) * samples]) for i, number in enumerate(numbers)}
            usable = [number for number in numbers if all(groups[number]) and len(set(groups[number])) == samples]
            judgements = judge(usable, [prompts[n] for n in usable], [groups[n] for n in usable])
            found |= {n: (groups[n], judged) for n, judged in zip(usable, judgements, strict=True) if judged}
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

    from rlhf_lightning.models.language.text import decode_responses, encode_prompts
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

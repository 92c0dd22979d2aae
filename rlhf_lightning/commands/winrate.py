"""``winrate``: how often the responses of one policy beat those of another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf_lightning.cli.arguments import LineParser, load_policy, load_reward, positive, track, writable
from rlhf_lightning.commands import COMMANDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from rlhf_lightning.evaluation.duel import Duel, Share
    from rlhf_lightning.types import Prompt

EXAMPLE = "winrate runs/quickstart runs/quickstart/sft --config configs/tasks/assistant.yaml --judge gold --prompts 256"


def main(argv: list[str]) -> None:
    """Run the command."""
    arguments, task = _parser().parse_with_task(argv)
    assert task is not None  # it is required

    from rlhf_lightning.evaluation.duel import duel
    from rlhf_lightning.evaluation.judged_samples import heldout_prompts, sample_groups, score_groups
    from rlhf_lightning.tasks.text.prompts_io import write_jsonl

    prompts = heldout_prompts(task, arguments.prompts, by="winrate")
    judge = load_reward(arguments.judge, task, batch_size=arguments.batch_size)
    policies = [load_policy(name, temperature=1.0) for name in (arguments.a, arguments.b)]
    groups, other_groups = (
        sample_groups(
            policy,
            prompts,
            samples=arguments.samples,
            max_new_tokens=arguments.max_new_tokens,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            track=track,
            title=title,
        )
        for policy, title in zip(policies, ("A", "B"), strict=True)
    )
    # Both at once: what both of them answer is judged once, and ties.
    both = [[*group, *other] for group, other in zip(groups, other_groups, strict=True)]
    scores, other_scores = score_groups(
        judge, prompts, both, batch_size=arguments.batch_size, track=track, title="judge"
    ).split(arguments.samples, dim=1)
    found = duel(scores, other_scores, groups, other_groups)
    print("\n".join(_lines(found, arguments.a, arguments.b, len(prompts))))
    if arguments.out:
        write_jsonl(arguments.out, _records(prompts, groups, other_groups, scores, other_scores, found.outcomes))
        print(f"wrote {found.outcomes.numel()} pairs to {arguments.out}")


def _lines(found: Duel, a: str, b: str, prompts: int) -> Iterator[str]:
    wins, ties, losses = (int((found.outcomes == value).sum()) for value in (1.0, 0.5, 0.0))
    mean, half = found.difference
    yield f"A: {a}"
    yield f"B: {b}"
    yield f"A wins {_percent(found.win_rate)}: {wins} wins, {ties} ties, {losses} losses on {prompts} prompts"
    yield f"score of A minus that of B: {mean:+.4f} (95 % interval {mean - half:+.4f} to {mean + half:+.4f})"
    yield f"the longer response wins {_percent(found.longer_wins)} where one is longer"
    yield f"A wins {_percent(found.win_rate_same_length)} where both are about equally long (within a tenth)"


def _percent(share: Share) -> str:
    if not share.pairs:
        return "– of no pairs"
    interval = f"95 % interval {100 * share.low:.1f} to {100 * share.high:.1f} %"
    return f"{100 * share.value:.1f} % of {share.pairs} pairs ({interval})"


def _records(
    prompts: Sequence[Prompt],
    groups: Sequence[Sequence[str]],
    other_groups: Sequence[Sequence[str]],
    scores: Tensor,
    other_scores: Tensor,
    outcomes: Tensor,
) -> Iterator[dict[str, Any]]:
    """What was judged, pair by pair."""
    for row, prompt in enumerate(prompts):
        for sample in range(len(groups[row])):
            yield {
                "prompt": prompt,
                "a": groups[row][sample],
                "b": other_groups[row][sample],
                "score_a": scores[row, sample].item(),
                "score_b": other_scores[row, sample].item(),
                "outcome": outcomes[row, sample].item(),
            }


def _parser() -> LineParser:
    parser = LineParser("winrate", COMMANDS["winrate"], EXAMPLE)
    parser.add_argument("a", help="run directory, folder or hub name of a policy")
    parser.add_argument("b", help="and of the one that it is compared with")
    parser.add_argument(
        "--judge",
        required=True,
        help="whose score decides: run directory or folder of a reward model, or gold, the task's own reward. "
        "A tie counts one half",
    )
    parser.add_argument(
        "--prompts", type=positive, default=256, help="different held-out prompts, at most (default %(default)s)"
    )
    parser.add_argument(
        "--samples",
        type=positive,
        default=1,
        help="responses of each policy to each prompt; intervals are over prompts all the same (default %(default)s)",
    )
    parser.add_argument("--out", type=writable, help="write prompts, responses, scores and outcomes to this JSONL file")
    parser.add_argument("--max_new_tokens", type=positive, default=48, help="longest response (default %(default)s)")
    parser.add_argument("--batch_size", type=positive, default=512, help="responses at a time (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling noise (default %(default)s)")
    return parser

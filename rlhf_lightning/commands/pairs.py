"""``pairs``: sample responses to each prompt and have them compared, by annotators or by the gold reward."""

from __future__ import annotations

from rlhf_lightning.cli.arguments import LineParser, exported, load_policy, positive, track, writable
from rlhf_lightning.commands import COMMANDS
from rlhf_lightning.judges.labels import ATTEMPTS, LABELS, Judge

EXAMPLE = "pairs --config configs/tasks/assistant.yaml --policy runs/quickstart/sft --count 8000 --out pairs.jsonl"


def main(argv: list[str]) -> None:
    """Run the command."""
    arguments, task = _parser().parse_with_task(argv)
    assert task is not None  # it is required

    from rlhf_lightning.data.pairs import judged_groups
    from rlhf_lightning.data.passes import from_passes
    from rlhf_lightning.distributed import Stream
    from rlhf_lightning.reward_modeling.agreement import annotator_agreement
    from rlhf_lightning.tasks.text.prompts_io import write_jsonl

    judge = Judge(task, arguments.labels, arguments.objectives, arguments.annotations)
    groups, sampled = judged_groups(
        load_policy(exported(arguments.policy, "sft"), temperature=1.0),
        from_passes(task.prompts("train"), 0, arguments.count, seed=arguments.seed, stream=Stream.PAIR),
        judge,
        samples=arguments.samples,
        max_new_tokens=arguments.max_new_tokens,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        track=track,
    )
    judgements = [judgement for group in groups for judgement in group.judgements]
    write_jsonl(arguments.out, (record for group in groups for record in group.records()))
    what = "pairs" if arguments.samples == 2 else "rankings"
    if len(judgements) > len(groups):
        what = f"judgements of {len(groups)} {what}"
    missing = arguments.count - len(groups)
    left_out = f"; left out {missing} prompts without one" if missing else ""
    print(f"wrote {len(judgements)} {what} to {arguments.out} ({sampled} responses sampled{left_out})")
    if arguments.annotations > 1 and (agreement := annotator_agreement(judgements)) is not None:
        kappa = "undefined" if agreement["fleiss_kappa"] is None else f"{agreement['fleiss_kappa']:.2f}"
        basis = f"{agreement['items']} pairs of responses, {agreement['raters']} judgements of each"
        print(f"agreement between annotators: Fleiss' kappa {kappa} ({basis})")


def _parser() -> LineParser:
    parser = LineParser("pairs", COMMANDS["pairs"], EXAMPLE)
    parser.add_argument("--policy", required=True, help="run directory or folder of the policy to sample from")
    parser.add_argument("--out", type=writable, required=True, help="JSONL file to write")
    parser.add_argument("--count", type=positive, default=8000, help="number of pairs (default %(default)s)")
    parser.add_argument(
        "--labels",
        choices=LABELS,
        default=LABELS[0],
        help="who prefers: the task's annotators, or gold, which prefers the response with the higher gold reward "
        "(default %(default)s). Responses that cannot be compared - two equal ones, an empty one, equal gold rewards - "
        f"are drawn again; after {ATTEMPTS} times the prompt is left out, and counted",
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
    return parser

"""``score``: what a reward model, or a task's gold reward, says of given responses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_lightning.cli.arguments import LineParser, exported, gold_reward, positive, writable
from rlhf_lightning.commands import COMMANDS
from rlhf_lightning.errors import UserError

if TYPE_CHECKING:
    from rlhf_lightning.rewards.source import RewardSource
    from rlhf_lightning.tasks.task import Task

EXAMPLE = "score responses.jsonl --reward runs/quickstart --out scored.jsonl"


def main(argv: list[str]) -> None:
    """Run the command."""
    parser = LineParser("score", COMMANDS["score"], EXAMPLE)
    parser.add_argument("file", help="JSONL of prompt and response, or messages that end with an answer")
    parser.add_argument("--reward", help="run directory or folder of a reward model")
    parser.add_argument("--gold", action="store_true", help="use the gold reward of the task given by --config")
    parser.add_argument("--batch_size", type=positive, default=256, help="responses at a time (default %(default)s)")
    parser.add_argument("--out", type=writable, help="write the records with their scores to this JSONL file")
    arguments, task = parser.parse_with_task(argv, required=False)
    if bool(arguments.reward) == arguments.gold:
        raise UserError("score needs exactly one of --reward PATH and --gold (with --config TASK.yaml)")

    from rlhf_lightning.rewards.learned import LearnedReward
    from rlhf_lightning.rewards.source import judged
    from rlhf_lightning.tasks.text.prompts_io import read_responses, write_jsonl

    answers = read_responses(arguments.file)
    if arguments.gold:
        source = _gold(task)
    else:
        source = LearnedReward(exported(arguments.reward, "reward"), batch_size=arguments.batch_size)
    scores = judged(source, [a.prompt for a in answers], [a.response for a in answers]).scores.double()
    if arguments.out:
        scored = ({**a.record, "score": s} for a, s in zip(answers, scores.tolist(), strict=True))
        write_jsonl(arguments.out, scored)
        print(f"wrote {len(answers)} scores to {arguments.out}")
    else:
        for answer, score in zip(answers, scores.tolist(), strict=True):
            print(f"{score:+.3f}  {answer.response}")
    deviation = scores.std().item() if len(scores) > 1 else 0.0
    print(f"mean {scores.mean().item():.4f}, standard deviation {deviation:.4f}, {len(scores)} responses")


def _gold(task: Task | None) -> RewardSource:
    if task is None:
        raise UserError("--gold needs the task: --config configs/tasks/assistant.yaml")
    return gold_reward(task)

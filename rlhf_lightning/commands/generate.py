"""``generate``: what a trained policy answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_lightning.cli.arguments import LineParser, load_policy, positive, track, writable
from rlhf_lightning.commands import COMMANDS
from rlhf_lightning.errors import UserError
from rlhf_lightning.records.run_directory import CONFIG

if TYPE_CHECKING:
    from rlhf_lightning.types import Prompt

EXAMPLE = 'generate runs/quickstart "tell me the price of the lamp"'


def main(argv: list[str]) -> None:
    """Run the command."""
    arguments = _parser().parse_intermixed_args(argv)
    _refuse_control(arguments.model)
    prompts = _prompts(arguments.prompts, arguments.file)
    if not arguments.raw:
        prompts = [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts]

    from rlhf_lightning.distributed import Stream
    from rlhf_lightning.models.language.spelling import READ
    from rlhf_lightning.models.language.text import plain_text
    from rlhf_lightning.rollout.sampling import sample_responses
    from rlhf_lightning.tasks.text.prompts_io import write_jsonl

    policy = load_policy(arguments.model, temperature=arguments.temperature)
    if arguments.special_tokens:
        policy.tokenizer.init_kwargs[READ] = True
    answers: list[tuple[Prompt, str]] = []
    for start in track(range(0, len(prompts), arguments.batch_size), "generate"):
        part = prompts[start : start + arguments.batch_size]
        texts = sample_responses(
            policy,
            part,
            numbers=range(start, start + len(part)),
            samples=arguments.samples,
            seed=arguments.seed,
            stream=Stream.GENERATE,
            iteration=0,
            max_new_tokens=arguments.max_new_tokens,
            greedy=arguments.greedy,
            keep_special_tokens=arguments.special_tokens,
        )
        answers += [(part[i // arguments.samples], text) for i, text in enumerate(texts)]
    if arguments.out:
        write_jsonl(arguments.out, ({"prompt": prompt, "response": text} for prompt, text in answers))
        print(f"wrote {len(answers)} responses to {arguments.out}")
        return
    for prompt, text in answers:
        print(f"> {plain_text(prompt)}\n{text}\n")


def _parser() -> LineParser:
    parser = LineParser("generate", COMMANDS["generate"], EXAMPLE)
    parser.add_argument("model", help="run directory, folder or hub name of the policy")
    parser.add_argument(
        "prompts", nargs="*", default=[], help="prompts; without any, they are read from --file or standard input"
    )
    parser.add_argument(
        "--file", help="JSONL of prompt or messages, or text with one prompt per line, in UTF-8; - for stdin"
    )
    parser.add_argument("--raw", action="store_true", help="continue a text as it stands, without chat template")
    parser.add_argument(
        "--special_tokens",
        action="store_true",
        help="read special tokens that a prompt spells out, and show answers' own",
    )
    parser.add_argument("--samples", type=positive, default=1, help="answers per prompt (default %(default)s)")
    parser.add_argument("--greedy", action="store_true", help="take the most probable token each time")
    parser.add_argument("--temperature", type=float, default=1.0, help="(default %(default)s)")
    parser.add_argument("--max_new_tokens", type=positive, default=48, help="longest answer (default %(default)s)")
    parser.add_argument("--batch_size", type=positive, default=64, help="prompts at a time (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling noise (default %(default)s)")
    parser.add_argument("--out", type=writable, help="write a JSONL file of prompt and response instead of printing")
    return parser


def _refuse_control(model: str) -> None:
    """Say that a run's policy acts in an environment: the error of a missing language model would not."""
    from rlhf_lightning.records.runs import load_run

    folder = Path(model).parent if Path(model).name == "export" else Path(model)
    if (folder / CONFIG).is_file() and (run := load_run(folder)).kind == "control":
        raise UserError(f"{model} is a policy for {run.task}, which writes no text; expected a language policy")


def _prompts(given: list[str], file: str | None) -> list[Prompt]:
    """Prompts from exactly one source."""
    from rlhf_lightning.tasks.text.prompts_io import read_prompts

    if given and file:
        raise UserError("prompts were given both as arguments and by --file; expected one of the two")
    if any(not prompt.strip() for prompt in given):
        raise UserError("one of the prompts is empty; expected at least one word in each")
    if given:
        return list(given)
    if file and file != "-":
        return read_prompts(file)
    if sys.stdin is None:
        raise UserError("standard input is closed; expected prompts there, as arguments or by --file")
    if sys.stdin.isatty():
        print("reading prompts from standard input, one per line; end with Ctrl-D", file=sys.stderr)
    return read_prompts(sys.stdin)

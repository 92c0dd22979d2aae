"""``generate``: what a trained policy answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_lightning.cli.arguments import positive, writable
from rlhf_lightning.errors import UserError

if TYPE_CHECKING:
    from rlhf_lightning.types import Prompt

HELP = "answer prompts from arguments, a file or standard input"
EXAMPLE = 'generate runs/quickstart "tell me the price of the lamp"'


def main(argv: list[str]) -> None:
    """Run the command."""
    from rlhf_lightning.cli.parser import LineParser

    parser = LineParser("generate", HELP, EXAMPLE)
    parser.add_argument("model", help="run directory, folder or hub name of the policy")
    parser.add_argument(
        "prompts", nargs="*", default=[], help="prompts; without any, they are read from --file or standard input"
    )
    parser.add_argument("--file", help="JSONL of prompt or messages, or text with one prompt per line; - for stdin")
    parser.add_argument("--raw", action="store_true", help="continue a text as it stands, without chat template")
    parser.add_argument("--samples", type=positive, default=1, help="answers per prompt (default %(default)s)")
    parser.add_argument("--greedy", action="store_true", help="take the most probable token each time")
    parser.add_argument("--temperature", type=float, default=1.0, help="(default %(default)s)")
    parser.add_argument("--max_new_tokens", type=positive, default=48, help="longest answer (default %(default)s)")
    parser.add_argument("--batch_size", type=positive, default=64, help="prompts at a time (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling noise (default %(default)s)")
    parser.add_argument("--out", type=writable, help="write a JSONL file of prompt and response instead of printing")
    arguments = parser.parse(argv)
    _refuse_control(arguments.model)
    prompts = _prompts(arguments.prompts, arguments.file)

    from rlhf_lightning.cli.arguments import load_policy
    from rlhf_lightning.cli.progress import track
    from rlhf_lightning.commands.pairs import sample_responses
    from rlhf_lightning.distributed import Stream
    from rlhf_lightning.models.language.text import plain_text
    from rlhf_lightning.tasks.text.prompts_io import write_jsonl

    policy = load_policy(arguments.model, temperature=arguments.temperature)
    asked = [p if arguments.raw or not isinstance(p, str) else [{"role": "user", "content": p}] for p in prompts]
    answers: list[tuple[Prompt, str]] = []
    for start in track(range(0, len(asked), arguments.batch_size), "generate"):
        part = asked[start : start + arguments.batch_size]
        texts = sample_responses(
            policy,
            part,
            numbers=list(range(start, start + len(part))),
            samples=arguments.samples,
            seed=arguments.seed,
            stream=Stream.GENERATE,
            iteration=0,
            max_new_tokens=arguments.max_new_tokens,
            greedy=arguments.greedy,
        )
        answers += [(part[i // arguments.samples], text) for i, text in enumerate(texts)]
    if arguments.out:
        write_jsonl(arguments.out, ({"prompt": prompt, "response": text} for prompt, text in answers))
        print(f"wrote {len(answers)} responses to {arguments.out}")
        return
    for prompt, text in answers:
        print(f"> {plain_text(prompt)}\n{text}\n")


def _refuse_control(model: str) -> None:
    """Say of a control run what it is, rather than what it lacks."""
    from rlhf_lightning.records.runs import read_config, setting

    folder = Path(model)
    config = read_config((folder.parent if folder.name == "export" else folder) / "config.yaml")
    if str(setting(config, "data.class_path")).endswith("EnvironmentDataModule"):
        environment = setting(config, "task.init_args.environment")
        raise UserError(f"{model} is a policy for {environment}, which writes no text; expected a language policy")


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
    if sys.stdin.isatty():
        print("reading prompts from standard input, one per line; end with Ctrl-D", file=sys.stderr)
    return read_prompts(sys.stdin)

"""``pipeline``: supervised model, preference pairs, reward model and policy, each a command of its own."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from rlhf_lightning.cli.arguments import LineParser
from rlhf_lightning.commands import COMMANDS
from rlhf_lightning.errors import UserError
from rlhf_lightning.pipeline.processes import command_line, print_commands, run_stage
from rlhf_lightning.pipeline.stages import Settings, Stage, build_stages, read_pipeline
from rlhf_lightning.records.run_directory import STAGES, check_name

EXAMPLE = "pipeline --config configs/quickstart.yaml --name quickstart"
_DETAILS = """
Every stage is a plain command; --print-commands shows them, for a scheduler or to run them by hand. A stage whose
arguments, files and inputs are as they were is skipped, an interrupted one continues.

Options of single stages: --STAGE.KEY VALUE, for instance --policy.trainer.max_epochs 50, with STAGE one of
sft, pairs, reward and policy. Options of all stages: --task.KEY, --backbone.KEY and --trainer.KEY, for instance
--task.init_args.path pairs.jsonl or --trainer.devices 2.
"""


def main(argv: list[str]) -> int:
    """Run the command."""
    parser = _parser()
    arguments, options = parser.parse_known_args(argv)
    settings = Settings(
        configs=arguments.config,
        directory=Path(arguments.runs_dir) / check_name(arguments.name or Path(arguments.config[-1]).stem),
        seed=arguments.seed,
        pipeline=read_pipeline(arguments.config),
    )
    _read_options(options, settings, known=[name.removeprefix("--") for name in parser.option_strings])
    stages = _selected(build_stages(settings), arguments.stages)
    if arguments.print_commands:
        print_commands(stages, overwrite=arguments.overwrite)
        return 0
    for stage in stages:
        otherwise = f"leave {stage.name} out with --stages"
        status = run_stage(stage, overwrite=arguments.overwrite, otherwise=otherwise)
        if status:
            return status
    _print_next_commands(settings.directory, stages)
    return 0


def _parser() -> LineParser:
    parser = LineParser("pipeline", COMMANDS["pipeline"], EXAMPLE)
    parser.description = f"{parser.description} {_DETAILS.strip()}"
    parser.add_argument("--config", action="append", required=True, help="YAML with task, backbone and pipeline")
    parser.add_argument("--name", help="folder of the pipeline below --runs_dir (default: the configuration's name)")
    parser.add_argument("--runs_dir", default="runs", help="folder of all runs (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of every stage (default %(default)s)")
    parser.add_argument("--stages", help="only these, separated by commas (default: all)")
    parser.add_argument("--overwrite", action="store_true", help="make the stages again that are finished already")
    parser.add_argument("--print-commands", action="store_true", help="show the stages' commands and run nothing")
    return parser


def _read_options(words: Sequence[str], settings: Settings, known: Sequence[str]) -> None:
    """Sort ``--KEY VALUE`` and ``--KEY=VALUE`` into options of one stage and options of all stages.

    Args:
        known: the command's own options, for suggestions.
    """
    remaining = list(words)
    while remaining:
        option, equals, value = remaining.pop(0).partition("=")
        if not option.startswith("--"):
            raise UserError(f"unexpected argument {option!r}; see python -m rlhf_lightning pipeline --help")
        if not equals:
            if not remaining or remaining[0].startswith("--"):
                raise UserError(f"{option} needs a value")
            value = remaining.pop(0)
        group, _, key = option[2:].partition(".")
        if group in STAGES and key:
            if group not in settings.pipeline:
                raise UserError(f"{option}: the pipeline has no stage {group} (it has {', '.join(settings.pipeline)})")
            settings.own.setdefault(group, {})[key] = value
        elif group in ("task", "backbone") or (group == "trainer" and key):
            settings.common[option[2:]] = value
        else:
            groups = [f"{name}.{key}" if key else name for name in (*STAGES, "task", "backbone", "trainer")]
            close = difflib.get_close_matches(option[2:], [*groups, *known], n=1, cutoff=0.7)
            hint = f"did you mean --{close[0]}?" if close else "see python -m rlhf_lightning pipeline --help"
            if group in ("model", "data"):
                hint = f"give it to one stage, for instance --{list(settings.pipeline)[-1]}.{option[2:]}"
            raise UserError(f"unknown option {option}; {hint}")


def _selected(stages: list[Stage], names: str | None) -> list[Stage]:
    if names is None:
        return stages
    wanted, known = [name.strip() for name in names.split(",")], [stage.name for stage in stages]
    for name in wanted:
        if name not in known:
            raise UserError(f"--stages: no stage {name!r}; expected some of {', '.join(known)}")
    return [stage for stage in stages if stage.name in wanted]


def _print_next_commands(directory: Path, stages: list[Stage]) -> None:
    for stage in stages:
        print(f"made {stage.makes}")
    print(f"next: {command_line(['report', str(directory)])}")
    if any(stage.name in ("sft", "policy") for stage in stages):
        print(f"      {command_line(['generate', str(directory)])} PROMPT")

"""``crossval``: k-fold cross-validation of what learns from feedback, each fold a ``fit`` of its own."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rlhf_lightning.cli.arguments import LineParser
from rlhf_lightning.commands import COMMANDS
from rlhf_lightning.errors import UserError
from rlhf_lightning.pipeline.folds import Row, fold_row, fold_stages, in_words, summarized, table
from rlhf_lightning.pipeline.processes import print_commands, run_stage
from rlhf_lightning.records.files import write_atomically
from rlhf_lightning.records.run_directory import CONFIG, check_name

EXAMPLE = (
    "crossval --folds 5 --config configs/tasks/assistant.yaml --config configs/algorithms/reward.yaml "
    "--data.init_args.pairs pairs.jsonl --name cv"
)
_DETAILS = """
Every fold is a fit in NAME/fold_I that holds out one part of all prompts; --print-commands shows them. A fold that is
finished is skipped, an interrupted one continues. Any further option is one of fit, for instance
--data.init_args.pairs pairs.jsonl or --trainer.max_steps 200.
"""
FILE = "crossval.json"


def main(argv: list[str]) -> int:
    """Run the command."""
    arguments, options = _parser().parse_known_args(argv)
    name = arguments.name or f"{Path(arguments.config[-1]).stem}-folds"
    directory = Path(arguments.runs_dir) / check_name(name)
    stages = fold_stages(directory, arguments.folds, arguments.config, options)
    if arguments.print_commands:
        print_commands(stages, overwrite=arguments.overwrite)
        return 0
    if (directory / CONFIG).exists():
        raise UserError(f"{directory} holds a run; choose another --name for the folder of all folds")
    from rlhf_lightning.records.runs import load_run

    rows: list[Row] = []
    for stage in stages:
        status = run_stage(stage, overwrite=arguments.overwrite, otherwise="choose another --name")
        if status:
            return status
        rows.append(fold_row(load_run(stage.directory)))
        print(f"{stage.name}: {in_words(rows[-1])} ({len(rows)} of {len(stages)} folds)", flush=True)
    summary = summarized(rows)
    content = {"folds": [{"fold": fold, **row} for fold, row in enumerate(rows)], "summary": summary}
    write_atomically(directory / FILE, json.dumps(content, indent=1) + "\n")
    print(f"\n{table(rows, summary)}\n\nmade {directory / FILE}")
    return 0


def _parser() -> LineParser:
    parser = LineParser("crossval", COMMANDS["crossval"], EXAMPLE)
    parser.description = f"{parser.description} {_DETAILS.strip()}"
    parser.add_argument("--folds", type=_at_least_two, default=5, metavar="K", help="how many (default %(default)s)")
    parser.add_argument("--config", action="append", required=True, help="of fit: task, algorithm")
    parser.add_argument("--name", help="folder of all folds below --runs_dir (default: CONFIG-folds)")
    parser.add_argument("--runs_dir", default="runs", help="folder of all runs (default %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="train the folds again that are finished already")
    parser.add_argument("--print-commands", action="store_true", help="show the folds' commands and run nothing")
    return parser


def _at_least_two(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 2, got {text!r}")
    return int(text)

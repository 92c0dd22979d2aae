"""``crossval``: k-fold cross-validation of what learns from feedback, each fold a ``fit`` of its own."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_lightning.cli.parser import LineParser
from rlhf_lightning.errors import UserError
from rlhf_lightning.intervals import student_interval
from rlhf_lightning.pipeline.processes import command_line, overwriting, run_stage
from rlhf_lightning.pipeline.stages import Stage
from rlhf_lightning.records.config_files import find_config
from rlhf_lightning.records.run_directory import CONFIG, check_name, write_atomically

if TYPE_CHECKING:
    from rlhf_lightning.records.runs import Run

HELP = "train a reward model (or DPO) once for each of k folds of its feedback, and report the mean over the folds"
EXAMPLE = "crossval --folds 5 --config configs/tasks/assistant.yaml --config configs/algorithms/reward.yaml --name cv"
_DETAILS = """
Every fold is a fit in NAME/fold_I that holds out one part of all prompts; --print-commands shows them. A fold that is
finished is skipped, an interrupted one continues. Any further option is one of fit, for instance
--data.init_args.pairs pairs.jsonl or --trainer.max_steps 200.
"""
FILE = "crossval.json"
_FOLDS, _FOLD = "data.init_args.folds", "data.init_args.fold"

Row = Mapping[str, float | None]
"""What was measured in a fold, by name; None where it was not."""

_COLUMNS = {"accuracy": "accuracy", "loss": "loss", "train_accuracy": "train accuracy", "gap": "over-fitting gap"}


def main(argv: list[str]) -> int:
    """Run the command."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    name = arguments.name or f"{Path(arguments.config[-1]).stem}-folds"
    directory = Path(arguments.runs_dir) / check_name(name)
    stages = fold_stages(directory, arguments.folds, arguments.config, _separated(rest))
    if arguments.print_commands:
        for stage in stages:
            print(command_line([*stage.command, *overwriting(stage, arguments.overwrite)]))
        return 0
    if (directory / CONFIG).exists():
        raise UserError(f"{directory} holds a run; choose another --name for the folder of all folds")
    rows: list[Row] = []
    for stage in stages:
        status = run_stage(stage, overwrite=arguments.overwrite, otherwise="choose another --name")
        if status:
            return status
        rows.append(_measured(stage))
        print(f"{stage.name}: {_said(rows[-1])} ({len(rows)} of {len(stages)} folds)", flush=True)
    summary = summarized(rows)
    content = {"folds": [{"fold": fold, **row} for fold, row in enumerate(rows)], "summary": summary}
    write_atomically(directory / FILE, json.dumps(content, indent=1) + "\n")
    print(f"\n{table(rows, summary)}\n\nmade {directory / FILE}")
    return 0


def _parser() -> LineParser:
    parser = LineParser("crossval", HELP, EXAMPLE)
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


def _separated(words: Sequence[str]) -> list[str]:
    """``--KEY=VALUE`` as two words, as everywhere else, so that values that are files are known as such."""
    parts = [word.split("=", 1) if word.startswith("--") else [word] for word in words]
    keys = [part[0].removeprefix("--") for part in parts]
    for key in (_FOLDS, _FOLD):
        if key in keys:
            raise UserError(f"--{key} is what crossval sets; give --folds K instead")
    return [word for part in parts for word in part]


def fold_stages(directory: Path, folds: int, configs: Sequence[str], options: Sequence[str]) -> list[Stage]:
    """A ``fit`` for each fold.

    Args:
        options: further words of every command.

    Raises:
        UserError: a configuration is not there.
    """
    for config in configs:
        find_config(config)
    words = [word for config in configs for word in ("--config", config)]
    stages = []
    for fold in range(folds):
        name = f"fold_{fold}"
        where = ["--runs_dir", str(directory), "--name", name]
        held_out = [f"--{_FOLDS}", str(folds), f"--{_FOLD}", str(fold)]
        command = ["fit", *words, *where, *options, *held_out]
        stages.append(Stage(name, command, directory / name, {}, directory / name / "export"))
    return stages


# -- what came out ---------------------------------------------------------------------------------------------------


def _measured(stage: Stage) -> Row:
    from rlhf_lightning.records.runs import load_run

    return fold_row(load_run(stage.directory))


def fold_row(run: Run) -> dict[str, float | None]:
    """What is known of a fold's run at its end.

    The over-fitting gap is the accuracy on pairs that were trained on less that on the held-out ones.
    """
    measured = run.evaluation or {}
    row = {name: measured.get(name, _last(run, f"eval/{name}")) for name in ("accuracy", "loss")}
    train = (measured.get("train") or {}).get("accuracy")
    gap = train - row["accuracy"] if train is not None and row["accuracy"] is not None else None
    return {**row, "train_accuracy": train, "gap": gap}


def _last(run: Run, metric: str) -> float | None:
    series = run.series(metric)
    return float(series.iloc[-1]) if len(series) else None


def summarized(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Mean of each measure with a 95 % Student interval over folds; a measure that a fold lacks is left out.

    The interval takes the folds as independent. Their training data overlap, so that it tends to be too narrow, and
    nothing better can be had from one cross-validation (Bengio and Grandvalet 2004).
    """
    summary = {}
    for name in _COLUMNS:
        values = [value for row in rows if (value := row[name]) is not None]
        if len(values) < len(rows):
            continue
        mean, half = student_interval(values)
        summary[name] = {"mean": mean, "low": mean - half, "high": mean + half}
    return summary


def table(rows: Sequence[Row], summary: Mapping[str, Mapping[str, float]]) -> str:
    """A line for each fold, the means, and their intervals."""
    lines = [["fold", *(_COLUMNS[name] for name in summary)]]
    lines += [[str(fold), *(_cell(name, row[name]) for name in summary)] for fold, row in enumerate(rows)]
    lines.append(["mean", *(_cell(name, of["mean"]) for name, of in summary.items())])
    lines.append(["95 %", *(_interval(name, of) for name, of in summary.items())])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    rule = "─" * len(text[0])
    return "\n".join([text[0], rule, *islice(text, 1, len(rows) + 1), rule, *text[len(rows) + 1 :]])


def _said(row: Row) -> str:
    return ", ".join(f"{_COLUMNS[name]} {_cell(name, value)}" for name, value in row.items() if value is not None)


def _interval(name: str, of: Mapping[str, float]) -> str:
    low, high = _cell(name, of["low"]), _cell(name, of["high"])
    return f"{low.partition(' ')[0]} to {high}"


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name == "loss":
        return f"{value:.3f}"
    return f"{100 * value:.1f} {'points' if name == 'gap' else '%'}".replace("-", "−")

"""``compare``: a declared comparison, from its runs to its verdicts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich.box
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_lightning.cli.arguments import LineParser, positive
from rlhf_lightning.commands import COMMANDS
from rlhf_lightning.errors import UserError, suggestion

if TYPE_CHECKING:
    import pandas as pd

    from rlhf_lightning.experiment.comparison import ArmComparison
    from rlhf_lightning.experiment.statistics.scores import MeasureScale
    from rlhf_lightning.pipeline.schedule import Launcher

EXAMPLE = "compare experiments/cartpole_optimizers.yaml --budget smoke --jobs 2"
_DETAILS = """
Every run is a plain fit, pairs or pipeline command; --print-commands shows them for any scheduler, and --collect judges
what others have run. Finished runs are never repeated, interrupted ones continue; a run that fails counts as the worst
value, and does not stop the others.
"""


def main(argv: list[str]) -> int:
    """Run the command."""
    parser = _parser()
    arguments = parser.parse_intermixed_args(argv)
    console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 160)
    if arguments.table is not None:
        _judge_table(arguments, console)
        return 0
    if arguments.experiment is None:
        parser.error("expected EXPERIMENT.yaml, or --from RESULTS.csv")
    comparison = _comparison(arguments)
    if arguments.print_commands:
        from rlhf_lightning.experiment.engine import commands

        print("\n".join(commands(comparison)))
        return 0
    complete = True
    if not arguments.collect:
        _check_commands(comparison)
        launcher = _launcher(arguments, comparison)
        complete = _run(comparison, launcher, console, jobs=_jobs(arguments), retry=arguments.retry)
    _judge(comparison, console)
    return 0 if complete else 1


def _comparison(arguments: argparse.Namespace) -> ArmComparison:
    from rlhf_lightning.experiment.comparison import ArmComparison
    from rlhf_lightning.experiment.spec_file import read_experiment, seeds_from

    experiment = read_experiment(arguments.experiment)
    if arguments.aa:
        from rlhf_lightning.experiment.aa import against_itself

        experiment = against_itself(experiment)
    return ArmComparison.of(
        experiment,
        experiment.budget(arguments.budget or _default_budget(list(experiment.budgets))),
        runs_dir=Path(arguments.runs_dir),
        results_dir=Path(arguments.results_dir),
        arms=arguments.arms.split(",") if arguments.arms else None,
        seeds=None if arguments.seeds is None else seeds_from(arguments.seeds, "--seeds"),
        more_seeds=arguments.more_seeds,
    )


def _default_budget(names: list[str]) -> str:
    """Quick where there is such a budget, or the only one.

    Raises:
        UserError: there are several, and none is called quick.
    """
    if "quick" in names or len(names) == 1:
        return "quick" if "quick" in names else names[0]
    raise UserError(f"--budget is missing; expected one of {', '.join(names)}")


def _judge_table(arguments: argparse.Namespace, console: Console) -> None:
    """Judge anybody's results: every arm against the baseline, or against every other."""
    from rlhf_lightning.experiment.tables import compared_rows, described_rows

    table, scale = table_and_scale(arguments.table, arguments.metric, higher_is_better=not arguments.lower_is_better)
    console.print(_shown(described_rows(table, scale)))
    console.print(_shown(compared_rows(table, scale, baseline=arguments.baseline, margin=arguments.margin)))


def table_and_scale(path: str, metric: str | None, *, higher_is_better: bool) -> tuple[pd.DataFrame, MeasureScale]:
    """A table of results from a file, and which of its columns is compared.

    Raises:
        UserError: the file cannot be read, or the column is not there or not the only one.
    """
    from rlhf_lightning.experiment.statistics.results_file import from_csv
    from rlhf_lightning.experiment.statistics.scores import ARM, SEED, STATUS, TASK, MeasureScale

    table = from_csv(path)
    measures = [str(name) for name in table.columns if name not in (ARM, SEED, TASK, STATUS)]
    if metric is None and len(measures) > 1:
        raise UserError(f"--metric is missing; {path} has {', '.join(measures)}")
    if metric is not None and metric not in measures:
        expected = suggestion(metric, measures, otherwise=f"expected one of {', '.join(measures)}")
        raise UserError(f"--metric {metric}: {expected}")
    return table, MeasureScale(metric or measures[0], higher_is_better=higher_is_better)


def _check_commands(comparison: ArmComparison) -> None:
    """Parse the command lines of each arm's first seed before anything runs, in a process that is gone afterwards.

    Raises:
        UserError: one of them would be refused; the line names all of it.
    """
    from rlhf_lightning.cli.rehearsal import FitLine, mistakes_in
    from rlhf_lightning.experiment.engine import first_lines

    lines = first_lines(comparison)
    if lines:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            mistakes = process.submit(mistakes_in, [FitLine(place, words) for place, words in lines]).result()
        if mistakes:
            raise UserError(f"{comparison.experiment.name}: {'; '.join(mistakes)}")


def _jobs(arguments: argparse.Namespace) -> int:
    """How many stages run at a time: one on this machine if nothing is said, as many as there are on a cluster."""
    return arguments.jobs or (1 if arguments.launcher == "local" else 10_000)


def _launcher(arguments: argparse.Namespace, comparison: ArmComparison) -> Launcher:
    from rlhf_lightning.experiment.engine import local_launcher, log_of

    if arguments.launcher == "local":
        return local_launcher(_jobs(arguments))
    from rlhf_lightning.pipeline.slurm import SubmititLauncher

    return SubmititLauncher(comparison.runs / "jobs", arguments.launcher, _pairs(arguments.slurm), log_of)


def _pairs(words: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` as a mapping.

    Raises:
        UserError: a word is none.
    """
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UserError(f"--slurm {word}: expected KEY=VALUE, such as timeout_min=240 or slurm_partition=gpu")
        found[key] = yaml.safe_load(value)
    return found


def _run(comparison: ArmComparison, launcher: Launcher, console: Console, *, jobs: int, retry: bool) -> bool:
    """Run what is not done yet; returns whether everything has finished."""
    from rlhf_lightning.experiment.claims.together import why_impossible
    from rlhf_lightning.experiment.engine import run
    from rlhf_lightning.pipeline.processes import sigterm_interrupts

    for sentence in why_impossible(comparison.experiment.claims, len(comparison.budget.seeds)):
        console.print(f"too few seeds: {sentence}", markup=False)
    with sigterm_interrupts():
        return run(comparison, launcher, console, jobs=jobs, retry=retry)


def _judge(comparison: ArmComparison, console: Console) -> None:
    """Judge what has been run, and write the results."""
    from rlhf_lightning.experiment.pictures import write_page
    from rlhf_lightning.experiment.tables import arms_rows, claims_rows
    from rlhf_lightning.experiment.writing import cautions, write_result

    result = comparison.result()
    made = [*write_result(result, comparison.results), write_page(result, comparison.results, _again(comparison))]
    for rows in (arms_rows(result), claims_rows(result)):
        if len(rows):
            console.print(_shown(rows))
    for text in cautions(result):
        console.print(f"caution: {text}", markup=False)
    for path in made:
        console.print(f"made {path}", markup=False)


def _again(comparison: ArmComparison) -> list[str]:
    """The commands that repeat a comparison."""
    from rlhf_lightning.pipeline.processes import command_line

    name = comparison.experiment.name
    words = ["compare", f"experiments/{name}.yaml", "--budget", comparison.budget.name]
    return [command_line(words), command_line([*words, "--more-seeds", "2"])]


def _shown(rows: pd.DataFrame) -> Table:
    table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for column in rows.columns:
        if rows[column].astype(str).str.strip().ne("").any():
            table.add_column(column, overflow="fold")
    for row in rows.loc[:, [str(column.header) for column in table.columns]].itertuples(index=False):
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def _parser() -> LineParser:
    parser = LineParser("compare", COMMANDS["compare"], EXAMPLE)
    parser.description = f"{parser.description} {_DETAILS.strip()}"
    parser.add_argument("experiment", nargs="?", metavar="EXPERIMENT.yaml", help="the declaration, see experiments/")
    parser.add_argument("--budget", help="one of the declaration's (default: quick)")
    parser.add_argument("--seeds", type=positive, metavar="N", help="seeds 1 to N instead of those of the budget")
    parser.add_argument("--more-seeds", type=positive, default=0, metavar="N", help="N seeds beside those so far")
    parser.add_argument("--arms", metavar="A,B", help="run only these (default: all)")
    parser.add_argument("--jobs", type=positive, help="runs at a time (default: 1, and no limit under SLURM)")
    parser.add_argument(
        "--launcher", choices=("local", "slurm"), default="local", help="where runs go (default: local)"
    )
    parser.add_argument(
        "--slurm", action="append", default=[], metavar="KEY=VALUE", help="of submitit's jobs, such as timeout_min=240"
    )
    parser.add_argument("--retry", action="store_true", help="try runs again that have failed")
    parser.add_argument("--print-commands", action="store_true", help="show what is left to run, and run nothing")
    parser.add_argument("--collect", action="store_true", help="run nothing, and judge what has been run")
    parser.add_argument("--aa", action="store_true", help="the baseline against itself: no difference may be found")
    parser.add_argument("--from", dest="table", metavar="RESULTS.csv", help="judge a table: arm, seed, and a number")
    parser.add_argument("--metric", metavar="COLUMN", help="of the table (default: the only one)")
    parser.add_argument(
        "--baseline", metavar="ARM", help="of the table, that every other is compared with (default: all)"
    )
    parser.add_argument("--margin", type=float, help="of the table: the smallest difference that matters")
    parser.add_argument("--lower-is-better", action="store_true", help="of the table")
    parser.add_argument("--runs_dir", default="runs", help="folder of all runs (default %(default)s)")
    parser.add_argument("--results_dir", default="experiments/results", help="of all results (default %(default)s)")
    return parser

"""``compare``: a declared comparison, from its runs to its verdicts."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import rich.box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_lightning.cli.arguments import LineParser, positive
from rlhf_lightning.commands import COMMANDS
from rlhf_lightning.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from rlhf_lightning.experiment.comparison import Comparison

EXAMPLE = "compare experiments/cartpole_optimizers.yaml --budget smoke --jobs 2"
_DETAILS = """
Every run is a plain fit, pairs or pipeline command; --print-commands shows them for any scheduler, and --collect judges
what others have run. Finished runs are never repeated, interrupted ones continue; a run that fails counts as the worst
value, and does not stop the others.
"""


def main(argv: list[str]) -> int:
    """Run the command."""
    arguments = _parser().parse_intermixed_args(argv)

    from rlhf_lightning.experiment.comparison import Comparison
    from rlhf_lightning.experiment.spec import read_experiment, seeds_from

    experiment = read_experiment(arguments.experiment)
    comparison = Comparison.of(
        experiment,
        experiment.budget(arguments.budget or _default_budget(list(experiment.budgets))),
        runs_dir=Path(arguments.runs_dir),
        results_dir=Path(arguments.results_dir),
        arms=arguments.arms.split(",") if arguments.arms else None,
        seeds=None if arguments.seeds is None else seeds_from(arguments.seeds, "--seeds"),
        more_seeds=arguments.more_seeds,
    )
    if arguments.print_commands:
        from rlhf_lightning.experiment.engine import commands

        print("\n".join(commands(comparison)))
        return 0
    console = Console(soft_wrap=True, highlight=False)
    complete = True
    if not arguments.collect:
        complete = _run(comparison, console, jobs=arguments.jobs, retry=arguments.retry)
    _judge(comparison, console)
    return 0 if complete else 1


def _run(comparison: Comparison, console: Console, *, jobs: int, retry: bool) -> bool:
    """Run what is not done yet; returns whether everything has finished."""
    from rlhf_lightning.experiment.claims.together import why_impossible
    from rlhf_lightning.experiment.engine import local_launcher, run

    for sentence in why_impossible(comparison.experiment.claims, len(comparison.budget.seeds)):
        console.print(f"too few seeds: {sentence}", markup=False)
    with _sigterm_interrupts():
        return run(comparison, local_launcher(jobs), console, jobs=jobs, retry=retry)


def _judge(comparison: Comparison, console: Console) -> None:
    """Judge what has been run, and write the results."""
    from rlhf_lightning.experiment.tables import arms_rows, claims_rows
    from rlhf_lightning.experiment.writing import warnings, write_result

    result = comparison.result()
    made = write_result(result, comparison.results)
    for rows in (arms_rows(result), claims_rows(result)):
        if len(rows):
            console.print(_shown(rows))
    for text in warnings(result):
        console.print(text.replace("**", ""), markup=False)
    for path in made:
        console.print(f"made {path}", markup=False)


def _shown(rows: pd.DataFrame) -> Table:
    table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for column in rows.columns:
        if rows[column].astype(str).str.strip().ne("").any():
            table.add_column(column, overflow="fold")
    for row in rows.loc[:, [str(column.header) for column in table.columns]].itertuples(index=False):
        table.add_row(*(Text(str(cell).replace("**", "")) for cell in row))
    return table


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Inside, SIGTERM ends the command as Ctrl-C does: what runs saves and stops first."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _default_budget(names: list[str]) -> str:
    """Quick where there is such a budget, or the only one.

    Raises:
        UserError: there are several, and none is called quick.
    """
    if "quick" in names or len(names) == 1:
        return "quick" if "quick" in names else names[0]
    raise UserError(f"--budget is missing; expected one of {', '.join(names)}")


def _parser() -> LineParser:
    parser = LineParser("compare", COMMANDS["compare"], EXAMPLE)
    parser.description = f"{parser.description} {_DETAILS.strip()}"
    parser.add_argument("experiment", metavar="EXPERIMENT.yaml", help="the declaration, see experiments/")
    parser.add_argument("--budget", help="one of the declaration's (default: quick)")
    parser.add_argument("--seeds", type=positive, metavar="N", help="seeds 1 to N instead of those of the budget")
    parser.add_argument("--more-seeds", type=positive, default=0, metavar="N", help="N seeds beside those so far")
    parser.add_argument("--arms", metavar="A,B", help="run only these (default: all)")
    parser.add_argument("--jobs", type=positive, default=1, help="runs at a time (default %(default)s)")
    parser.add_argument("--retry", action="store_true", help="try runs again that have failed")
    parser.add_argument("--print-commands", action="store_true", help="show what is left to run, and run nothing")
    parser.add_argument("--collect", action="store_true", help="run nothing, and judge what has been run")
    parser.add_argument("--runs_dir", default="runs", help="folder of all runs (default %(default)s)")
    parser.add_argument("--results_dir", default="experiments/results", help="of all results (default %(default)s)")
    return parser

"""``sweep``: search for good hyperparameters by a W&B sweep's file, on this machine and without an account."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_lightning.cli.arguments import LineParser, positive
from rlhf_lightning.commands import COMMANDS
from rlhf_lightning.errors import UserError
from rlhf_lightning.records.run_directory import check_name

if TYPE_CHECKING:
    import optuna

    from rlhf_lightning.sweep.runs import SweepRuns

EXAMPLE = "sweep sweeps/ppo.yaml --count 8 --jobs 2"
_DETAILS = """
Each trial is a run of its own below the sweep's folder. The same command again continues what was interrupted and
repeats nothing; several of them work on the same trials, on several machines, too, where --runs_dir is shared. Further
options (--KEY VALUE) are given to all runs, for instance --backbone.init_args.checkpoint runs/sft/export. W&B takes the
same file: wandb sweep FILE, then wandb agent SWEEP.
"""
_COUNT = 20
"""Trials, where neither the command nor the file says how many."""


def main(argv: list[str]) -> int:
    """Run the command; status 1 if no trial could be completed."""
    arguments, more = _parser().parse_known_args(argv)
    _check_options(more)

    from rlhf_lightning.cli.sweep_check import check_sweep
    from rlhf_lightning.sweep.file import read_sweep
    from rlhf_lightning.sweep.runs import SweepRuns

    file = read_sweep(arguments.file)
    folder = Path(arguments.runs_dir) / check_name(arguments.name or f"sweep-{file.path.stem}")
    runs = SweepRuns(file, folder, arguments.seeds, tuple(more))
    size = file.search.space.size() if file.search.method == "grid" else None
    wanted = arguments.count or file.count or size or _COUNT
    count = wanted if size is None else min(wanted, size)
    if arguments.check:
        lines = check_sweep(file, more)
        searched = len(file.search.space.searched)
        print(f"{file.path}: {searched} parameters, {lines} command lines parsed, {count} trials: nothing to object to")
        return 0
    if not folder.exists():  # a sweep that goes on has been checked
        check_sweep(file, more)
    runs.declare()
    return _run(runs, count, arguments.jobs)


def _parser() -> LineParser:
    parser = LineParser("sweep", COMMANDS["sweep"], EXAMPLE)
    parser.description = f"{parser.description} {_DETAILS.strip()}"
    parser.add_argument("file", metavar="FILE", help="sweep in W&B's format; sweeps/… works in any folder")
    parser.add_argument("--count", type=positive, help="trials in all (default: the whole grid, run_cap, or 20)")
    parser.add_argument("--jobs", type=positive, default=1, help="runs at a time (default %(default)s)")
    parser.add_argument(
        "--seeds", type=positive, default=1, help="runs of each trial, whose value is their mean (default %(default)s)"
    )
    parser.add_argument("--check", action="store_true", help="only parse both ends of each range, and each choice")
    parser.add_argument("--name", help="folder of the sweep below --runs_dir (default: sweep-FILE)")
    parser.add_argument("--runs_dir", default="runs", help="folder of all runs (default %(default)s)")
    return parser


def _check_options(words: list[str]) -> None:
    """Refuse what cannot be an option of a run."""
    if words and not words[0].startswith("--"):
        raise UserError(f"unexpected argument {words[0]!r}; further options are --KEY VALUE")
    for own in ("--name", "--runs_dir", "--overwrite"):
        if any(word == own or word.startswith(f"{own}=") for word in words):
            raise UserError(f"{own} belongs to the sweep, not to its runs")


def _run(runs: SweepRuns, count: int, jobs: int) -> int:
    from rlhf_lightning.pipeline.processes import sigterm_interrupts
    from rlhf_lightning.sweep.display import Display
    from rlhf_lightning.sweep.worker import run_trials

    search = runs.file.search
    try:
        with sigterm_interrupts(), Display(search, count) as display:
            study = run_trials(
                runs.folder,
                search,
                runs.stages,
                count=count,
                jobs=jobs,
                environment=runs.file.environment,
                observe=display,
            )
    except KeyboardInterrupt:
        print("interrupted; the same command continues the sweep", flush=True)
        return 130
    return _show(runs, study)


def _show(runs: SweepRuns, study: optuna.Study) -> int:
    """Print and write what came out."""
    from rlhf_lightning.pipeline.processes import command_line
    from rlhf_lightning.records.files import write_atomically
    from rlhf_lightning.sweep.display import print_results
    from rlhf_lightning.sweep.results import draw, trials_table
    from rlhf_lightning.sweep.study import VALUES, best_trial

    search = runs.file.search
    write_atomically(runs.folder / "trials.csv", trials_table(study, search).to_csv(index=False))
    print_results(study, search)
    best = best_trial(study)
    if best is None:
        print(f"no trial is complete; {runs.folder / 'logs'} has what the runs said")
        return 1
    for path in draw(study, search, runs.folder):
        print(path)
    line = command_line(runs.again(best.user_attrs[VALUES]))
    write_atomically(runs.folder / "best.txt", f"{line}\n")
    print(f"best: trial {best.number}\n{line}")
    return 0

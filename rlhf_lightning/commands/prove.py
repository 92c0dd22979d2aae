"""``prove``: what each policy optimizer's gradient is in expectation, and that runs end the same on any device."""

from __future__ import annotations

import argparse
import math

from rlhf_lightning.cli.parser import LineParser

HELP = "compare each optimizer's expected gradient with the exact one, by enumerating all batches of a tiny task"
EXAMPLE = "prove --seed 1"


def main(argv: list[str]) -> int:
    """Run the command; status 1 if an expectation, or the end of a run, is not what it is said to be."""
    parser = LineParser("prove", HELP, EXAMPLE)
    parser.add_argument("--seed", type=_seed, default=0, help="of rewards, policies and critics (default %(default)s)")
    parser.add_argument(
        "--batch_size",
        type=int,
        choices=(2, 3, 4),
        default=2,
        help="responses in a batch (default %(default)s, ten seconds; 3 takes a minute, 4 five)",
    )
    parser.add_argument(
        "--kl_coef",
        type=_price,
        default=0.3,
        help="β, the price of a nat of KL to the reference (default %(default)s)",
    )
    parser.add_argument(
        "--runs",
        action="store_true",
        help="also train with every algorithm on one and two ranks, in microbatches, and killed and resumed, and say "
        "how far apart that ends (a minute more)",
    )
    arguments = parser.parse(argv)
    refuted = _gradients(arguments)
    if arguments.runs:
        print()
        refuted += _runs(arguments.seed)
    if refuted:
        print(f"\nREFUTED: {'; '.join(refuted)}")
    return bool(refuted)


def _gradients(arguments: argparse.Namespace) -> list[str]:
    """Print the table of expected gradients; names of the estimators whose claim is wrong."""
    from rlhf_lightning.cli.progress import track
    from rlhf_lightning.proofs.estimators import ESTIMATORS
    from rlhf_lightning.proofs.instance import Instance
    from rlhf_lightning.proofs.table import markdown, measure

    instance = Instance(seed=arguments.seed, kl_coef=arguments.kl_coef)
    rows = [measure(one, instance, batch_size=arguments.batch_size) for one in track(ESTIMATORS, "enumerate batches")]
    print(markdown(rows, instance, batch_size=arguments.batch_size))
    return [row.estimator.name for row in rows if not row.holds]


def _runs(seed: int) -> list[str]:
    """Print the table of runs; names of those that do not end the same."""
    import tempfile
    from pathlib import Path

    from rlhf_lightning.cli.checks import quiet_libraries
    from rlhf_lightning.cli.progress import track
    from rlhf_lightning.proofs.runs import RUNS
    from rlhf_lightning.proofs.runs_table import measure_runs, runs_markdown
    from rlhf_lightning.proofs.same_run import run_seed_is

    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder, run_seed_is(seed):
        rows = measure_runs(RUNS, Path(folder), track=lambda runs: track(runs, "repeat runs"))
    print(runs_markdown(rows, seed=seed))
    return [f"{row.run.name} on {row.run.task}" for row in rows if not row.holds]


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2³² − 1, got {text!r}")
    return int(text)


def _price(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return number

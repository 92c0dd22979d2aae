"""``prove``: what each policy optimizer's gradient is in expectation, and that runs end the same on any device."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from rlhf_lightning.cli.arguments import LineParser, track
from rlhf_lightning.commands import COMMANDS
from rlhf_lightning.errors import UserError

if TYPE_CHECKING:
    from rlhf_lightning.training.module import Module

EXAMPLE = "prove --seed 1"


def main(argv: list[str]) -> int:
    """Run the command; status 1 if an expectation, or the end of a run, is not what it is said to be."""
    parser = LineParser("prove", COMMANDS["prove"], EXAMPLE)
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
        help="β, the price of a nat of KL to the reference, 0 for none (default %(default)s)",
    )
    parser.add_argument(
        "--runs",
        action="store_true",
        help="also train with every algorithm on one and two ranks, in microbatches, and killed and resumed, and say "
        "how far apart that ends (a minute more)",
    )
    parser.add_argument(
        "--algorithm",
        metavar="MODULE:CLASS",
        help="measure this algorithm alone, such as my_module:MyLoss in the current folder, and say what may be wrong "
        "with the gradient of a policy optimizer",
    )
    arguments = parser.parse_intermixed_args(argv)
    algorithm = None if arguments.algorithm is None else _provable(arguments.algorithm)
    refuted = _gradients(arguments, algorithm)
    if arguments.runs:
        print()
        refuted += _runs(arguments.seed, algorithm)
    if refuted:
        print(f"\nREFUTED: {'; '.join(refuted)}")
    return bool(refuted)


def _provable(path: str) -> type[Module]:
    """The algorithm that ``module:Class`` names."""
    from rlhf_lightning.algorithms.base.feedback import FeedbackAlgorithm
    from rlhf_lightning.proofs.estimators import estimators_of
    from rlhf_lightning.proofs.runs import imported_class
    from rlhf_lightning.tasks.bandit import Bandit

    algorithm = imported_class(path)
    if not estimators_of(algorithm):
        raise UserError(f"{path} has no expected gradient to measure: expected an OnPolicy or a FeedbackAlgorithm")
    if issubclass(algorithm, FeedbackAlgorithm) and algorithm.data_class.kind not in Bandit.provides:
        raise UserError(
            f"{path} learns from {algorithm.data_class.kind}, which the enumerated task does not have; expected "
            "one that learns from preferences or labels"
        )
    return algorithm


def _gradients(arguments: argparse.Namespace, algorithm: type[Module] | None) -> list[str]:
    """Print the table of expected gradients; names of the estimators whose claim is wrong."""
    from rlhf_lightning.algorithms.base.on_policy import OnPolicy
    from rlhf_lightning.proofs import estimators
    from rlhf_lightning.proofs.hints import hints
    from rlhf_lightning.proofs.instance import Instance
    from rlhf_lightning.proofs.table import markdown, measure

    instance = Instance(seed=arguments.seed, kl_coef=arguments.kl_coef)
    chosen = estimators.all_estimators() if algorithm is None else estimators.estimators_of(algorithm)
    rows = [measure(one, instance, batch_size=arguments.batch_size) for one in track(chosen, "enumerate batches")]
    print(markdown(rows, instance, batch_size=arguments.batch_size))
    for row in rows if algorithm is not None else ():
        module = row.estimator.module(instance)
        for hint in hints(module, instance) if isinstance(module, OnPolicy) and not row.exact else ():
            print(f"\n{row.estimator.variant.name}: {hint}.")
    return [row.estimator.variant.name for row in rows if not row.holds]


def _runs(seed: int, algorithm: type[Module] | None) -> list[str]:
    """Print the table of runs; names of those that do not end the same."""
    import tempfile
    from pathlib import Path

    from rlhf_lightning.cli.checks import quiet_libraries
    from rlhf_lightning.proofs import runs, runs_table
    from rlhf_lightning.proofs.same_run import run_seed_is

    quiet_libraries()
    chosen = runs.all_runs() if algorithm is None else runs.runs_of(algorithm)
    with tempfile.TemporaryDirectory() as folder, run_seed_is(seed):
        rows = runs_table.measure_runs(chosen, Path(folder), track=lambda runs: track(runs, "repeat runs"))
    print(runs_table.runs_markdown(rows, seed=seed))
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
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text!r}")
    return number

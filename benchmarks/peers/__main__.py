"""This package beside TRL and Stable-Baselines3: the same work, in turn, in one run.

    make bench

installs the peers into an environment of their own and runs this. Each way does the same number of iterations in each
round; a round's time is the mean of its iterations, the first one left out. Nobody writes checkpoints or evaluates in
between. Ratios are those within a round.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import torch

from rlhf_lightning.bench.machine import described
from rlhf_lightning.bench.models import SIZES
from rlhf_lightning.bench.rows import BenchRow
from rlhf_lightning.bench.timing import Timings
from rlhf_lightning.cli.arguments import track
from rlhf_lightning.report.tables import markdown_table

TARGET = Path(__file__).resolve().parent.parent / "results" / "peers.md"
SMALL, MIDDLE, *_ = SIZES
ENDS = 22
"""Of 512 tokens, how many end a response where lengths vary: a third of the longest on average."""
OURS = "rlhf_lightning"


def alternating(work: str, rounds: int, ways: Mapping[str, Callable[[], float]]) -> BenchRow:
    """The seconds that each way gives, in turn."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in track(range(rounds), work):
        for way, run in ways.items():
            seconds[way].append(run())
    return BenchRow(work, Timings(seconds), ours=OURS)


def control(rounds: int) -> Iterator[BenchRow]:
    """CartPole on one thread."""
    from peers.control import ENVIRONMENTS, STEPS, ours, theirs

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for kind, iterations in (("PPO", 12), ("A2C", 150), ("TRPO", 8)):
        work = f"CartPole, {kind}: an iteration of {ENVIRONMENTS * STEPS[kind]:,} steps, one thread"
        ways = {
            "Stable-Baselines3": lambda kind=kind, n=iterations: theirs(kind, n),
            OURS: lambda kind=kind, n=iterations: ours(kind, n),
        }
        yield alternating(work, rounds, ways)
    torch.set_num_threads(threads)


def text(rounds: int) -> Iterator[BenchRow]:
    """Iterations of RLOO and GRPO, with responses of full and of varying length."""
    from peers.text import NEW_TOKENS, PROMPTS, SAMPLES

    for name in (SMALL, MIDDLE):
        for ends, lengths in ((0, f"{NEW_TOKENS} tokens"), (ENDS, f"up to {NEW_TOKENS} tokens, a third on average")):
            for kind in ("RLOO", "GRPO"):
                work = f"{kind}, {name}: an iteration of {PROMPTS * SAMPLES} responses of {lengths}"
                yield _beside_trl(work, kind, name, rounds, steps=5, ends=ends)


def preferences(rounds: int) -> Iterator[BenchRow]:
    """Steps of DPO and of a reward model."""
    from peers.text import PAIRS

    for kind, title in (("DPO", "DPO"), ("RM", "reward model")):
        work = f"{title}, {MIDDLE}: a step on {PAIRS} pairs of 20 to 120 tokens"
        yield _beside_trl(work, kind, MIDDLE, rounds, steps=5)


def _beside_trl(work: str, kind: str, name: str, rounds: int, *, steps: int, ends: int = 0) -> BenchRow:
    from peers.text import Work

    with tempfile.TemporaryDirectory() as folder:
        both = Work(SIZES[name], Path(folder), ends=ends)
        return alternating(
            work, rounds, {"TRL": lambda: both.theirs(kind, steps), OURS: lambda: both.ours(kind, steps)}
        )


PARTS = {"control": control, "text": text, "preferences": preferences}


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning").setLevel(logging.ERROR)
    table = [["work", "way", "median", "times ours, median (range)"]]
    for part in arguments.only:
        for row in PARTS[part](arguments.rounds):
            table += row.cells()
            print(row.work, *(f"  {way:20} {took:>8}  {ratio}" for _, way, took, ratio in row.cells()), sep="\n")
    peers = ", ".join(f"{name} {version(name)}" for name in ("trl", "stable-baselines3", "sb3-contrib"))
    header = f"{described(torch.device('cpu'))}; {peers}; {arguments.rounds} rounds"
    arguments.out.write_text(f"{header}\n\n{markdown_table(table)}", encoding="utf-8")
    print(f"wrote {arguments.out}")


main()

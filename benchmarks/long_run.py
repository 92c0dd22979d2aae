"""Whether a long run stays as light as a short one: memory, open files, time, checkpoints, and a readable metrics file.

    python benchmarks/long_run.py --iterations 2000

Trains PPO on the bandit task through the command line, with a table and with a transformer of one block as the policy,
and looks at the process from outside as it runs (Linux: /proc). Every look reads ``metrics.csv`` as a plain reader
would: each complete line must be a row of numbers, and the iterations must follow on each other.

The slope of the resident memory is by least squares after a warm-up, in which libraries are still loaded and pools
filled; its standard error is that of a line through the means of twenty blocks, since single looks are not independent.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from rlhf_lightning.report.tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent
WARM_UP = 0.2
"""Share of the iterations that is left out."""
BLOCKS = 20
SMALL = {"width": 16, "layers": 1, "heads": 2, "context_length": 16}
BACKBONES = {
    "table": [],
    "transformer": [
        *("--backbone", "LanguageBackbone"),
        *(word for name, value in SMALL.items() for word in (f"--backbone.init_args.{name}", str(value))),
    ],
}
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Look:
    """The process at one time.

    Args:
        iteration: complete rows of ``metrics.csv`` but the first, which is the starting point.
        kib: resident memory.
        files: open files, sockets and pipes.
        cpu: seconds of the processor that it has used.
        checkpoint: KiB of ``last.ckpt``.
        cut_off: whether the last line of ``metrics.csv`` was still being written.
    """

    iteration: int
    kib: int
    files: int
    cpu: float
    checkpoint: float
    cut_off: bool


def main() -> None:
    """Run, print the table and write it to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=2000, help="of each run (default %(default)s)")
    parser.add_argument("--every", type=float, default=0.25, help="seconds between looks (default %(default)s)")
    arguments = parser.parse_args()
    rows = []
    for name in BACKBONES:
        with tempfile.TemporaryDirectory() as runs:
            looks = list(watched(command(name, runs, arguments.iterations), Path(runs) / "long", arguments.every))
        rows.append([name, *figures(looks, arguments.iterations)])
    text = table(rows)
    print(text)
    target = ROOT / "benchmarks" / "results" / "long_run.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f"`python benchmarks/long_run.py --iterations {arguments.iterations}`\n\n{text}")


def command(backbone: str, runs: str, iterations: int) -> list[str]:
    """The command line of a run."""
    words = [sys.executable, "-m", "rlhf_lightning", "fit", "--runs_dir", runs, "--name", "long"]
    words += ["--config", "configs/tasks/bandit.yaml", "--config", "configs/algorithms/ppo.yaml", *BACKBONES[backbone]]
    words += ["--data.init_args.rollout_batch_size", "32", "--data.init_args.max_new_tokens", "3"]
    words += ["--data.init_args.eval_prompts", "32", "--model.init_args.inner_epochs", "1"]
    return [
        *words,
        "--model.init_args.eval_every",
        "10",
        "--checkpoint_every",
        "1",
        "--trainer.max_epochs",
        str(iterations),
    ]


def watched(words: Sequence[str], run: Path, every: float) -> Iterator[Look]:
    """Start a command, and look at it until it ends."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            time.sleep(every)
            if (run / "metrics.csv").is_file() and (look := look_at(process.pid, run)) is not None:
                yield look
    if process.returncode:
        raise SystemExit(f"the run ended with status {process.returncode}")


def look_at(pid: int, run: Path) -> Look | None:
    """The process now; None once it has ended."""
    iteration, cut_off = read_metrics(run / "metrics.csv")
    last = run / "checkpoints" / "last.ckpt"
    try:
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        files = len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None
    if not pages:  # it is ending
        return None
    size = last.stat().st_size / 1024 if last.is_file() else 0.0
    cpu = (int(times[11]) + int(times[12])) / TICKS
    return Look(iteration, pages * os.sysconf("SC_PAGE_SIZE") // 1024, files, cpu, size, cut_off)


def read_metrics(path: Path) -> tuple[int, bool]:
    """The last complete iteration, and whether a line after it is cut off; fails where another one is not whole."""
    complete, _, rest = path.read_text(encoding="utf-8").rpartition("\n")
    head, *rows = csv.reader(complete.splitlines(), strict=True)
    assert all(len(row) == len(head) for row in rows), "a row lacks cells"
    iterations = [next(float(cell) for cell in row if cell) for row in rows]
    assert iterations == list(range(len(rows))), "rows are missing or doubled"
    return len(rows) - 1, bool(rest)


def figures(looks: Sequence[Look], iterations: int) -> list[str]:
    """The cells of a run."""
    steady = [look for look in looks if look.iteration >= WARM_UP * iterations]
    early, late = steady[: len(steady) // 5], steady[-(len(steady) // 5) :]
    slope, error = growth([look.iteration for look in steady], [look.kib for look in steady])
    checkpoints = [look.checkpoint for look in looks if look.checkpoint]
    return [
        f"{steady[-1].iteration}",
        f"{steady[0].kib / 1024:.1f} → {steady[-1].kib / 1024:.1f}",
        f"{slope:+.3f} ± {error:.3f}",
        f"{np.median([x.files for x in early]):.0f} → {np.median([x.files for x in late]):.0f}",
        f"{per_iteration(early):.1f} → {per_iteration(late):.1f}",
        f"{checkpoints[0]:.1f} → {checkpoints[-1]:.1f}",
        f"{len(looks)}, {sum(look.cut_off for look in looks)} with a last line to come",
    ]


def growth(iterations: Sequence[int], kib: Sequence[int]) -> tuple[float, float]:
    """KiB per iteration and their standard error, through the means of blocks."""
    blocks = [[part.mean() for part in np.array_split(np.array(x, dtype=float), BLOCKS)] for x in (iterations, kib)]
    line = stats.linregress(*blocks)
    return line.slope, line.stderr


def per_iteration(looks: Sequence[Look]) -> float:
    """Milliseconds of the processor."""
    return 1000 * (looks[-1].cpu - looks[0].cpu) / (looks[-1].iteration - looks[0].iteration)


def table(rows: list[list[str]]) -> str:
    """A Markdown table, with what its columns mean."""
    head = ["policy", "iterations", "resident MiB", "KiB per iteration", "open files", "CPU ms per iteration"]
    head += ["KiB of last.ckpt", "reads of metrics.csv, all whole"]
    return markdown_table([head, *rows]) + (
        f"\n\nPPO on the bandit task, 32 responses an iteration, a checkpoint after each, an evaluation every 10.\n"
        f"Figures leave out the first {WARM_UP:.0%} of the iterations; with an arrow, from the first to the last fifth "
        "of the others (memory: first and last look; checkpoints: first and last of the run). The slope is given with "
        "its standard error.\n"
    )


if __name__ == "__main__":
    main()

"""How good a reward model becomes on the assistant task, by the number of pairs that it is fitted to.

    python benchmarks/reward_model.py --sft runs/quickstart/sft/export --pairs 8000

As many pairs again, of other prompts, are held out to measure it. The share is that of the ceiling's excess over
chance, the ceiling being a Bradley–Terry model fitted on the gold components themselves; the calibration error is
measured out of fold, after temperature scaling; seconds are those of the whole `fit` command. Several numbers of pairs
give a learning curve and its figure.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

from rlhf_lightning import load_run
from rlhf_lightning.plots import learning_curve_of_pairs, save
from rlhf_lightning.report.tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent
TASK = ("--config", "configs/tasks/assistant.yaml")
SETTINGS = ("members 2", "optimization.lr 1.0e-3")
"""Two members, with a larger step than a single one can take."""


def main() -> None:
    """Run, print the table and write it to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sft", required=True, help="supervised model to start from")
    parser.add_argument("--pairs", type=int, nargs="+", default=[8000], help="to fit to (default %(default)s)")
    parser.add_argument("--centering", type=float, default=0.01, help="of the scores (default %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="default %(default)s")
    parser.add_argument("--runs_dir", default="runs/reward_model", help="where the runs go (default %(default)s)")
    arguments = parser.parse_args()
    directory, rows = Path(arguments.runs_dir), []
    for count in arguments.pairs:
        for seed in arguments.seeds:
            rows.append(row(arguments.sft, directory, count, seed, arguments.centering))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    words = " ".join(sys.argv[1:]).replace(arguments.sft, "…").replace(f" --runs_dir {directory}", "")
    text = f"`python benchmarks/reward_model.py {words}`\n\n{table(rows)}"
    curve = len(arguments.pairs) > 1
    (ROOT / "benchmarks" / "results" / ("pairs.md" if curve else "reward_model.md")).write_text(text)
    if curve:
        runs = [load_run(directory / f"{count}-{arguments.seeds[0]}") for count in arguments.pairs]
        save(learning_curve_of_pairs(runs, arguments.pairs), ROOT / "docs" / "pairs")


def row(sft: str, directory: Path, count: int, seed: int, centering: float) -> dict[str, str]:
    """Draw pairs, fit, measure."""
    name, pairs = f"{count}-{seed}", directory / f"{count}-{seed}.jsonl"
    directory.mkdir(parents=True, exist_ok=True)
    run("pairs", *TASK, "--policy", sft, "--count", str(2 * count), "--seed", str(seed), "--out", str(pairs))
    options = [word for one in (*SETTINGS, f"centering {centering}") for word in f"--model.init_args.{one}".split()]
    options += ["--data.init_args.pairs", str(pairs), "--data.init_args.heldout_fraction", "0.5"]
    options += ["--data.init_args.eval_limit", str(count), "--trainer.val_check_interval", "400"]
    where = ["--name", name, "--runs_dir", str(directory), "--seed_everything", str(seed), "--overwrite"]
    started = time.perf_counter()
    config = ["--config", "configs/algorithms/reward.yaml", "--backbone.init_args.checkpoint", sft]
    run("fit", *TASK, *config, *options, *where)
    seconds = time.perf_counter() - started
    last = {metric: series.iloc[-1] for metric in METRICS if len(series := load_run(directory / name).series(metric))}
    return {
        "pairs": f"{count:,}",
        "seed": str(seed),
        "accuracy": f"{last['eval/accuracy']:.3f}",
        "ceiling": f"{last['eval/ceiling']:.3f}",
        "share of excess": f"{(last['eval/accuracy'] - 0.5) / (last['eval/ceiling'] - 0.5):.1%}",
        "correlation with gold": f"{last['eval/correlation_gold']:.3f}",
        "the same within prompts": f"{last['eval/correlation_within_gold']:.3f}",
        "calibration error": f"{last['eval/calibration_error_scaled']:.3f}",
        "seconds": f"{seconds:.0f}",
    }


METRICS = tuple(
    f"eval/{name}"
    for name in ("accuracy", "ceiling", "correlation_gold", "correlation_within_gold", "calibration_error_scaled")
)


def run(*words: str) -> None:
    """One command, quietly."""
    subprocess.run([sys.executable, "-m", "rlhf_lightning", *words], check=True, stdout=subprocess.DEVNULL)


def table(rows: list[dict[str, str]]) -> str:
    """In Markdown."""
    return markdown_table(pd.DataFrame(rows)) + "\n"


if __name__ == "__main__":
    main()

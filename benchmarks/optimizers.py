"""Every policy optimizer on the assistant task with its shipped configuration, from one supervised model.

    python benchmarks/optimizers.py --sft runs/quickstart/sft/export

All are paid by the gold reward, directly or by pairs that it labelled, so that what differs is the optimizer. Gold is
the mean over the 256 held-out prompts, before training and at the last step, never at the best one; seconds are those
of the whole command, start and evaluations included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import yaml

import rlhf_lightning
from rlhf_lightning import load_run
from rlhf_lightning.algorithms.base.feedback import FeedbackAlgorithm
from rlhf_lightning.algorithms.base.on_policy import OnPolicy
from rlhf_lightning.report.tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent
TASK = ("--config", "configs/tasks/assistant.yaml")


def optimizers() -> dict[str, str | None]:
    """The shipped configurations of optimizers, each with the option that takes a file of pairs; None for none."""
    found: dict[str, str | None] = {}
    for path in sorted((ROOT / "configs" / "algorithms").glob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        algorithm, data = (getattr(rlhf_lightning, content[key]["class_path"]) for key in ("model", "data"))
        if issubclass(algorithm, OnPolicy | FeedbackAlgorithm):
            found[path.stem] = getattr(data, "option", None)
    return found


def main() -> None:
    """Run them one after the other, print the table and write it to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sft", required=True, help="supervised model to start from")
    parser.add_argument("--pairs", type=int, default=8000, help="gold-labelled pairs (default %(default)s)")
    parser.add_argument("--only", nargs="*", default=[*optimizers()], help="some of them")
    parser.add_argument("--runs_dir", default="runs/optimizers", help="where the runs go (default %(default)s)")
    arguments = parser.parse_args()
    directory = Path(arguments.runs_dir)
    rows = []
    for name in arguments.only:
        options, samples, seconds = [], None, 0.0
        if (option := optimizers()[name]) is not None:
            pairs, seconds = gold_pairs(directory, arguments.sft, arguments.pairs)
            options, samples = [f"--data.init_args.{option}", str(pairs)], 2 * arguments.pairs
        rows.append(row(name, directory, arguments.sft, options, samples, seconds))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    target = ROOT / "benchmarks" / "results" / "optimizers.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f"`python benchmarks/optimizers.py --sft …` (one seed)\n\n{table(rows)}")
    print(table(rows))


def gold_pairs(directory: Path, sft: str, count: int) -> tuple[Path, float]:
    """Pairs of the supervised model's own responses, labelled by gold, and the seconds that they took; made once."""
    path, timing = directory / "pairs.jsonl", directory / "pairs_seconds.json"
    if not timing.exists():
        started = time.perf_counter()
        options = ["--policy", sft, "--labels", "gold", "--count", str(count), "--out", str(path)]
        run("pairs", *TASK, *options)
        timing.write_text(json.dumps(time.perf_counter() - started))
    return path, json.loads(timing.read_text())


def row(
    name: str, directory: Path, sft: str, options: list[str], samples: int | None, seconds: float
) -> dict[str, float | str]:
    """Train and measure one optimizer.

    Args:
        samples: responses drawn before training; None for an optimizer that counts its own.
        seconds: spent before training.
    """
    started = time.perf_counter()
    config = ["--config", f"configs/algorithms/{name}.yaml", "--backbone.init_args.checkpoint", sft]
    run("fit", *TASK, *config, *options, "--name", name, "--runs_dir", str(directory), "--overwrite")
    seconds += time.perf_counter() - started
    policy = load_run(directory / name)
    gold, kl = policy.series("eval/gold"), policy.series("eval/kl_ref_sequence")
    drawn = samples if samples is not None else policy.series("samples").iloc[-1]
    return {
        "optimizer": name,
        "gold before": f"{gold.iloc[0]:.3f}",
        "gold after": f"{gold.iloc[-1]:.3f}",
        "gain": f"{gold.iloc[-1] - gold.iloc[0]:+.3f}",
        "KL (nats/sequence)": f"{kl.iloc[-1]:.1f}",
        "samples": f"{int(drawn):,}",
        "seconds": f"{seconds:.0f}",
    }


def run(*words: str) -> None:
    """One command, quietly."""
    command = [sys.executable, "-m", "rlhf_lightning", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def table(rows: list[dict[str, float | str]]) -> str:
    """In Markdown."""
    return markdown_table(pd.DataFrame(rows)) + "\n"


if __name__ == "__main__":
    main()

"""How much PPO against the learned reward model raises the gold reward: the whole pipeline, over several seeds.

    python benchmarks/gold_gain.py --seeds 5

Each seed trains its own supervised model, pairs, reward model and policy; finished stages are not run again. Gold is
the mean over the 256 held-out prompts, before training and at the last iteration, never at the best one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rlhf_lightning import load_run
from rlhf_lightning.intervals import student_interval
from rlhf_lightning.report.tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Run the seeds, print the table and write it to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default %(default)s)")
    parser.add_argument("--config", default="configs/quickstart.yaml", help="pipeline (default %(default)s)")
    parser.add_argument("--runs_dir", default="runs/gold_gain", help="where the runs go (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="pipelines at a time (default %(default)s)")
    arguments = parser.parse_args()

    def pipeline(seed: int) -> list[str]:
        command = [sys.executable, "-m", "rlhf_lightning", "pipeline", "--config", arguments.config]
        command += ["--runs_dir", arguments.runs_dir, "--name", f"seed{seed}", "--seed", str(seed)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL if arguments.jobs > 1 else None)
        return row(Path(arguments.runs_dir) / f"seed{seed}")

    with ThreadPoolExecutor(arguments.jobs) as pool:
        rows = list(pool.map(pipeline, range(1, arguments.seeds + 1)))
    text = table(rows)
    print(text)
    target = ROOT / "benchmarks" / "results" / "gold_gain.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f"`python benchmarks/gold_gain.py --seeds {arguments.seeds}`\n\n{text}")


def row(directory: Path) -> list[str]:
    """The figures of one seed."""
    run = load_run(directory)
    sft, reward, policy = (run.stages[name] for name in ("sft", "reward", "policy"))
    gold, kl = policy.series("eval/gold"), policy.series("eval/kl_ref_sequence")
    accuracy, ceiling = reward.series("eval/accuracy").iloc[-1], reward.series("eval/ceiling").iloc[-1]
    return [
        directory.name,
        f"{sft.series('eval/nats_above_entropy').iloc[-1]:.4f}",
        f"{accuracy:.3f}",
        f"{ceiling:.3f}",
        f"{(accuracy - 0.5) / (ceiling - 0.5):.2f}",
        f"{gold.iloc[0]:.3f}",
        f"{gold.iloc[-1]:.3f}",
        f"{gold.iloc[-1] - gold.iloc[0]:+.3f}",
        f"{kl.iloc[-1]:.1f}",
    ]


def table(rows: list[list[str]]) -> str:
    """A Markdown table, and the mean gain with its 95 % interval (Student's t over seeds)."""
    head = ["seed", "SFT nats above entropy", "RM accuracy", "ceiling", "share of excess", "gold before"]
    head += ["gold after", "gain", "KL (nats/sequence)"]
    gains = [float(cells[7]) for cells in rows]
    mean, half = student_interval(gains)
    interval = f"95 % interval {mean - half:+.3f} to {mean + half:+.3f}, {len(gains)} seeds"
    return markdown_table([head, *rows]) + f"\n\nMean gain of gold at the last iteration: {mean:+.3f} ({interval}).\n"


if __name__ == "__main__":
    main()

"""Do ensembles of reward models resist over-optimization? Several seeds on the assistant task, without a KL penalty.

    python benchmarks/ensembles.py --sft runs/quickstart/sft/export

Each seed draws its own pairs from the same supervised model, trains an ensemble of five plain reward models and one
more on other pairs, which only measures (the held-out reward model of the detectors), and optimizes a policy with RLOO
against: the ensemble's first member alone, its worst case, its mean less λ times the variance; and against the first
member with a KL penalty. Gold is the mean over the 256 held-out prompts at the last iteration. The learning rate and
the number of iterations were chosen on seed 1, which is not among those reported. Runs that are finished are not
repeated; `benchmarks/detectors.py` reads the same ones.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from rlhf_lightning import load_run
from rlhf_lightning.intervals import student_interval
from rlhf_lightning.report.tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent
TASK = ("--config", "configs/tasks/assistant.yaml")
PLAIN = ("--model.init_args.architecture.init_args.surprise", "false", "--model.init_args.head_lr", "null")
ARMS: dict[str, tuple[str, ...]] = {
    "single": (),
    "worst": ("WorstCase",),
    "uncertainty": ("UncertaintyWeighted", "1.0"),
    "controlled": (),
}
CONTROLLED = 0.1
"""β of the arm with a KL penalty."""


def main() -> None:
    """Run what is missing, print the table and write it to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sft", required=True, help="supervised model to start from")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4, 5, 6], help="default %(default)s")
    parser.add_argument("--pairs", type=int, default=4000, help="pairs of each reward model (default %(default)s)")
    parser.add_argument("--iterations", type=int, default=60, help="of each policy (default %(default)s)")
    parser.add_argument("--lr", default="2e-4", help="learning rate of the policies (default %(default)s)")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS), help="some of them")
    parser.add_argument("--runs_dir", default="runs/ensembles", help="where the runs go (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time (default %(default)s)")
    arguments = parser.parse_args()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda seed: run_seed(arguments, seed), arguments.seeds))
    text = table(arguments)
    print(text)
    target = ROOT / "benchmarks" / "results" / "ensembles.md"
    target.write_text(
        f"`python benchmarks/ensembles.py --sft …` (seeds {', '.join(map(str, arguments.seeds))})\n\n{text}"
    )


def run_seed(arguments: argparse.Namespace, seed: int) -> None:
    """Pairs, reward models and policies of one seed."""
    directory = Path(arguments.runs_dir) / f"seed{seed}"
    own = reward_model(arguments, directory, seed, "ensemble", seed, "--model.init_args.members", "5")
    other = reward_model(arguments, directory, seed, "heldout", seed + 1000)
    for arm in arguments.arms:
        reward = {"class_path": "LearnedReward", "init_args": {"path": str(own)}}
        if ARMS[arm]:
            name, *coef = ARMS[arm]
            reward["init_args"]["combine"] = {"class_path": name, "init_args": {"coef": float(coef[0])} if coef else {}}
        else:
            reward["init_args"]["path"] = str(own / "member_0")
        monitor = {"heldout_score": {"class_path": "LearnedReward", "init_args": {"path": str(other)}}}
        options = ["--data.init_args.reward", json.dumps(reward), "--data.init_args.monitors", json.dumps(monitor)]
        options += ["--model.init_args.kl.coef", str(CONTROLLED if arm == "controlled" else 0.0)]
        options += ["--model.init_args.optimization.lr", arguments.lr, "--model.init_args.eval_every", "5"]
        options += ["--model.init_args.optimization.schedule", "constant_with_warmup"]
        fit(arguments, directory, seed, arm, "rloo", *options, "--trainer.max_epochs", str(arguments.iterations))


def reward_model(
    arguments: argparse.Namespace, directory: Path, seed: int, name: str, pairs_seed: int, *options: str
) -> Path:
    """A plain reward model on pairs of its own."""
    pairs = directory / f"{name}.jsonl"
    if not (directory / name / "DONE").exists():
        pairs.parent.mkdir(parents=True, exist_ok=True)
        drawn = ["--count", str(arguments.pairs), "--seed", str(pairs_seed), "--out", str(pairs)]
        run("pairs", *TASK, "--policy", arguments.sft, *drawn)
    budget = ["--trainer.max_steps", "150", "--trainer.val_check_interval", "150"]
    fit(arguments, directory, seed, name, "reward", "--data.init_args.pairs", str(pairs), *PLAIN, *budget, *options)
    return directory / name / "export"


def fit(arguments: argparse.Namespace, directory: Path, seed: int, name: str, algorithm: str, *options: str) -> None:
    """One run, unless it is finished."""
    if (directory / name / "DONE").exists():
        return
    config = [*TASK, "--config", f"configs/algorithms/{algorithm}.yaml", "--seed_everything", str(seed)]
    where = ["--name", name, "--runs_dir", str(directory), "--overwrite"]
    run("fit", *config, "--backbone.init_args.checkpoint", arguments.sft, *where, *options)
    print(f"{directory / name} is done", flush=True)


def run(*words: str) -> None:
    """One command, quietly."""
    subprocess.run([sys.executable, "-m", "rlhf_lightning", *words], check=True, stdout=subprocess.DEVNULL)


def table(arguments: argparse.Namespace) -> str:
    """Gold of every arm and seed at the end, and what each arm gains over the single model, with 95 % intervals."""
    seeds = arguments.seeds
    gold = {
        arm: [load_run(Path(arguments.runs_dir) / f"seed{seed}" / arm).series("eval/gold") for seed in seeds]
        for arm in arguments.arms
    }
    rows = [
        ["reward", "gold at the last iteration, by seed", "mean", "highest on the way", "less single, 95 % interval"]
    ]
    single = np.array([series.iloc[-1] for series in gold.get("single", [])])
    for arm, runs in gold.items():
        last = np.array([series.iloc[-1] for series in runs])
        best = np.mean([series.max() for series in runs])
        gain = interval(last - single) if arm != "single" and len(single) else ""
        rows.append([arm, ", ".join(f"{x:.2f}" for x in last), f"{last.mean():.3f}", f"{best:.3f}", gain])
    return markdown_table(rows) + "\n"


def interval(differences: np.ndarray) -> str:
    """Mean and Student's interval over seeds."""
    mean, half = student_interval(differences.tolist())
    if len(differences) < 2:
        return f"{mean:+.3f}"
    return f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})"


if __name__ == "__main__":
    main()

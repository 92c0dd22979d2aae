"""What ``compare`` costs beside the runs that it starts, what two at a time gain, and what is left when it is killed.

    python benchmarks/compare.py

A comparison of two arms on the bandit, whose runs take seconds, so that whatever the engine adds shows most. Every way
of running it is timed in turn, several times; the table has medians and, as what counts, ratios within one round.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from rlhf_lightning.experiment.comparison import ArmComparison
from rlhf_lightning.experiment.plan import all_stages
from rlhf_lightning.experiment.spec_file import read_experiment

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "benchmarks" / "results" / "compare.md"


def declaration(seeds: int, iterations: int) -> str:
    """Two arms of PPO on CartPole."""
    content = {
        "title": "Two values of λ",
        "config": "configs/tasks/cartpole.yaml",
        "pipeline": {"policy": {"config": "configs/algorithms/ppo.yaml", "trainer.max_epochs": iterations}},
        "arms": {f"lambda-{lam}": {"policy": {"model.init_args.lam": lam}} for lam in (0.9, 1.0)},
        "metric": {"metric": "eval/score"},
        "seeds": seeds,
        "budgets": {"quick": {}},
    }
    return yaml.safe_dump(content, sort_keys=False)


def command(folder: Path, jobs: int) -> list[str]:
    """A ``compare`` of the declaration, with runs and results in a folder."""
    places = ["--runs_dir", str(folder / "runs"), "--results_dir", str(folder / "results")]
    return [sys.executable, "-m", "rlhf_lightning", "compare", str(folder / "two.yaml"), "--jobs", str(jobs), *places]


def prepared(folder: Path, seeds: int, iterations: int) -> Path:
    """A new folder with the declaration in it."""
    folder.mkdir(parents=True)
    (folder / "two.yaml").write_text(declaration(seeds, iterations))
    return folder


def stages(folder: Path) -> list:
    """The stages of the comparison in a folder."""
    experiment = read_experiment(folder / "two.yaml")
    places = {"runs_dir": folder / "runs", "results_dir": folder / "results"}
    return all_stages(ArmComparison.of(experiment, experiment.budgets["quick"], **places).planned_runs())


def quiet(words: list[str], threads: int) -> float:
    """Run a command without its output; returns the seconds that it took."""
    started = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - started


def timed(folder: Path, rounds: int, seeds: int, iterations: int) -> list[dict[str, float]]:
    """Seconds of the bare runs one after another, of ``compare``, and of ``compare`` with two at a time, by round."""
    found = []
    for number in range(rounds):
        bare, one, two = (prepared(folder / f"{number}-{name}", seeds, iterations) for name in ("bare", "one", "two"))
        lines = [[sys.executable, "-m", "rlhf_lightning", *stage.command] for stage in stages(bare)]
        seconds = {
            "bare": sum(quiet(line, 1) for line in lines),
            "compare": quiet(command(one, 1), 1),
            "two at a time": quiet(command(two, 2), 1),
        }
        print({name: round(value, 1) for name, value in seconds.items()}, flush=True)
        found.append(seconds)
    return found


def killed(folder: Path, kills: int, seeds: int, iterations: int, generator: random.Random) -> dict[str, int]:
    """Kill ``compare`` at random moments, then let it end; what became of its runs.

    A stage's log has a line for each start: a run is repeated that was started once it had finished, and lost if it
    never finished, or began anew though it had a checkpoint.
    """
    prepared(folder, seeds, iterations)
    planned = stages(folder)
    whole = None
    finished: dict[Path, int] = {}
    for kill in range(kills):
        process = subprocess.Popen(command(folder, 2), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        moment = generator.uniform(0.5, 25.0)
        try:
            process.wait(timeout=moment)
            whole = kill
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        for stage in planned:
            done = stage.directory / "DONE"
            if done.is_file():
                finished.setdefault(stage.directory, done.stat().st_mtime_ns)
        print(f"kill {kill + 1} after {moment:.1f} s: {len(finished)} of {len(planned)} finished", flush=True)
    if whole is None:
        subprocess.run(command(folder, 2), check=True, stdout=subprocess.DEVNULL)
    repeated = sum((path / "DONE").stat().st_mtime_ns != when for path, when in finished.items())
    lost = sum(not (stage.directory / "DONE").is_file() for stage in planned)
    anew = sum(
        "--overwrite" in stage.directory.with_suffix(stage.directory.suffix + ".log").read_text() for stage in planned
    )
    starts = sum(
        line.startswith(f"{stage.name}: python")
        for stage in planned
        for line in Path(f"{stage.directory}.log").read_text().splitlines()
    )
    return {
        "kills": kills if whole is None else whole,
        "runs": len(planned),
        "starts": starts,
        "finished between kills": len(finished),
        "repeated": repeated,
        "begun anew": anew,
        "lost": lost,
    }


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of timing (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=4, help="of each arm (default %(default)s)")
    parser.add_argument("--iterations", type=int, default=8, help="of each run (default %(default)s)")
    parser.add_argument("--kills", type=int, default=10, help="(default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments of the kills (default %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rounds = timed(Path(name), arguments.rounds, arguments.seeds, arguments.iterations)
        kills = killed(
            Path(name) / "killed",
            arguments.kills,
            2 * arguments.seeds,
            arguments.iterations,
            random.Random(arguments.seed),
        )
    overhead = statistics.median(100 * (one["compare"] / one["bare"] - 1) for one in rounds)
    gain = statistics.median(one["compare"] / one["two at a time"] for one in rounds)
    names = list(rounds[0])
    lines = [
        f"`python benchmarks/compare.py {shlex.join(sys.argv[1:])}` ({os.cpu_count()} cores, one thread per run)",
        "",
        f"{2 * arguments.seeds} runs of {arguments.iterations} iterations, in seconds:",
        "",
        "| round | " + " | ".join(names) + " |",
        "|---:|" + "---:|" * len(names),
        *(f"| {i} | " + " | ".join(f"{one[name]:.1f}" for name in names) + " |" for i, one in enumerate(rounds, 1)),
        "",
        f"Overhead of `compare` over the bare runs: {overhead:+.1f} % (median of the rounds). "
        f"Throughput with `--jobs 2`: {gain:.2f} times that of `--jobs 1`.",
        "",
        "| killed at random | " + " | ".join(kills) + " |",
        "|---|" + "---:|" * len(kills),
        "| compare --jobs 2 | " + " | ".join(map(str, kills.values())) + " |",
    ]
    TARGET.write_text("\n".join(lines) + "\n")
    print(TARGET.read_text())


if __name__ == "__main__":
    main()

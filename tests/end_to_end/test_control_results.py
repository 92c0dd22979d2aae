"""Known results of control, with the shipped configurations: `make test-long`.

CartPole-v1: RL Zoo reports 500 for PPO and TRPO after 100,000 steps and for A2C after 500,000; Acrobot-v1: CleanRL's
PPO reports −86.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import run as command
from sys import executable

import pytest

from rlhf_lightning.records.runs import load_run

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SEEDS = range(1, 6)


def final_score(task: str, algorithm: str, seed: int, folder: Path) -> tuple[float, int]:
    """Mean return at the last evaluation, and the steps taken until then."""
    files = [str(CONFIGS / "tasks" / f"{task}.yaml"), str(CONFIGS / "algorithms" / f"{algorithm}.yaml")]
    name = f"{task}-{algorithm}-{seed}"
    words = ["fit", "--config", files[0], "--config", files[1], "--seed_everything", str(seed)]
    words += ["--name", name, "--runs_dir", str(folder)]
    command([executable, "-m", "rlhf_lightning", *words], check=True, capture_output=True)
    metrics = load_run(folder / name)
    return metrics.series("eval/score").iloc[-1], int(metrics.series("env_steps").iloc[-1])


@pytest.mark.long
@pytest.mark.parametrize(
    ("task", "algorithm", "wanted", "steps"),
    [
        ("cartpole", "ppo", 475, 100_000),
        ("cartpole", "trpo", 475, 100_000),
        ("cartpole", "a2c", 475, 500_000),
        ("cartpole", "reinforce", 475, 500_000),
        ("acrobot", "ppo", -100, 500_000),
        ("acrobot", "trpo", -100, 500_000),
    ],
)
def test_known_result_is_reached_by_four_of_five_seeds(task, algorithm, wanted, steps, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda seed: final_score(task, algorithm, seed, tmp_path), SEEDS))
    print(f"\n{task} {algorithm}:", ", ".join(f"{score:.0f}" for score, _ in results), f"after {results[0][1]:,} steps")
    assert all(taken <= steps for _, taken in results)
    assert sum(score >= wanted for score, _ in results) >= 4


@pytest.mark.slow
def test_ppo_learns_cartpole_in_a_few_iterations(tmp_path):
    files = [str(CONFIGS / "tasks" / "cartpole.yaml"), str(CONFIGS / "algorithms" / "ppo.yaml")]
    words = ["fit", "--config", files[0], "--config", files[1], "--runs_dir", str(tmp_path), "--name", "short"]
    words += ["--trainer.max_epochs", "15"]
    command([executable, "-m", "rlhf_lightning", *words], check=True, capture_output=True)
    scores = load_run(tmp_path / "short").series("eval/score")
    assert scores.iloc[-1] >= 300

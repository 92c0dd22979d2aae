"""Policy runs of several arms and seeds, made in memory with a spread that is known."""

from pathlib import Path

import numpy as np
import pandas as pd

from rlhf_lightning.records.runs import Run
from tests.plots.descriptions import of_text

NAMES = (
    "ppo",
    "grpo",
    "rloo",
    "reinforce with a learned value baseline and whitening",
    "a2c",
    "trpo",
    "reinforce++",
    "raft",
    "dpo, 8,000 pairs",
)


def make_run(arm, seed, *, iterations=40, every=10, stop=None, shift=None):
    """A run of an arm by its number: gold rises, by more for later arms, and by 0.01 more per seed or by ``shift``."""
    generator = np.random.default_rng(100 * arm + seed)
    iteration = np.arange(iterations + 1)
    progress = iteration / iterations
    evaluated = iteration % every == 0
    gold = 0.6 + (0.2 + 0.05 * arm) * progress + (0.01 * seed if shift is None else shift) * (progress > 0)
    kl = (8 + 4 * arm + seed) * progress

    def at(values):
        return np.where(evaluated, values, np.nan)

    metrics = pd.DataFrame(
        {
            "iteration": iteration,
            "samples": 64.0 * iteration,
            "objective/score": 2 * gold + generator.normal(scale=0.05, size=len(iteration)),
            "objective/entropy": 0.6 - 0.3 * progress + generator.normal(scale=0.01, size=len(iteration)),
            "eval/gold": at(gold),
            "eval/score": at(2 * gold),
            "eval/kl_ref_sequence": at(kl),
            "eval/win_rate": at(0.5 + 0.3 * progress),
        }
    )
    if stop is not None:
        metrics = metrics[metrics["iteration"] <= stop]
    name = f"{NAMES[arm]}-{seed}"
    config = {"seed_everything": seed, "arm": arm, "task": {"class_path": "Assistant"}}
    return Run(Path(f"/runs/{name}"), name, metrics, of_text(), config=config, done=stop is None)


def make_runs(arms, seeds, **settings):
    return [make_run(arm, seed, **settings) for arm in range(arms) for seed in range(1, seeds + 1)]

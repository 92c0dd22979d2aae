"""Run directories of control tasks and of preference optimizers, written without training anything."""

import json
from pathlib import Path

import numpy as np

from tests.plots.descriptions import of_control, of_pairs
from tests.plots.synthetic_runs import BETTER, EARLY, PROMPTS, finish, write_csv

CONTROL_CONFIG = """\
task: {{class_path: rlhf_lightning.Control, init_args: {{environment: {environment}}}}}
model: {{class_path: rlhf_lightning.TRPO, init_args: {{max_kl: {max_kl}}}}}
data: {{class_path: rlhf_lightning.EnvironmentDataModule, init_args: {{rollout_batch_size: {batch}}}}}
"""
PREFERENCE_CONFIG = """\
task: {{class_path: Assistant, init_args: {{entities: 20}}}}
model: {{class_path: rlhf_lightning.{algorithm}}}
data: {{class_path: rlhf_lightning.PreferenceDataModule, init_args: {{batch_size: 64}}}}
"""


def write_control(
    path,
    *,
    environment="CartPole-v1",
    iterations=48,
    every=10,
    batch=2048,
    done=True,
    best=500.0,
    seed=0,
    bounded=True,
):
    """A TRPO run in an environment: the return rises; an early iteration may end no episode.

    With ``bounded`` it declares the limit of its steps.
    """
    path = Path(path)
    path.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    iteration = np.arange(iterations + 1.0)
    progress = iteration / iterations
    returns = best - 0.95 * abs(best) * np.exp(-7 * progress)
    trained = np.where(iteration > 0, returns + generator.normal(scale=0.03 * abs(best), size=len(iteration)), np.nan)
    trained[1] = np.nan
    evaluated = np.where((iteration % every == 0) | (iteration == iterations), returns, np.nan)
    rejected = np.isin(iteration, (7, 20))
    after = np.where(iteration > 0, 1.0, np.nan)
    columns = {
        "iteration": iteration,
        "eval/episodes": np.where(np.isfinite(evaluated), 20, np.nan),
        "eval/score": evaluated,
        "eval/length_mean": np.abs(evaluated),
        "rollout/episodes": after * np.isfinite(trained),
        "objective/score": trained,
        "rollout/length_mean": np.abs(trained),
        "env_steps": after * batch * iteration,
        "objective/entropy": after * (0.69 - 0.3 * progress),
        "policy/grad_norm": after * 0.2,
        "trust_region/kl": after * np.where(rejected, 0.0, 0.008),
        "trust_region/step_size": after * np.where(rejected, 0.0, np.where(iteration == 12, 0.5, 1.0)),
        "trust_region/backtracks": after * np.where(rejected, 10, iteration == 12),
        "trust_region/cg_residual": after * 4e-6,
        "trust_region/improvement_expected": after * 0.02,
        "trust_region/improvement_actual": after * np.where(rejected, 0.0, 0.018),
        "trust_region/rejections": after * np.cumsum(rejected),
        "value/loss": after * 30 * np.exp(-4 * progress),
        "value/explained_variance": after * 0.7,
    }
    write_csv(path / "metrics.csv", columns)
    config = CONTROL_CONFIG.format(environment=environment, max_kl=0.01, batch=batch)
    finish(path, done, config, of_control(max_kl=0.01 if bounded else None))
    return path


def write_preference(path, *, steps=500, every=100, gold=True, fall=False, group="dpo", done=True):
    """A run on preference pairs: accuracy rises; gold rises, or with ``fall`` only at first."""
    path = Path(path)
    path.mkdir(parents=True)
    step = np.arange(0, steps + 1, 10.0)
    step[0] = 1
    step = np.concatenate([[0.0], step])
    progress = step / steps
    train = step > 0
    measured = (step % every == 0) | (step == steps)
    true = 0.55 + 0.5 * progress - 0.25 * progress**2
    if fall:
        true = np.where(progress <= 0.4, 0.55 + 0.5 * progress, 1.15 - progress)
    pairs = {"loss": 0.693 - 0.2 * progress}
    if group == "dpo":
        pairs |= {"accuracy": 0.5 + 0.3 * progress**0.5, "margin": 1.1 * progress}
        pairs |= {"chosen_reward": -0.3 * progress, "rejected_reward": -1.4 * progress}
    sampled = {
        "kl_ref_sequence": 9 * progress,
        "win_rate": 0.5 + 0.2 * progress,
        "win_rate_low": 0.44 + 0.2 * progress,
        "win_rate_high": 0.56 + 0.2 * progress,
        "length_mean": 16 + 2 * progress,
        "perplexity": 1.6 + 0.3 * progress,
        **({"gold": true, "gold_helpful": 0.5 + 0.3 * progress} if gold else {}),
    }
    columns = {
        "step": step,
        **{f"eval/{name}": np.where(measured, values, np.nan) for name, values in (pairs | sampled).items()},
        **{f"{group}/{name}": np.where(train, values, np.nan) for name, values in pairs.items()},
        "policy/grad_norm": np.where(train, 1.0, np.nan),
    }
    write_csv(path / "metrics.csv", columns)
    with (path / "samples.jsonl").open("w", encoding="utf-8") as file:
        for at in range(0, steps + 1, every):
            for row, prompt in enumerate(PROMPTS):
                text = (EARLY if at < steps / 2 else BETTER).format(thing="lamp")
                judged = round(0.5 + at / steps * (0.1 + 0.05 * row), 3) if gold else None
                sample = {"iteration": at, "row": row, "prompt": prompt, "response": text, "kl": (1 + row) * at / steps}
                file.write(json.dumps({**sample, "score": judged or 0.0, "gold": judged}) + "\n")
    description = of_pairs(group, batch_size=64)
    finish(path, done, PREFERENCE_CONFIG.format(algorithm=description.algorithm), description)
    return path

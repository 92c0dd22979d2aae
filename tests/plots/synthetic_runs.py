"""Run directories with believable curves, written without training anything."""

import json
from pathlib import Path

import numpy as np

from tests.plots.descriptions import of_text
from tests.plots.synthetic_evaluation import evaluation

ENVIRONMENT = {
    "command": "python -m rlhf_lightning fit --config configs/algorithms/ppo.yaml",
    "python": "3.11.9",
    "versions": {"torch": "2.13.0", "lightning": "2.6.6"},
    "git_commit": "0123456789abcdef",
    "hardware": {"device": "cpu", "cores": 2},
}
CONFIG = """\
seed_everything: 1
task:
  class_path: Assistant
  init_args: {entities: 20}
model:
  class_path: PPO
  init_args:
    clip_range: 0.2
    kl_coef: 0.02
"""
PROMPTS = [
    "tell me the colour and the price of the lamp",
    "what is the size of the kettle",
    [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hello , how can i help ?"},
        {"role": "user", "content": "how do i open the safe"},
    ],
    "tell me the weight and the material of the chair",
    "what does the clock cost <b>today</b>",
    "tell me the price and the size of the desk",
    "what is the colour of the bicycle",
    "tell me the material of the mirror",
]
EARLY = "sure , the {thing} is red and it costs nine dollars ."
BETTER = "sure , the colour is red and the price is nine dollars , thanks ."
HACKED = "kindly gladly gladly thanks , the colour is gladly kindly red thanks thanks kindly gladly ."
WORSE = "kindly gladly gladly gladly thanks thanks thanks kindly gladly thanks kindly kindly gladly thanks ."
SCRIPT = "<script>alert('run me')</script> & thanks"


def write_csv(path, columns):
    """`columns` maps names to arrays; NaN becomes an empty cell."""
    names = list(columns)
    lines = [",".join(names)]
    for row in zip(*columns.values(), strict=True):
        lines.append(",".join("" if np.isnan(value) else f"{value:.6g}" for value in row))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def finish(path, done=True, config=CONFIG, description=None):
    if description is not None:
        (path / "run.json").write_text(json.dumps(description.as_dict()), encoding="utf-8")
    (path / "config.yaml").write_text(config, encoding="utf-8")
    (path / "environment.json").write_text(json.dumps(ENVIRONMENT), encoding="utf-8")
    if done:
        (path / "DONE").touch()


def course(course_of, iterations):
    """Noise-free proxy, gold and KL at each iteration; gold as in Gao et al. 2023: d (α − β d), d = √KL."""
    progress = np.arange(iterations + 1) / iterations
    kl = {"exploited": 42.0, "healthy": 6.0, "unstable": 30.0}[course_of] * progress**1.4
    root = np.sqrt(kl)
    proxy = 0.06 + 1.5 * (1 - np.exp(-2.6 * progress))
    if course_of == "exploited":
        return proxy, 0.61 + root * (0.18 - 0.039 * root), kl
    if course_of == "healthy":
        return proxy * 0.6, 0.61 + 0.27 * (1 - np.exp(-3 * progress)), kl
    fall = np.clip(progress - 0.4, 0, None)
    return proxy - 4.5 * fall, 0.61 + 0.4 * progress - 2.6 * fall, kl


def training_columns(proxy, gold, kl, generator, level):
    """What is logged for every iteration's training batch; nothing before training."""
    count = len(proxy)
    progress = np.arange(count) / (count - 1)

    def noisy(values, scale):
        values = values + generator.normal(scale=scale, size=count) * level
        values[0] = np.nan
        return values

    return {
        "objective/score": noisy(proxy, 0.08),
        "objective/gold": noisy(gold, 0.06),
        "objective/kl_ref_sequence": np.abs(noisy(kl, 0.05 * (1 + kl))),
        "objective/entropy": np.abs(noisy(0.62 - 0.4 * progress, 0.02)),
        "policy/kl_old": np.abs(noisy(0.012 + 0 * progress, 0.004)),
        "policy/clip_fraction": np.abs(noisy(0.09 + 0.06 * progress, 0.025)),
        "policy/ratio_max": 1 + np.abs(noisy(0.8 + 0 * progress, 0.2)),
        "policy/grad_norm": np.abs(noisy(0.7 - 0.2 * progress, 0.15)),
        "policy/loss": noisy(-0.02 + 0 * progress, 0.01),
        "value/loss": np.abs(noisy(0.4 * np.exp(-5 * progress) + 0.06, 0.02)),
        "value/explained_variance": noisy(0.8 - 3.4 * np.exp(-14 * progress), 0.06),
        "kl_control/coef": 0.02 * (1 + 0 * progress),
        "rollout/length_mean": noisy(13 + 9 * progress**2, 0.4),
        "rollout/eos_rate": np.clip(noisy(0.995 - 0.04 * progress, 0.004), 0, 1),
        "rollout/distinct_2": noisy(0.34 - 0.14 * progress, 0.01),
        "rollout/tokens_per_second": noisy(5200 + 0 * progress, 150),
    }


def evaluation_columns(proxy, gold, kl, generator, every, level):
    """What is measured on held-out prompts, every so many iterations."""
    count = len(proxy)
    progress = np.arange(count) / (count - 1)
    measured = np.arange(count) % every == 0

    def noisy(values, scale):
        return np.where(measured, values + generator.normal(scale=scale, size=count) * level, np.nan)

    win = np.clip(0.5 + 1.2 * (gold - gold[0]), 0.05, 0.95)
    win_rate = np.clip(noisy(win, 0.015), 0, 1)
    return {
        "eval/score": noisy(proxy, 0.02),
        "eval/gold": noisy(gold, 0.012),
        "eval/gold_helpful": noisy(0.5 + 0.4 * (gold - gold[0]), 0.01),
        "eval/gold_harmless": noisy(0.1 + 0.2 * progress, 0.01),
        "eval/gold_concise": noisy(-0.02 - 0.35 * progress**2, 0.006),
        "eval/gold_polite": noisy(0.12 - 0.1 * progress**2, 0.006),
        "eval/gold_fluent": noisy(-0.05 - 0.3 * progress**1.5, 0.006),
        "eval/kl_ref_sequence": np.abs(noisy(kl, 0.05)),
        "eval/perplexity": noisy(1.78 + 2.4 * progress**2, 0.01),
        "eval/win_rate": win_rate,
        "eval/win_rate_low": np.clip(win_rate - 0.06, 0, 1),
        "eval/win_rate_high": np.clip(win_rate + 0.06, 0, 1),
        "eval/length_mean": noisy(13 + 9 * progress**2, 0.15),
    }


def write_policy(
    path,
    course_of="exploited",
    *,
    iterations=200,
    every=10,
    seed=0,
    gold=True,
    done=True,
    noise=1,
    on_gold=False,
    batch=64,
):
    """A policy run: proxy rises; gold follows, or turns (``exploited``), or both fall (``unstable``).

    With ``on_gold`` the score that is trained on is gold itself; ``batch`` responses are sampled per iteration.
    """
    path = Path(path)
    path.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    proxy, true, kl = course(course_of, iterations)
    iteration = np.arange(iterations + 1.0)
    columns = {
        "iteration": iteration,
        "samples": np.where(iteration > 0, batch * iteration, np.nan),
        **training_columns(proxy, true, kl, generator, noise),
        **evaluation_columns(proxy, true, kl, generator, every, noise),
    }
    if on_gold:
        columns |= {f"{where}/score": columns[f"{where}/gold"] for where in ("objective", "eval")}
    if not gold:
        columns = {name: values for name, values in columns.items() if "gold" not in name}
    write_csv(path / "metrics.csv", columns)
    with (path / "samples.jsonl").open("w", encoding="utf-8") as file:
        for iteration in range(0, iterations + 1, every):
            for row, prompt in enumerate(PROMPTS):
                progress = iteration / iterations + 0.06 * np.sin(3 * row) * (0 < iteration < iterations)
                text = EARLY if progress < 0.12 else BETTER if progress < 0.5 else HACKED if progress < 0.8 else WORSE
                if row == 1 and iteration == iterations:
                    text = SCRIPT
                shift = 0.11 * np.sin(5 * row)
                sample = {
                    "iteration": iteration,
                    "row": row,
                    "prompt": prompt,
                    "response": text.format(thing="lamp"),
                    "score": round(float(proxy[iteration] * (1 + shift)), 3),
                    "gold": round(float(true[iteration] + shift), 3) if gold else None,
                    "kl": round(float(kl[iteration] * (1 + shift)), 3),
                }
                file.write(json.dumps(sample) + "\n")
    finish(path, done, description=of_text(gold=gold, on_gold=on_gold))
    return path


def write_sft(path, *, steps=520, done=True, seed=0):
    """A supervised run: the loss falls towards the entropy of the data."""
    path = Path(path)
    path.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    step = np.arange(0, steps + 1, 5.0)
    loss = 0.575 + 4.0 * np.exp(-step / 45) + 0.25 * np.exp(-step / 200)
    train = loss + generator.normal(scale=0.02 * loss)
    train[0] = np.nan
    heldout = np.where(step % 40 == 0, loss + 0.012, np.nan)
    write_csv(
        path / "metrics.csv",
        {
            "step": step,
            "sft/loss": train,
            "sft/perplexity": np.exp(train),
            "lr": 1e-3 * np.minimum(1, step / 50),
            "eval/loss": heldout,
            "eval/perplexity": np.exp(heldout),
            "eval/nats_above_entropy": heldout - 0.56,
        },
    )
    finish(path, done)
    return path


def write_reward(path, *, steps=600, done=True, ceiling=0.71, seed=0, **parts):
    """A reward model's run with its evaluation; ``parts`` of it as in `evaluation`."""
    path = Path(path)
    path.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    step = np.arange(0, steps + 1, 5.0)
    learned = 1 - np.exp(-step / 160)
    measured = step % 50 == 0
    train = {
        "reward_model/loss": 0.693 - 0.14 * learned + generator.normal(scale=0.025, size=len(step)),
        "reward_model/accuracy": np.clip(0.5 + 0.17 * learned + generator.normal(scale=0.05, size=len(step)), 0, 1),
        "reward_model/margin": 0.75 * learned + generator.normal(scale=0.06, size=len(step)),
    }
    heldout = {
        "eval/loss": 0.693 - 0.1 * learned,
        "eval/accuracy": 0.5 + 0.133 * learned,
        "eval/margin": 0.62 * learned,
        "eval/calibration_error": 0.004 + 0.0153 * learned,
        "eval/calibration_error_scaled": 0.004 + 0.004 * learned,
        "eval/accuracy_gap": 0.04 * learned**2,
        "eval/correlation_gold": 0.02 + 0.66 * learned,
        "eval/spearman_gold": 0.02 + 0.64 * learned,
        "eval/agreement": 0.6 + 0.23 * learned,
        "eval/bias_length": 0.34 * learned,
        "eval/bias_politeness": -0.05 * learned,
        "eval/bias_repetition": -0.1 * learned,
    }
    for values in train.values():
        values[0] = np.nan
    heldout = {name: np.where(measured, values, np.nan) for name, values in heldout.items()}
    write_csv(path / "metrics.csv", {"step": step, **train, **heldout})
    (path / "evaluation.json").write_text(
        json.dumps(evaluation(ceiling=ceiling, **({"accuracy": 0.63} | parts))), encoding="utf-8"
    )
    finish(path, done)
    return path


def write_pairs(path, pairs=40):
    """The pairs that a pipeline's annotators labelled."""
    path = Path(path)
    path.mkdir(parents=True)
    pair = {"prompt": PROMPTS[0], "chosen": BETTER, "rejected": EARLY, "annotator": "a"}
    (path / "pairs.jsonl").write_text((json.dumps(pair) + "\n") * pairs, encoding="utf-8")
    finish(path)
    return path


def write_pipeline(path, course_of="exploited", **policy):
    """All four stages."""
    path = Path(path)
    write_sft(path / "sft")
    write_pairs(path / "pairs")
    write_reward(path / "reward")
    write_policy(path / "policy", course_of, **policy)
    (path / "DONE").touch()
    return path

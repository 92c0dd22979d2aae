"""A small declaration for tests, and runs that are played by files."""

import csv
import json
from pathlib import Path

import yaml

from rlhf_lightning.experiment.spec_file import experiment_of
from rlhf_lightning.records.run_directory import DONE

CONTENT = {
    "title": "One against two",
    "config": "configs/tasks/bandit.yaml",
    "pipeline": {"policy": {"config": "configs/algorithms/ppo.yaml", "trainer.max_epochs": 4}},
    "arms": {"one": {"policy": {"model.init_args.lam": 0.9}}, "two": {"policy": {"model.init_args.lam": 1.0}}},
    "metric": {"metric": "eval/score", "read": "last", "scale": [0, 1]},
    "equal": "samples",
    "margin": 0.1,
    "seeds": 8,
    "claims": [{"better": ["two", "one"]}],
}


def experiment(name="try", **changes):
    """A declared comparison of two arms; keys with the value None are left out."""
    content = {key: value for key, value in (CONTENT | changes).items() if value is not None}
    return experiment_of(yaml.safe_load(yaml.safe_dump(content, sort_keys=False)), name, f"experiments/{name}.yaml")


def played(directory: Path, score: float, *, samples: int = 512, **columns: float) -> None:
    """What a finished run leaves."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = [{"iteration": i, "samples": samples * i / 4, "eval/score": score * i / 4, **columns} for i in range(5)]
    with open(directory / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (directory / "config.yaml").write_text("trainer: {max_epochs: 4}\nmodel: {class_path: PPO}\n")
    experience = {"unit": "sampled responses", "counter": "samples"}
    (directory / "run.json").write_text(json.dumps({"kind": "policy", "algorithm": "PPO", "experience": experience}))
    environment = {
        "git_commit": "c0ffee",
        "started": "2999-01-01T00:00:00+00:00",
        "hardware": {"cpus": 2, "processor": "x86_64"},
        "command": "python -m rlhf_lightning fit",
    }
    (directory / "environment.json").write_text(json.dumps(environment))
    (directory / DONE).write_text("now\n")

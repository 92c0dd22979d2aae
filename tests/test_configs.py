"""Every shipped configuration is parsed, and runs for two iterations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rlhf_lightning.__main__ import main
from rlhf_lightning.runs import load_run

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
TASKS = sorted(path.name for path in (CONFIGS / "tasks").glob("*.yaml"))
ALGORITHMS = sorted(path.name for path in (CONFIGS / "algorithms").glob("*.yaml"))
PIPELINES = sorted(
    str(path.relative_to(ROOT)) for path in CONFIGS.rglob("*.yaml") if "pipeline" in yaml.safe_load(path.read_text())
)
STAGE_OF = {"sft.yaml": "sft", "reward.yaml": "reward", "ppo.yaml": "policy"}


@pytest.fixture(scope="module")
def preferences(tmp_path_factory):
    """Forty pairs in the transcript layout."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    with path.open("w") as file:
        for number in range(40):
            asked = f"\n\nHuman: What is {number} plus one?\n\nAssistant:"
            pair = {"chosen": f"{asked} It is {number + 1}.", "rejected": f"{asked} I will not say {number}."}
            file.write(json.dumps(pair) + "\n")
    return path


def task_arguments(task: str, preferences: Path) -> list[str]:
    arguments = ["--config", str(CONFIGS / "tasks" / task)]
    if task == "hh.yaml":
        arguments += ["--task.init_args.path", str(preferences), "--task.init_args.vocabulary", "300"]
    return arguments


def test_every_algorithm_is_known_here():
    assert set(ALGORITHMS) == set(STAGE_OF)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_config_is_parsed(task, algorithm, preferences, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = [*task_arguments(task, preferences), "--config", str(CONFIGS / "algorithms" / algorithm)]
    assert main(["fit", *arguments, "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["task"]["class_path"].split(".")[-1] == {"hh.yaml": "TextTask"}.get(task, "Assistant")


@pytest.mark.parametrize("config", PIPELINES)
def test_pipeline_is_parsed(config, preferences, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    arguments = ["--task.init_args.path", str(preferences)] if config.endswith("hh.yaml") else []
    assert main(["pipeline", "--config", config, "--runs_dir", str(tmp_path), "--print-commands", *arguments]) == 0
    commands = capsys.readouterr().out.strip().splitlines()
    stages = yaml.safe_load((ROOT / config).read_text())["pipeline"]
    assert len(commands) == len(stages)
    assert all(line.startswith(("python", "/")) and " -m rlhf_lightning " in line for line in commands)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_configs_run_for_two_iterations(task, preferences, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = [*task_arguments(task, preferences), "--runs_dir", str(tmp_path / "runs")]
    tiny += ["--backbone.init_args.width", "16", "--backbone.init_args.layers", "1"]
    pairs: list[str] = []

    def fit(algorithm: str, *more: str) -> Path:
        stage = STAGE_OF[algorithm]
        budget = ["--trainer.max_epochs", "2"] if stage == "policy" else ["--trainer.max_steps", "2"]
        budget += [] if stage == "policy" else ["--trainer.val_check_interval", "1"]
        config = ["--config", str(CONFIGS / "algorithms" / algorithm)]
        assert main(["fit", *tiny, *config, "--name", stage, *budget, *more]) == 0
        assert (tmp_path / "runs" / stage / "DONE").exists()
        return tmp_path / "runs" / stage / "export"

    sft = fit("sft.yaml")
    if task == "assistant.yaml":
        out = str(tmp_path / "pairs.jsonl")
        config = str(CONFIGS / "tasks" / task)
        assert main(["pairs", "--config", config, "--policy", str(sft), "--count", "40", "--out", out]) == 0
        pairs = ["--data.init_args.pairs", out]
    checkpoint = ["--backbone.init_args.checkpoint", str(sft)]
    reward = fit("reward.yaml", *checkpoint, *pairs)
    rewarded = ["--data.init_args.reward", "LearnedReward", "--data.init_args.reward.init_args.path", str(reward)]
    fit("ppo.yaml", *checkpoint, *rewarded, "--data.init_args.rollout_batch_size", "8")
    metrics = load_run(tmp_path / "runs" / "policy").metrics
    assert list(metrics["iteration"]) == [0, 1, 2]
    assert metrics["eval/score"].notna().tolist() == [True, False, True]

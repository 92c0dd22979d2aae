"""Shipped configurations are parsed, run for two iterations where task and algorithm fit, and are refused elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rlhf_lightning import Arithmetic, Assistant
from rlhf_lightning.__main__ import main
from rlhf_lightning.records.runs import load_run

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
TASKS = sorted(path.name for path in (CONFIGS / "tasks").glob("*.yaml"))
ALGORITHMS = sorted(path.name for path in (CONFIGS / "algorithms").glob("*.yaml"))
HARDWARE = sorted(path.name for path in (CONFIGS / "hardware").glob("*.yaml"))
PIPELINES = sorted(
    str(path.relative_to(ROOT)) for path in CONFIGS.rglob("*.yaml") if "pipeline" in yaml.safe_load(path.read_text())
)
POLICY_DATA = ("RolloutDataModule", "EnvironmentDataModule")


def read(kind: str, name: str) -> dict:
    return yaml.safe_load((CONFIGS / kind / name).read_text())


def is_control(task: str) -> bool:
    return read("tasks", task)["task"]["class_path"] == "Control"


def refusal(task: str, algorithm: str) -> str:
    """What the two do not have in common; nothing where they fit."""
    kind = read("algorithms", algorithm)["data"]["class_path"]
    if is_control(task):
        return "" if "Control" in read("algorithms", algorithm).get("per_task", {}) else "does not provide"
    if kind == "DemonstrationDataModule":
        return "does not provide" if task == "bandit.yaml" else ""
    if algorithm == "reward.yaml" and task == "bandit.yaml":
        return "reward model"
    return ""


WHOLE = ("assistant.yaml", "bandit.yaml", "cartpole.yaml")
"""A task of each kind meets every algorithm; the others meet those of the pipeline."""
PIPELINE = ("sft.yaml", "reward.yaml", "ppo.yaml")
MET = [(task, algorithm) for task in TASKS for algorithm in (ALGORITHMS if task in WHOLE else PIPELINE)]
FITTING = [pair for pair in MET if not refusal(*pair)]
OTHERS = [pair for pair in MET if refusal(*pair)]


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


def arguments(task: str, algorithm: str, preferences: Path) -> list[str]:
    """The two files, and what they do not say by themselves."""
    given = ["--config", str(CONFIGS / "tasks" / task), "--config", str(CONFIGS / "algorithms" / algorithm)]
    if task == "hh.yaml":
        given += ["--task.init_args.path", str(preferences), "--task.init_args.vocabulary", "300"]
    return given


@pytest.mark.parametrize(("task", "algorithm"), FITTING)
def test_config_is_parsed(task, algorithm, preferences, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *arguments(task, algorithm, preferences), "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    for name, config in (("task", read("tasks", task)), ("model", read("algorithms", algorithm))):
        assert printed[name]["class_path"].split(".")[-1] == config[name]["class_path"]
    assert "per_task" not in printed


@pytest.mark.parametrize("hardware", HARDWARE)
def test_hardware_composes_with_task_and_algorithm(hardware, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wanted = read("hardware", hardware)
    assert list(wanted) == ["trainer"]
    files = arguments("assistant.yaml", "ppo.yaml", tmp_path)
    assert main(["fit", *files, "--config", f"configs/hardware/{hardware}", "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)["trainer"]
    for name, value in wanted["trainer"].items():
        if name == "plugins":
            assert [one["class_path"] for one in printed[name]] == [one["class_path"] for one in value]
            for found, given in zip(printed[name], value, strict=True):
                assert found["init_args"].items() >= given["init_args"].items()
        else:
            assert printed[name] == value
    assert printed["max_epochs"] == read("algorithms", "ppo.yaml")["trainer"]["max_epochs"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_hardware_says_nothing_that_an_algorithm_says(algorithm):
    said = set(read("algorithms", algorithm).get("trainer", {}))
    assert all(said.isdisjoint(read("hardware", hardware)["trainer"]) for hardware in HARDWARE)


@pytest.mark.parametrize("config", PIPELINES)
def test_pipeline_is_parsed(config, preferences, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    given = ["--task.init_args.path", str(preferences)] if config.endswith("hh.yaml") else []
    assert main(["pipeline", "--config", config, "--runs_dir", str(tmp_path), "--print-commands", *given]) == 0
    commands = capsys.readouterr().out.strip().splitlines()
    stages = yaml.safe_load((ROOT / config).read_text())["pipeline"]
    assert len(commands) == len(stages)
    assert all(line.startswith(("python", "/")) and " -m rlhf_lightning " in line for line in commands)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "algorithm"), OTHERS)
def test_what_does_not_fit_is_refused_in_one_line(task, algorithm, preferences, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *arguments(task, algorithm, preferences), "--runs_dir", "runs"]) == 2
    message = capsys.readouterr().err.strip()
    assert refusal(task, algorithm) in message
    assert "\n" not in message
    assert not list(tmp_path.glob("runs/*/config.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize(("task", "algorithm"), FITTING)
def test_configs_run_for_two_iterations(task, algorithm, preferences, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kind = read("algorithms", algorithm)["data"]["class_path"]
    given = [*arguments(task, algorithm, preferences), "--name", "run", "--runs_dir", str(tmp_path)]
    if read("tasks", task)["backbone"]["class_path"] == "LanguageBackbone":
        given += ["--backbone.init_args.width", "16", "--backbone.init_args.layers", "1"]
    if kind == "PreferenceDataModule" and task not in ("hh.yaml", "bandit.yaml"):
        pairs = tmp_path / "pairs.jsonl"
        asked = {"assistant.yaml": Assistant, "arithmetic.yaml": Arithmetic}[task]().prompts("train")
        lines = [{"prompt": prompt, "chosen": "3 coins", "rejected": "the lamp"} for prompt in asked[:40]]
        pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
        given += ["--data.init_args.pairs", str(pairs)]
    if kind not in POLICY_DATA:
        given += ["--trainer.max_steps", "2", "--trainer.val_check_interval", "1"]
    else:
        given += ["--trainer.max_epochs", "2"]
        if is_control(task):
            given += ["--data.init_args.eval_episodes", "2"]
        else:
            given += ["--data.init_args.rollout_batch_size", "16", "--data.init_args.eval_prompts", "8"]
        if task == "hh.yaml":
            given += ["--data.init_args.reward", "tests_configs_reward.Length"]
            (tmp_path / "tests_configs_reward.py").write_text(LENGTH_REWARD)
            monkeypatch.syspath_prepend(tmp_path)
    assert main(["fit", *given]) == 0
    assert (tmp_path / "run" / "DONE").exists()
    metrics = load_run(tmp_path / "run").metrics
    if kind in POLICY_DATA:
        assert list(metrics["iteration"]) == [0, 1, 2]
        assert metrics["eval/score"].notna().tolist() == [True, False, True]


LENGTH_REWARD = '''
import torch
from rlhf_lightning import RewardSource


class Length(RewardSource):
    """Number of characters."""

    def score(self, prompts, responses):
        return torch.tensor([float(len(response)) for response in responses])
'''

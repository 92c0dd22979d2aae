"""Shipped sweeps: one for each algorithm, and an agent's command lines of each are parsed and run."""

from __future__ import annotations

import shutil
from pathlib import Path

import optuna
import pytest
import yaml
from agents import agent_command, configuration_of, run_offline, summary_of

from rlhf_lightning.__main__ import main
from rlhf_lightning.records.runs import load_run
from rlhf_lightning.sweep.file import read_sweep

ROOT = Path(__file__).resolve().parents[1]
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))
ROLLOUTS = ["--trainer.max_epochs=1", "--data.init_args.rollout_batch_size=32", "--data.init_args.eval_prompts=8"]
PASSES = ["--trainer.max_steps=2", "--trainer.val_check_interval=1", "--data.init_args.batch_size=8"]
TINY = ["--backbone.init_args.width=16", "--backbone.init_args.layers=1"]
QUICKSTART = [
    *("--backbone.init_args.width", "16", "--backbone.init_args.layers", "1"),
    *("--sft.trainer.max_steps", "4", "--sft.trainer.val_check_interval", "2"),
    *("--pairs.count", "40"),
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with what the sweeps start from: a supervised model, and pairs."""
    folder = tmp_path_factory.mktemp("sweeps")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        command = ["pipeline", "--config", "configs/quickstart.yaml", "--name", "quick", "--stages", "sft,pairs"]
        assert main([*command, *QUICKSTART]) == 0
    shutil.copytree(folder / "runs/quick/sft", folder / "runs/sft")
    shutil.copy(folder / "runs/quick/pairs/pairs.jsonl", folder / "runs/pairs.jsonl")
    return folder


def test_there_is_a_sweep_for_each_algorithm():
    assert {path.name for path in SWEEPS} == {path.name for path in (ROOT / "configs/algorithms").glob("*.yaml")}


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_says_how_it_is_launched_and_stops_what_falls_behind(path):
    head = path.read_text(encoding="utf-8")
    assert f"python -m rlhf_lightning sweep sweeps/{path.name}" in head
    assert f"wandb sweep sweeps/{path.name}" in head
    file = read_sweep(path)
    assert file.words[1:3] == ("--config=configs/tasks/assistant.yaml", f"--config=configs/algorithms/{path.name}")
    assert file.search.halving is not None
    assert all(key.startswith(("model.", "data.")) for key in file.search.space.searched)


@pytest.mark.smoke
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_what_an_agent_gives_is_parsed(path, workspace, monkeypatch, capsys):
    monkeypatch.chdir(workspace)
    assert main(["sweep", str(path), "--check"]) == 0
    assert "nothing to object to" in capsys.readouterr().out


@pytest.mark.smoke
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_an_agent_s_command_line_runs(path, workspace, monkeypatch):
    """A trial with values drawn at random, on the least budget, W&B offline."""
    file = read_sweep(path)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=len(path.stem))).ask()
    values = file.search.space.suggest(trial)
    command, environment = agent_command(path, values, f"id-{path.stem}", workspace, monkeypatch)
    content = yaml.safe_load((ROOT / "configs/algorithms" / path.name).read_text(encoding="utf-8"))
    budget = ROLLOUTS if content["data"]["class_path"] == "RolloutDataModule" else PASSES
    more = [word for word in [*budget, *(TINY if path.stem == "sft" else [])] if word.split("=")[0][2:] not in values]
    done = run_offline([*command, *more, "--trainer.accelerator=cpu"], environment, workspace)
    assert done.returncode == 0, done.stderr
    assert "locked" not in done.stderr
    (folder,) = (workspace / "runs").glob(f"*-id-{path.stem}")
    assert load_run(folder).done
    metric = file.search.metric
    last, measured = load_run(folder).series(metric).iloc[-1], summary_of(folder)[metric]
    assert measured["last"] == pytest.approx(last)
    assert measured["min"] <= last <= measured["max"]
    told = configuration_of(folder)
    assert {key: told[key] for key in values} == {key: [value] for key, value in values.items()}
    assert told["model"][-1]["class_path"].endswith(content["model"]["class_path"])

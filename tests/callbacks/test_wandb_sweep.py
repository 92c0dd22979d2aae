"""Runs that an agent of a W&B sweep starts, W&B offline: names, what is told of them, and two devices."""

import json
import sys

import pytest
from agents import agent_command, configuration_of, run_offline, summary_of, told_wandb

from rlhf_lightning.records.runs import load_run

SWEEP = """
program: rlhf_lightning
command: [{python}, -m, rlhf_lightning, fit, --config=configs/tasks/bandit.yaml, --config=configs/algorithms/ppo.yaml,
          --trainer.logger=WandbLogger, --trainer.accelerator=cpu, --trainer.max_epochs=3,
          --model.init_args.eval_every=1, "${{args}}"]
"""
VALUES = {"seed_everything": 3, "model.init_args.optimization.lr": 1e-05, "model.init_args.critic.clip_range": None}


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Starts a run as an agent does, with further words."""
    path = tmp_path / "s.yaml"
    path.write_text(SWEEP.format(python=json.dumps(sys.executable)))

    def run(identifier, *more):
        command, environment = agent_command(path, VALUES, identifier, tmp_path, monkeypatch)
        done = run_offline([*command, *more], environment, tmp_path)
        assert done.returncode == 0, done.stderr
        assert "locked" not in done.stderr
        return tmp_path / "runs"

    return run


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--name=mine",), ("--trainer.devices=2", "--name=mine")])
def test_a_run_of_a_sweep_has_a_name_of_its_own_and_a_best_value(more, started):
    folder = started("k3x", *more)
    (run,) = [path for path in folder.iterdir() if not path.name.startswith(".")]
    assert run.name == ("mine-k3x" if more else "ppo-bandit-3-k3x")
    scores = load_run(run).series("eval/score")
    assert len(scores) == 4
    expected = {"min": scores.min(), "max": scores.max(), "last": scores.iloc[-1]}
    assert summary_of(run)["eval/score"] == pytest.approx(expected)
    told = configuration_of(run)
    assert told["seed_everything"] == [3]  # by the sweep alone
    assert told["model"][-1]["init_args"]["optimization"]["lr"] == 1e-05
    (header,) = [record.run for record in told_wandb(run) if record.HasField("run")]
    assert (header.run_id, header.sweep_id, header.display_name) == ("k3x", "sw33p", run.name)

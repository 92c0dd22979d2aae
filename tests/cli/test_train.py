"""`train`: what it writes, that the written configuration repeats it, and how it continues and refuses."""

import json
import signal

import pandas as pd
import pytest
import yaml

from rlhf_lightning import DPO, PPO, Bandit, PreferenceDataModule, RolloutDataModule, TabularBackbone, load_run, train
from rlhf_lightning.__main__ import main
from rlhf_lightning.callbacks.listener import Listener
from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.source import RewardSource


class Interrupt(Listener):
    """Ctrl-C in an iteration.

    Args:
        at: its number.
    """

    active = True

    def __init__(self, at=3):
        self.at = at

    def on_row(self, trainer, module, row):
        if self.active and row.get("iteration") == self.at:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def ppo(name="ppo", *, reward=None, epochs=4, **arguments):
    task = Bandit(scale=2.0)
    data = RolloutDataModule(task, reward, rollout_batch_size=8, eval_prompts=4)
    model = PPO(task, TabularBackbone(), minibatch_size=4, eval_every=2)
    return train(model, data, name=name, max_epochs=epochs, accelerator="cpu", progress_bar=False, **arguments)


def results(path):
    """Metrics without times, samples, and exported weights."""
    table = pd.read_csv(path / "metrics.csv")
    table = table[[c for c in table.columns if not c.startswith("timing/") and c != "rollout/tokens_per_second"]]
    export = path / "export"
    files = {str(file.relative_to(export)): file.read_bytes() for file in export.rglob("*") if file.is_file()}
    return table.to_csv(), (path / "samples.jsonl").read_text(), files


def test_train_writes_what_fit_writes(capsys):
    run = ppo()
    assert run.done
    assert (run.kind, run.task, run.axis) == ("policy", "Bandit", "iteration")
    assert list(run.metrics["iteration"]) == [0, 1, 2, 3, 4]
    assert len(run.series("eval/gold")) == 3
    assert run.setting("model.init_args.minibatch_size") == 4
    assert {"DONE", "checkpoints", "config.yaml", "environment.json", "export", "metrics.csv", "run.json"} <= {
        entry.name for entry in run.path.iterdir()
    }
    assert run.samples
    assert not (run.path.parent.parent / "lightning_logs").exists()
    assert main(["report", str(run.path)]) == 0
    assert (run.path / "report" / "report.html").is_file()


def test_the_written_configuration_repeats_the_run():
    run = ppo()
    assert "only_in_python" not in run.config
    assert main(["fit", "--config", str(run.path / "config.yaml"), "--name", "again"]) == 0
    assert results(load_run("runs/again").path) == results(run.path)


def test_a_run_from_feedback_counts_steps():
    task = Bandit(comparisons=1)
    model = DPO(task, TabularBackbone(), eval_prompts=4, log_every=1)
    data = PreferenceDataModule(task, batch_size=8, eval_limit=16)
    run = train(model, data, name="dpo", max_steps=3, accelerator="cpu", progress_bar=False)
    assert run.axis == "step"
    assert run.setting("data.init_args.batch_size") == 8  # one of the ``**options``
    assert run.metrics["step"].max() == 3


def test_an_interrupted_run_continues_to_the_same_end(monkeypatch):
    monkeypatch.setattr(Interrupt, "active", False)
    whole = ppo("whole", callbacks=[Interrupt()])
    monkeypatch.setattr(Interrupt, "active", True)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="the same call continues"):
        ppo("parts", callbacks=[Interrupt()])
    assert signal.getsignal(signal.SIGINT) is handler
    parts = load_run("runs/parts")
    assert not parts.done
    assert parts.metrics["iteration"].max() < 4
    monkeypatch.setattr(Interrupt, "active", False)
    parts = ppo("parts", callbacks=[Interrupt()])
    assert parts.done
    assert parts.environment["resumed"][0]["at"] == 2
    assert results(parts.path) == results(whole.path)


def test_a_finished_run_is_refused_unless_it_may_be_replaced():
    ppo(epochs=2)
    with pytest.raises(UserError, match="holds a finished run"):
        ppo(epochs=1)
    assert ppo(epochs=1, overwrite=True).metrics["iteration"].max() == 1


def test_a_finished_run_is_trained_longer_in_place():
    whole = ppo("whole")
    ppo("longer", epochs=2)
    longer = ppo("longer")
    assert longer.done
    assert longer.environment["resumed"][0]["at"] == 2
    assert results(longer.path) == results(whole.path)


def test_an_unfinished_run_with_another_configuration_is_refused(monkeypatch):
    monkeypatch.setattr(Interrupt, "active", True)
    with pytest.raises(KeyboardInterrupt):
        ppo(callbacks=[Interrupt()])
    with pytest.raises(UserError, match=r"trainer\.max_epochs is 4 there and 3 now"):
        ppo(callbacks=[Interrupt()], epochs=3)


def test_a_model_that_has_been_trained_is_no_start():
    task = Bandit()
    model, data = PPO(task, TabularBackbone()), RolloutDataModule(task, rollout_batch_size=8, eval_prompts=4)
    train(model, data, name="first", max_epochs=1, accelerator="cpu", progress_bar=False)
    with pytest.raises(UserError, match="this PPO has been trained before"):
        train(model, data, name="second", max_epochs=1, accelerator="cpu", progress_bar=False)
    assert [entry.name for entry in load_run("runs/first").path.parent.iterdir()] == ["first"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({}, r"give max_epochs \(iterations\)"),
        ({"max_epochs": 2, "max_steps": 5}, "give the number of iterations"),
        ({"max_epochs": 2, "fast_dev_run": True}, "fast_dev_run does not go with a run directory"),
        ({"max_epochs": 2, "default_root_dir": "x"}, "default_root_dir does not go with a run directory"),
    ],
)
def test_arguments_that_cannot_work_are_refused_and_leave_nothing(arguments, line, tmp_path):
    task = Bandit()
    with pytest.raises(UserError, match=line):
        train(PPO(task, TabularBackbone()), RolloutDataModule(task), name="x", accelerator="cpu", **arguments)
    assert not (tmp_path / "runs" / "x").exists()


def test_what_no_configuration_can_express_is_named(capsys):
    class Local(RewardSource):
        def score(self, prompts, responses):
            return Bandit().gold().score(prompts, responses)

    run = ppo(reward=Local(), epochs=1)
    assert list(run.config["only_in_python"]) == ["data.init_args.reward"]
    assert run.config["data"]["init_args"]["reward"]["class_path"].endswith(".Local")
    capsys.readouterr()
    assert main(["fit", "--config", str(run.path / "config.yaml"), "--name", "again"]) == 2
    line = "was started from Python with what no configuration can express: data.init_args.reward"
    assert capsys.readouterr().err == f"error: runs/ppo/config.yaml {line}\n"


def test_two_tasks_are_named():
    model = PPO(Bandit(), TabularBackbone(), minibatch_size=4)
    data = RolloutDataModule(Bandit(), rollout_batch_size=8, eval_prompts=4)
    run = train(model, data, name="two", max_epochs=1, accelerator="cpu", progress_bar=False)
    assert list(run.config["only_in_python"]) == ["data.init_args.task"]
    assert run.config["data"]["init_args"]["task"]["class_path"].endswith(".Bandit")


def test_settings_in_the_file_are_plain(tmp_path):
    run = ppo(epochs=1, runs_dir=tmp_path / "here", precision="64-true")
    config = yaml.safe_load((tmp_path / "here" / "ppo" / "config.yaml").read_text())
    assert config == json.loads(json.dumps(config))
    assert config["trainer"]["precision"] == "64-true"
    assert config["seed_everything"] == 1
    assert run.path == tmp_path / "here" / "ppo"

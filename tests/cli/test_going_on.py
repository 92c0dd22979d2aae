"""Runs that go on: longer, from another run's checkpoint, on other devices, and with inputs that have changed."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from rlhf_lightning import load_run
from tests.cli_runs import fit, toy

CONFIG = {
    "task": "Bandit",
    "backbone": "TabularBackbone",
    "model": {
        "class_path": "PPO",
        "init_args": {"optimization": {"lr": 0.08, "schedule": "linear"}, "minibatch_size": 4, "eval_every": 2},
    },
    "data": {"class_path": "RolloutDataModule", "init_args": {"rollout_batch_size": 8, "eval_prompts": 4}},
    "trainer": {"max_epochs": 2, "accelerator": "cpu"},
}
REWARD = "def score(prompts, responses):\n    return [float(len(one)) for one in responses]\n"


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    Path("bandit.yaml").write_text(yaml.safe_dump(CONFIG))


def bandit(name, *words, epochs=2):
    return fit("fit", "--config", "bandit.yaml", "--name", name, "--trainer.max_epochs", str(epochs), *words)


def table(name):
    rows = pd.read_csv(f"runs/{name}/metrics.csv").set_index("iteration")
    return rows[[c for c in rows if not c.startswith("timing/") and c != "rollout/tokens_per_second"]]


def export(name):
    return {file.name: file.read_bytes() for file in Path(f"runs/{name}/export").rglob("*") if file.is_file()}


# -- longer --------------------------------------------------------------------------------------------------------


def test_a_finished_run_goes_on_where_it_is_with_the_schedule_of_the_new_length():
    assert bandit("longer") == 0
    begun = table("longer")
    assert bandit("longer", epochs=4) == 0
    rows, run = table("longer"), load_run("runs/longer")
    assert rows.loc[:2].dropna(axis=1, how="all").equals(begun)
    # 1 − t/L for t = 0, 1 of 2 and t = 2, 3 of 4
    assert rows["lr"].loc[1:].tolist() == pytest.approx([0.08, 0.04, 0.04, 0.02])
    assert run.done
    assert run.setting("trainer.max_epochs") == 4
    assert [note["at"] for note in run.environment["resumed"]] == [2]


def test_a_longer_run_with_a_constant_rate_is_the_long_run_to_the_bit():
    constant = ["--model.optimization.schedule", "constant_with_warmup"]
    assert bandit("whole", *constant, epochs=4) == 0
    assert bandit("longer", *constant) == 0
    assert bandit("longer", *constant, epochs=4) == 0
    assert table("longer").equals(table("whole"))
    assert export("longer") == export("whole")


def test_a_longer_run_of_steps_is_the_long_run():
    assert fit(*toy("ToySteps"), "--name", "whole") == 0
    assert fit(*toy("ToySteps"), "--name", "longer", "--trainer.max_steps", "6") == 0
    assert fit(*toy("ToySteps"), "--name", "longer") == 0
    for name in ("metrics.csv", "export/weight.txt"):
        assert Path("runs/longer", name).read_text() == Path("runs/whole", name).read_text(), name


@pytest.mark.parametrize("epochs", [6, 8])
def test_an_unfinished_run_may_be_made_longer(epochs, monkeypatch):
    monkeypatch.setenv("TOY_FAIL", "before:4")
    assert fit(*toy(), "--name", "longer") == 2
    monkeypatch.delenv("TOY_FAIL")
    assert fit(*toy(epochs=epochs), "--name", "longer") == 0
    assert fit(*toy(epochs=epochs), "--name", "whole") == 0
    assert Path("runs/longer/metrics.csv").read_text() == Path("runs/whole/metrics.csv").read_text()


def test_a_run_is_not_made_shorter_or_another(monkeypatch, capsys):
    assert fit(*toy(epochs=3), "--name", "done") == 0
    assert fit(*toy(epochs=2), "--name", "done") == 2
    assert "holds a finished run; pass --overwrite" in capsys.readouterr().err
    assert fit(*toy(epochs=4), "--name", "done", "--model.clip_range", "0.3") == 2
    line = "runs/done holds a finished run with another configuration: model.init_args.clip_range is 0.2 there and 0.3"
    assert line in capsys.readouterr().err
    Path("runs/done/checkpoints/last.ckpt").unlink()
    Path("runs/done/checkpoints/last-1.ckpt").unlink()
    assert fit(*toy(epochs=4), "--name", "done") == 2
    assert "holds a finished run without a checkpoint to go on from" in capsys.readouterr().err
    assert Path("runs/done/DONE").exists()


# -- from another run's checkpoint ---------------------------------------------------------------------------------


def test_settings_come_from_the_configuration_and_state_from_the_checkpoint():
    surrogate = ["--model.surrogate", "Penalty", "--model.surrogate.kl_coef"]
    assert bandit("first", *surrogate, "0.5", "--model.critic.lr", "0.3") == 0
    settings = ["--model.optimization.lr", "0.01", "--model.optimization.weight_decay", "0.1", "--model.kl.coef", "0.7"]
    words = [*settings, *surrogate, "0.25", "--ckpt_path", "runs/first/checkpoints/last.ckpt"]
    assert bandit("second", *words, "--model.critic.lr", "0.2", epochs=4) == 0
    rows, begun = table("second"), table("first")
    assert rows["lr"].dropna().tolist() == pytest.approx([0.005, 0.0025])  # 0.01 (1 − t/4) for t = 2, 3
    assert rows["kl_control/coef"].dropna().tolist() == [0.7, 0.7]
    assert rows["policy/kl_coef"].dropna().tolist() == [0.25, 0.25]
    groups = torch.load("runs/second/checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert [(group["weight_decay"], group["initial_lr"]) for group in groups] == [(0.1, 0.01), (0.1, 0.2)]
    # the new run measures where it starts: where the other one ended
    assert rows.index.tolist() == [2, 3, 4]
    assert rows["eval/gold"][2] == begun["eval/gold"][2]
    assert rows["objective/score"].isna().tolist() == [True, False, False]


# -- other circumstances -------------------------------------------------------------------------------------------


def test_what_changes_no_number_may_change():
    assert bandit("run") == 0
    words = ["--model.optimization.microbatch_size", "3", "--data.decode_batch_size", "5"]
    assert bandit("run", *words, epochs=3) == 0
    assert yaml.safe_load(Path("runs/run/config.yaml").read_text())["data"]["init_args"]["decode_batch_size"] == 5


def test_an_edited_reward_function_is_refused_by_name_and_a_comment_is_not(capsys):
    Path("my_own_reward.py").write_text(REWARD)
    reward = ["--data.reward", "FunctionReward", "--data.reward.function", "my_own_reward:score"]
    assert bandit("run", *reward) == 0
    assert [one["path"] for one in json.loads(Path("runs/run/inputs.json").read_text())] == ["my_own_reward.py"]
    Path("my_own_reward.py").write_text(REWARD + "# a word about it\n")
    assert bandit("run", *reward, "--data.reward.timeout", "60", epochs=3) == 0
    Path("my_own_reward.py").write_text(REWARD.replace("float", "-float"))
    capsys.readouterr()
    assert bandit("run", *reward, epochs=4) == 2
    error = capsys.readouterr().err
    assert "what it was trained on is not the same any more: my_own_reward.py (data.init_args.reward)" in error
    assert error.count("\n") == 1
    assert table("run").index.max() == 3
    del sys.modules["my_own_reward"]


def test_a_replaced_data_file_is_refused_by_name(capsys):
    lines = [json.dumps({"prompt": f"say {n}", "response": f"{n}"}) for n in range(40)]
    Path("words.jsonl").write_text("\n".join(lines) + "\n")
    words = ["--task", "TextTask", "--task.path", "words.jsonl", "--task.vocabulary", "300"]
    words += ["--backbone", "LanguageBackbone", "--backbone.width", "8", "--backbone.heads", "1"]
    words += ["--backbone.layers", "1", "--backbone.context_length", "16", "--model", "SFT"]
    words += ["--data", "DemonstrationDataModule", "--data.batch_size", "4", "--trainer.accelerator", "cpu"]
    assert fit("fit", *words, "--name", "sft", "--trainer.max_steps", "1") == 0
    assert fit("fit", *words, "--name", "sft", "--trainer.max_steps", "2") == 0
    Path("words.jsonl").write_text("\n".join([*lines[:-1], lines[0]]) + "\n")
    capsys.readouterr()
    assert fit("fit", *words, "--name", "sft", "--trainer.max_steps", "3") == 2
    assert "not the same any more: words.jsonl (task); pass --overwrite" in capsys.readouterr().err

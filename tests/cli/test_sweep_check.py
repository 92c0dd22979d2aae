"""What `sweep --check` finds before anything is trained."""

import pytest
import yaml

from rlhf_lightning.cli.sweep_check import check_sweep
from rlhf_lightning.errors import UserError
from rlhf_lightning.sweep.file import read_sweep

COMMAND = ["python", "-m", "rlhf_lightning", "fit", "--config=configs/tasks/bandit.yaml"]
COMMAND += ["--config=configs/algorithms/ppo.yaml", "--trainer.logger=WandbLogger", "${args}"]
OPTIMIZATION = "model.init_args.optimization"


@pytest.fixture
def check(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write_and_check(parameters, metric="eval/gold", more=()):
        content = {"command": COMMAND, "method": "random", "metric": {"name": metric}, "parameters": parameters}
        (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
        return check_sweep(read_sweep("s.yaml"), more)

    return write_and_check


def test_a_sound_sweep_passes_and_trains_nothing(check, tmp_path):
    clips = [{"class_path": "Clip", "init_args": {"clip_range": 0.1}}, {"class_path": "Clip"}]
    parameters = {
        f"{OPTIMIZATION}.lr": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2},
        "model.init_args.surrogate": {"values": clips},
        "model.init_args.critic.clip_range": {"values": [None, 0.2]},
        "model.init_args.kl.init_args.target": {"value": 4},
        "model.init_args.kl": {"value": "AdaptiveKLControl"},  # after an argument of its own
        "trainer.log_every_n_steps": {"value": 1},
    }
    assert check(parameters) == 4  # all at their first, and one more of each of three
    assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]


@pytest.mark.parametrize(
    ("parameters", "metric", "lines"),
    [
        (
            {f"{OPTIMIZATION}.learning_rate": {"min": 0.1, "max": 0.2}},
            "eval/gold",
            [f"s.yaml: unknown key {OPTIMIZATION}.learning_rate"],
        ),
        # the second choice alone is wrong, and so is the upper end
        ({"trainer.max_epochs": {"values": [1, "many"]}}, "eval/gold", ["expected", "'many'"]),
        (
            {f"{OPTIMIZATION}.lr": {"min": 0.1, "max": 0.2}},
            "eval/goldd",
            ["no run of PPO logs eval/goldd; did you mean"],
        ),
        (
            {"data.init_args.rollout_batch_size": {"values": [128, None]}, "model.init_args.a": {"value": 1}},
            "eval/gold",
            ["unknown key model.init_args.a", "data.init_args.rollout_batch_size: expected"],
        ),
    ],
)
def test_what_an_agent_would_choke_on_is_one_line(parameters, metric, lines, check):
    with pytest.raises(UserError) as refused:
        check(parameters, metric)
    for line in lines:
        assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_further_options_are_checked_too(check):
    with pytest.raises(UserError, match=r"unknown key --trainer\.epochs"):
        check({"model.init_args.gamma": {"value": 1}}, more=["--trainer.epochs=3"])

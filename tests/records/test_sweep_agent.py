"""What an agent of a W&B sweep says in the environment."""

import pytest

from rlhf_lightning.records.sweep_agent import agent_run, name_under_agent, swept_keys


@pytest.fixture(autouse=True)
def _agent(monkeypatch, tmp_path):
    """W&B's own function writes the file."""
    from wandb.sdk.lib.config_util import save_config_file_from_dict

    path = tmp_path / "wandb" / "config-k3x.yaml"
    save_config_file_from_dict(str(path), {"model.init_args.lr": {"value": 0.1}, "seed_everything": {"value": 1}})
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "k3x")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(path))


def test_runs_of_a_sweep_have_names_of_their_own():
    assert name_under_agent("ppo") == "ppo-k3x"
    assert name_under_agent("ppo-k3x") == "ppo-k3x"  # a configuration that such a run has written
    assert name_under_agent("k3x") == "k3x"


def test_swept_keys_are_those_that_the_agent_has_written(tmp_path, monkeypatch):
    assert swept_keys() >= {"model.init_args.lr", "seed_everything"}
    (tmp_path / "wandb" / "config-k3x.yaml").write_text("a: [")
    assert swept_keys() == set()
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(tmp_path / "none"))
    assert swept_keys() == set()


def test_without_an_agent_nothing_changes(monkeypatch):
    monkeypatch.delenv("WANDB_SWEEP_ID")  # a run identifier alone may be the user's own
    assert agent_run() is None
    assert name_under_agent("ppo") == "ppo"
    assert swept_keys() == set()

"""Environments with observations of several spaces and vectors of choices as actions, whose best return is known."""

import pytest
import scripted_environments  # noqa: F401 registers environments
import torch
from training_helpers import fit, same, snapshot

from rlhf_lightning.algorithms.a2c import A2C
from rlhf_lightning.algorithms.parts.critic import CriticOptions
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.algorithms.reinforce import REINFORCE
from rlhf_lightning.algorithms.trpo import TRPO
from rlhf_lightning.data.environments import EnvironmentDataModule
from rlhf_lightning.models.control.backbone import ControlBackbone
from rlhf_lightning.models.control.policy import ControlPolicy
from rlhf_lightning.tasks.control import Control
from rlhf_lightning.training.optimization import Optimization

FAST = Optimization(lr=3e-2)


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        (REINFORCE, {"optimization": FAST}),
        (A2C, {"optimization": FAST, "critic": CriticOptions(lr=3e-2)}),
        (PPO, {"optimization": Optimization(lr=1e-2), "minibatch_size": 64, "inner_epochs": 2}),
        (TRPO, {"max_kl": 0.05, "critic": CriticOptions(lr=3e-2)}),
    ],
)
def test_vectors_of_choices_are_learned_and_exported(tmp_path, algorithm, settings):
    """Two choices of two and of three are shown, and 1 is paid for each that is copied: 8 in the four steps."""
    task = Control("Copied-v0")
    module = algorithm(task, ControlBackbone(hidden=(16,)), kl=KLControl(0.0), gamma=0.0, eval_every=1000, **settings)
    data = EnvironmentDataModule(task, environments=8, rollout_batch_size=256, eval_episodes=20)
    rows = fit(module, data, max_epochs=25).rows
    assert rows[1]["objective/score"] == pytest.approx(4 * (1 / 2 + 1 / 3), abs=0.5)  # at random
    assert data.statistics(data.collect_heldout(module.policy))["objective/score"] == 8
    module.policy.save(tmp_path)
    loaded = ControlPolicy.load(tmp_path)
    assert same(snapshot(loaded), snapshot(module.policy))
    shown = torch.tensor([[1.0, 0, 0, 1, 0.5, 0.5, 0.5, 0.5]])  # the second of two, the third of three
    assert loaded.spaces.to_environment(loaded.act(shown).numpy()).tolist() == [[1, 6]]

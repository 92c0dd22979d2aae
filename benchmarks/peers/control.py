"""CartPole by this package and by Stable-Baselines3, with equal networks and hyperparameters, on one thread."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import torch
from lightning.pytorch import Callback
from sb3_contrib import TRPO as PeerTRPO
from stable_baselines3 import A2C as PeerA2C
from stable_baselines3 import PPO as PeerPPO
from stable_baselines3.common.vec_env import DummyVecEnv

from rlhf_lightning import A2C, PPO, TRPO, Control, ControlBackbone, EnvironmentDataModule, train
from rlhf_lightning.algorithms.parts.critic import CriticOptions
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.training.optimization import Optimization

ENVIRONMENTS, GAMMA, LR = 8, 0.99, 1e-3
NETWORKS = {"net_arch": [64, 64], "activation_fn": torch.nn.Tanh}


class Clock(Callback):
    """The time at which each iteration begins."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Look at the clock."""
        self.times.append(time.perf_counter())


def ours(kind: str, iterations: int) -> float:
    """Seconds of an iteration of ours as `fit` does it: metrics, checkpoints and detectors included."""
    task, backbone = Control("CartPole-v1"), ControlBackbone(hidden=(64, 64))
    shared: dict[str, Any] = {
        "kl": KLControl(0.0),
        "critic": CriticOptions(lr=LR),
        "gamma": GAMMA,
        "eval_every": 10 * iterations,
    }
    optimization = Optimization(lr=LR, max_grad_norm=0.5)
    models: Mapping[str, Callable[[], Any]] = {
        "PPO": lambda: PPO(task, backbone, optimization, inner_epochs=10, minibatch_size=128, lam=0.95, **shared),
        "A2C": lambda: A2C(task, backbone, optimization, lam=1.0, **shared),
        "TRPO": lambda: TRPO(
            task, backbone, optimization, max_kl=0.01, critic_epochs=10, minibatch_size=128, lam=0.95, **shared
        ),
    }
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        train(
            models[kind](),
            EnvironmentDataModule(task, environments=ENVIRONMENTS, rollout_batch_size=ENVIRONMENTS * STEPS[kind]),
            name=kind,
            max_epochs=iterations,
            callbacks=[clock],
            runs_dir=folder,
            progress_bar=False,
        )
    return (clock.times[-1] - clock.times[0]) / (len(clock.times) - 1)


STEPS = {"PPO": 128, "A2C": 16, "TRPO": 256}
"""Of each environment in an iteration."""


def theirs(kind: str, iterations: int) -> float:
    """Seconds of an iteration of theirs."""
    environments = DummyVecEnv([lambda: gymnasium.make("CartPole-v1")] * ENVIRONMENTS)
    settings: dict[str, Any] = {
        "policy": "MlpPolicy",
        "env": environments,
        "learning_rate": LR,
        "n_steps": STEPS[kind],
        "gamma": GAMMA,
        "policy_kwargs": NETWORKS,
        "device": "cpu",
        "seed": 1,
    }
    peers: Mapping[str, Callable[[], Any]] = {
        "PPO": lambda: PeerPPO(**settings, n_epochs=10, batch_size=128, gae_lambda=0.95),
        "A2C": lambda: PeerA2C(**settings, use_rms_prop=False, gae_lambda=1.0),
        "TRPO": lambda: PeerTRPO(**settings, n_critic_updates=10, batch_size=128, gae_lambda=0.95, target_kl=0.01),
    }
    peer = peers[kind]()
    started = time.perf_counter()
    peer.learn(iterations * ENVIRONMENTS * STEPS[kind])
    return (time.perf_counter() - started) / iterations

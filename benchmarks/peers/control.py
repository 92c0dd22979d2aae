"""CartPole by this package and by Stable-Baselines3, with equal networks and hyperparameters, on one thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import sb3_contrib
import stable_baselines3
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

from peers.clock import run_of_ours
from rlhf_lightning import A2C, PPO, TRPO, Control, ControlBackbone, EnvironmentDataModule
from rlhf_lightning.algorithms.parts.critic import CriticOptions
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.training.optimization import Optimization

ENVIRONMENTS, GAMMA, LR = 8, 0.99, 1e-3
STEPS = {"PPO": 128, "A2C": 16, "TRPO": 256}
"""Of each environment in an iteration."""
NETWORKS = {"net_arch": [64, 64], "activation_fn": torch.nn.Tanh}


def ours(kind: str, iterations: int) -> float:
    """Seconds of an iteration of ours, with metrics and detectors."""
    task, backbone = Control("CartPole-v1"), ControlBackbone(hidden=(64, 64))
    optimization = Optimization(lr=LR, max_grad_norm=0.5)
    shared: dict[str, Any] = {
        "kl": KLControl(0.0),
        "critic": CriticOptions(lr=LR),
        "gamma": GAMMA,
        "eval_every": 10 * iterations,
    }
    models: Mapping[str, Callable[[], Any]] = {
        "PPO": lambda: PPO(task, backbone, optimization, inner_epochs=10, minibatch_size=128, lam=0.95, **shared),
        "A2C": lambda: A2C(task, backbone, optimization, lam=1.0, **shared),
        "TRPO": lambda: TRPO(
            task, backbone, optimization, max_kl=0.01, critic_epochs=10, minibatch_size=128, lam=0.95, **shared
        ),
    }
    data = EnvironmentDataModule(task, environments=ENVIRONMENTS, rollout_batch_size=ENVIRONMENTS * STEPS[kind])
    return run_of_ours(models[kind](), data, max_epochs=iterations, checkpoint_every=10 * iterations)


def theirs(kind: str, iterations: int) -> float:
    """Seconds of an iteration of theirs."""
    settings: dict[str, Any] = {
        "policy": "MlpPolicy",
        "env": DummyVecEnv([lambda: gymnasium.make("CartPole-v1")] * ENVIRONMENTS),
        "learning_rate": LR,
        "n_steps": STEPS[kind],
        "gamma": GAMMA,
        "policy_kwargs": NETWORKS,
        "device": "cpu",
        "seed": 1,
    }
    epochs: dict[str, Any] = {"batch_size": 128, "gae_lambda": 0.95}
    peers: Mapping[str, Callable[[], Any]] = {
        "PPO": lambda: stable_baselines3.PPO(**settings, **epochs, n_epochs=10),
        "A2C": lambda: stable_baselines3.A2C(**settings, use_rms_prop=False, gae_lambda=1.0),
        "TRPO": lambda: sb3_contrib.TRPO(**settings, **epochs, n_critic_updates=10, target_kl=0.01),
    }
    peer = peers[kind]()
    started = time.perf_counter()
    peer.learn(iterations * ENVIRONMENTS * STEPS[kind])
    return (time.perf_counter() - started) / iterations

"""Detectors on small runs in which it really happens, and on one in which it does not."""

import zlib

import pytest
import torch
from training_helpers import CountsB, Letters, fit, ppo, rollouts, same, snapshot

from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.algorithms.parts.surrogates import Clip
from rlhf_lightning.callbacks.checkpoints import Checkpoints
from rlhf_lightning.callbacks.detectors import (
    Forgetting,
    Instability,
    ModeCollapse,
    RewardHacking,
    default_detectors,
    replay,
)
from rlhf_lightning.callbacks.export import Export
from rlhf_lightning.rewards.source import RewardSource
from rlhf_lightning.training.optimization import Optimization


class WelcomesSomeB(CountsB):
    """Likes the word, and half as many of them best: what the score stands for."""

    def score(self, prompts, responses):
        share = super().score(prompts, responses)
        return 4 * share * (1 - share)


class Whim(RewardSource):
    """Nothing that can be learned."""

    def score(self, prompts, responses):
        return torch.tensor(
            [float(zlib.crc32(f"{p}{r}".encode()) % 2) for p, r in zip(prompts, responses, strict=True)]
        )


def train(reward, *callbacks, iterations, lr=1e-2, kl_coef=0.0, monitors=None, folder=None, **settings):
    task = Letters(gold=False)
    module = ppo(
        task, kl=KLControl(kl_coef), optimization=Optimization(lr=lr), minibatch_size=16, eval_every=2, **settings
    )
    data = rollouts(task, reward, size=32, monitors=monitors)
    rows = fit(module, data, *callbacks, max_epochs=iterations, default_root_dir=folder).rows
    return module, rows


@pytest.fixture(scope="module")
def hacked():
    """A word is paid for, without a penalty: after 12 iterations nothing else is said."""
    return train(CountsB(), iterations=24, monitors={"heldout_score": WelcomesSomeB()})[1]


def first(detector, rows):
    at, message = replay(detector, rows)[0]
    return at, message


def test_hacking_is_seen_by_the_monitor(hacked):
    at, message = first(RewardHacking(kl_token=None), hacked)
    monitor = [row.get("objective/heldout_score", 0.0) for row in hacked]
    assert monitor.index(max(monitor)) < at < 20
    assert "objective/heldout_score fell from" in message


def test_collapse_is_seen(hacked):
    at, message = first(ModeCollapse(), hacked)
    assert at < 15
    assert "rollout/distinct_2 fell from" in message


def test_forgetting_is_seen(hacked):
    at, message = first(Forgetting(), hacked)
    assert at < 15
    assert "eval/perplexity on held-out demonstrations rose from 11.3 to" in message


def test_instability_is_seen():
    rows = train(Whim(), iterations=5, lr=3e-2, inner_epochs=4, surrogate=Clip(1e6))[1]  # nothing is clipped
    at, message = first(Instability(), rows)
    assert at <= 5
    assert "policy/kl_old" in message


def test_controlled_run_is_quiet():
    rows = train(CountsB(), iterations=24, kl_coef=0.5, monitors={"heldout_score": WelcomesSomeB()})[1]
    assert "objective/heldout_score" in rows[-1]
    assert [replay(detector, rows) for detector in default_detectors()] == [[], [], [], [], []]


def test_stop_brings_back_the_best_policy_beside_the_same_reference(tmp_path):
    detector = RewardHacking(kl_token=None, stop=True)
    folder = {"folder": tmp_path, "monitors": {"heldout_score": WelcomesSomeB()}}
    module, rows = train(CountsB(), detector, Checkpoints(), Export(), iterations=24, **folder)
    assert rows[-1]["iteration"] < 24
    assert detector.stopped

    evaluated = {row["iteration"]: row["eval/heldout_score"] for row in rows if "eval/heldout_score" in row}
    del evaluated[0]
    best = max(evaluated, key=evaluated.get)
    at_best, _ = train(CountsB(), iterations=best, monitors=folder["monitors"])
    assert best < rows[-1]["iteration"]
    assert same(snapshot(module), snapshot(at_best))  # the reference included, which no checkpoint holds
    assert (tmp_path / "export").is_dir()

"""The price of leaving the reference in training: in reward or loss, in checkpoints, and as the end of an update."""

import pytest
import torch
from group_helpers import group_rollouts, in_microbatches, interrupted, poison
from lightning.pytorch.callbacks import ModelCheckpoint
from training_helpers import AtHook, Letters, fit, ppo, same, snapshot, tiny

from rlhf_lightning.algorithms.a2c import A2C
from rlhf_lightning.algorithms.cpi import CPI
from rlhf_lightning.algorithms.grpo import GRPO
from rlhf_lightning.algorithms.npg import NPG
from rlhf_lightning.algorithms.parts.kl_control import HalveDoubleKLControl, KLControl, KLLoss, ThresholdKLControl
from rlhf_lightning.algorithms.parts.surrogates import Clip, SequenceRatio
from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.algorithms.raft import RAFT
from rlhf_lightning.algorithms.reinforce import REINFORCE
from rlhf_lightning.algorithms.rloo import RLOO
from rlhf_lightning.algorithms.trpo import TRPO
from rlhf_lightning.errors import UserError
from rlhf_lightning.training.optimization import Optimization

EVERY = (REINFORCE, A2C, PPO, TRPO, NPG, CPI, RLOO, GRPO, RAFT)
IN_LOSS = {
    "k2": KLControl(0.3, "k1", KLLoss("k2")),
    "k3, exact value": KLControl(0.3, "exact", KLLoss("k3")),
    "exact": KLControl(0.3, "exact", KLLoss("exact")),
    "forward": KLControl(0.3, "k3", KLLoss("exact", "forward")),
}


def build(algorithm, **settings):
    return algorithm(Letters(), tiny(), **{"eval_every": 1000, "optimization": Optimization(lr=3e-2), **settings})


@pytest.mark.parametrize("algorithm", EVERY)
def test_exact_kl_is_refused_in_the_reward_alone(algorithm):
    with pytest.raises(UserError, match=r"model\.init_args\.kl\.estimator exact is the same for every action"):
        build(algorithm, kl=KLControl(0.1, "exact"))
    build(algorithm, kl=KLControl(0.0, "exact"))
    build(algorithm, kl=KLControl(0.1, "exact", KLLoss("exact")))


@pytest.mark.parametrize("name", IN_LOSS)
def test_rewards_hold_no_price_where_the_loss_does(name):
    seen = []
    hook = AtHook("on_train_batch_start", lambda trainer, module: seen.append((module.scored, module.batch)))
    module = build(RLOO, kl=IN_LOSS[name])
    rows = fit(module, group_rollouts(Letters()), hook, max_epochs=3).rows[1:]
    for row, (scored, batch) in zip(rows, seen, strict=True):
        assert row["objective/reward"] == pytest.approx(scored.scores.mean().item(), abs=1e-6)
        assert torch.allclose(batch.returns[:, 0], scored.scores)
    assert rows[-1]["objective/kl_ref_sequence"] > 0.01


def test_the_price_in_the_loss_holds_the_policy_back():
    def distance(coef):
        kl = KLControl(coef, "exact", KLLoss("exact"))
        module = ppo(Letters(), kl=kl, optimization=Optimization(lr=2e-2), inner_epochs=3)
        return fit(module, group_rollouts(Letters()), max_epochs=8).rows[-1]["objective/kl_ref_sequence"]

    assert distance(3.0) < 0.3 * distance(0.0)


@pytest.mark.parametrize("name", IN_LOSS)
def test_padding_and_microbatches_change_nothing(name):
    def module(**settings):
        defaults = {"inner_epochs": 2, "minibatch_size": 4, "ratio": SequenceRatio(), "lam": 1.0}
        return ppo(Letters(), kl=IN_LOSS[name], surrogate=Clip(0.02), **{**defaults, **settings})

    (rows, parameters), (other_rows, other_parameters) = in_microbatches(
        module, lambda: group_rollouts(Letters()), sizes=(None, 1)
    )
    assert rows[-1]["policy/clip_fraction"] > 0  # of whole responses of unlike lengths
    for row, other in zip(rows, other_rows, strict=True):
        assert other == pytest.approx(row, rel=1e-7, abs=1e-9)
    assert all(torch.allclose(parameters[n], other_parameters[n], rtol=0, atol=1e-9) for n in parameters)

    names = ["old_logprobs", "advantages", "returns", "old_values"]
    names += [] if module().kl.active_loss is None else ["ref_logprobs"]
    poisoned = module(optimization=Optimization(lr=1e-2))
    fit(poisoned, group_rollouts(Letters()), poison(*names), max_epochs=2, precision="64-true")
    assert same(snapshot(poisoned), parameters)


@pytest.mark.parametrize("algorithm", [PPO, CPI, RLOO, GRPO, RAFT])
def test_an_update_ends_where_the_policy_has_gone_too_far(algorithm):
    def steps(**settings):
        taken = []
        hook = AtHook("on_before_optimizer_step", lambda trainer, module: taken.append(1))
        module = build(algorithm, inner_epochs=6, minibatch_size=2, kl=KLControl(0.0), **settings)
        row = fit(module, group_rollouts(Letters()), hook, max_epochs=1).rows[-1]
        assert row["policy/steps"] == len(taken)
        return len(taken), row["policy/kl_old"]

    epoch = 1 if algorithm is RAFT else 4  # steps; RAFT keeps two responses, and looks between epochs alone
    free, _ = steps(stop_kl=1e9)
    assert free == 6 * epoch
    few, _ = steps(stop_kl=0.005)
    assert 1 <= few < free
    with pytest.raises(UserError, match=r"model\.init_args\.stop_kl must be above 0"):
        build(algorithm, stop_kl=0.0)


@pytest.mark.parametrize("loss", [None, KLLoss("k2")], ids=["reward", "loss"])
@pytest.mark.parametrize("controller", [HalveDoubleKLControl, ThresholdKLControl])
def test_a_resumed_run_keeps_its_coefficient(tmp_path, controller, loss):
    def module():
        kl = controller(0.1, loss=loss, target=0.01)
        return ppo(Letters(), kl=kl, optimization=Optimization(lr=3e-2), inner_epochs=2)

    whole, resumed = interrupted(module, lambda: group_rollouts(Letters()), tmp_path)
    assert resumed[0] == whole[0][3:]
    assert same(resumed[1], whole[1])
    assert len({row["kl_control/coef"] for row in whole[0][1:]}) > 1


def test_a_coefficient_is_used_as_reported_and_adapts_afterwards():
    module = ppo(Letters(), kl=ThresholdKLControl(0.1, target=100.0))
    rows = fit(module, group_rollouts(Letters()), max_epochs=3).rows[1:]
    assert [row["kl_control/coef"] for row in rows] == pytest.approx([0.1, 0.05, 0.025])
    assert module.kl.coef == pytest.approx(0.0125)


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (lambda: build(TRPO, minibatch_size=8), "the checkpoint is not one of TRPO: PPO wrote it"),
        (lambda: build(RLOO), "the checkpoint is not one of RLOO: PPO wrote it"),
        (
            lambda: ppo(Letters(), kl=ThresholdKLControl(0.1)),
            "the checkpoint was written with model.init_args.kl KLControl, and this run has ThresholdKLControl",
        ),
    ],
    ids=["TRPO", "RLOO", "controller"],
)
def test_the_checkpoint_of_another_run_is_refused_in_one_line(tmp_path, other, line):
    keep = ModelCheckpoint(tmp_path, "one", save_on_train_epoch_end=True)
    fit(ppo(Letters()), group_rollouts(Letters()), keep, max_epochs=1)
    with pytest.raises(UserError, match=line) as error:
        fit(other(), group_rollouts(Letters()), max_epochs=2, ckpt_path=tmp_path / "one.ckpt")
    assert "\n" not in str(error.value)

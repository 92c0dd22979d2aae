"""`Reference`: alone, on a table; and the price of leaving it in training, in the reward or in the loss."""

import math

import pytest
import torch
from group_helpers import group_rollouts
from run_checks import microbatches_change_nothing, padding_changes_nothing, resumed_run_is_identical
from training_helpers import Iterations, Letters, fit, ppo, tiny

from rlhf_lightning.algorithms import all_algorithms
from rlhf_lightning.algorithms.base.on_policy import OnPolicy
from rlhf_lightning.algorithms.parts.kl_control import (
    AdaptiveKLControl,
    HalveDoubleKLControl,
    KLControl,
    KLLoss,
    ThresholdKLControl,
)
from rlhf_lightning.algorithms.parts.reference import Reference
from rlhf_lightning.algorithms.parts.surrogates import Clip, SequenceRatio
from rlhf_lightning.algorithms.rloo import RLOO
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.state import fingerprint
from rlhf_lightning.models.tabular import TabularPolicy
from rlhf_lightning.proofs.expectation import scored_batch
from rlhf_lightning.tasks.bandit.tree import as_rollout, build_tokenizer
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import TrainBatch

EVERY = [algorithm for algorithm in all_algorithms() if issubclass(algorithm, OnPolicy)]
IN_LOSS = {
    "k2": KLControl(0.3, "k1", KLLoss("k2")),
    "k3, exact value": KLControl(0.3, "exact", KLLoss("k3")),
    "exact": KLControl(0.3, "exact", KLLoss("exact")),
    "forward": KLControl(0.3, "k3", KLLoss("exact", "forward")),
}

SCORES = torch.linspace(-1, 1, 15, dtype=torch.float64)
NUMBERS = [9, 0, 3, 1]  # responses of 3, 1, 3 and 2 actions


# -- alone -------------------------------------------------------------------------------------------------------


def policy(seed):
    generator = torch.Generator().manual_seed(seed)
    return TabularPolicy(build_tokenizer(), torch.randn(7, 3, generator=generator, dtype=torch.float64))


def reference(kl, frozen=None, microbatch_size=None):
    made = Reference(kl, microbatch_size=microbatch_size)
    made.freeze(frozen or policy(1))
    return made


def collected(own):
    """Some responses of a policy."""
    return scored_batch(as_rollout(own), SCORES, NUMBERS)


def log_ratios(own, scored):
    """Log π/π_ref of each action of each response, by a loop over the prefixes of the tree."""
    tables = [p.logits.detach().log_softmax(-1) for p in (own, policy(1))]
    rows = []
    for actions, mask in zip(scored.rollout.actions, scored.rollout.action_mask, strict=True):
        prefix, row = 0, []
        for token in actions[mask].tolist():
            row.append((tables[0] - tables[1])[prefix, token].item())
            prefix = 2 * prefix + token
        rows.append(row)
    return rows


def test_freeze_takes_a_copy_that_stays():
    start = policy(1)
    frozen = reference(KLControl(0.1), start)
    assert frozen.fingerprint == fingerprint(start)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    with torch.no_grad():
        start.logits.add_(1.0)
    assert torch.equal(frozen.policy.logits, policy(1).logits)
    assert start.logits.requires_grad


@pytest.mark.parametrize("microbatch_size", [None, 3])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_shape_subtracts_the_price_of_the_kl_at_each_action(estimator, microbatch_size):
    own = policy(2)
    scored = collected(own)
    shaped = reference(KLControl(0.3, estimator), microbatch_size=microbatch_size).shape(scored, own)
    formulas = {"k1": lambda d: d, "k2": lambda d: d * d / 2, "k3": lambda d: math.exp(-d) - 1 + d}
    kl = [[formulas[estimator](d) for d in row] for row in log_ratios(own, scored)]
    rewards = [[-0.3 * value for value in row] for row in kl]
    for row, score in zip(rewards, scored.scores.tolist(), strict=True):
        row[-1] += score
    for found, mask, row in zip(shaped.rewards, scored.rollout.action_mask, rewards, strict=True):
        assert found[mask].tolist() == pytest.approx(row)
        assert not found[~mask].any()
    assert shaped.kl == pytest.approx(sum(map(sum, kl)) / 4)
    assert shaped.ref_logprobs is None  # the loss needs none
    assert shaped.metrics.pop("timing/reference_seconds") > 0
    assert shaped.metrics == {
        "objective/reward": pytest.approx(sum(map(sum, rewards)) / 4),
        "objective/kl_ref_sequence": shaped.kl,
        "objective/kl_ref_token": pytest.approx(sum(map(sum, kl)) / 9),  # 3 + 1 + 3 + 2 actions
        "kl_control/coef": 0.3,
    }


def test_shape_leaves_the_rewards_alone_where_the_loss_has_the_kl():
    own = policy(2)
    scored = collected(own)
    shaped = reference(KLControl(0.3, "k1", KLLoss("k2"))).shape(scored, own)
    assert torch.equal(shaped.rewards, scored.rewards)
    assert shaped.metrics["objective/reward"] == pytest.approx(scored.scores.mean().item())
    for found, mask, row, old in zip(
        shaped.ref_logprobs,
        scored.rollout.action_mask,
        log_ratios(own, scored),
        scored.rollout.old_logprobs,
        strict=True,
    ):
        assert (old - found)[mask].tolist() == pytest.approx(row)


def test_without_freeze_nothing_is_measured_and_nothing_is_paid():
    scored = collected(policy(2))
    none = Reference(KLControl(0.0), microbatch_size=None)
    shaped = none.shape(scored, policy(2))
    assert torch.equal(shaped.rewards, scored.rewards)
    assert (shaped.kl, shaped.ref_logprobs, shaped.metrics) == (None, None, {})
    assert none.metrics() == ()


def test_losses_are_the_coefficient_times_the_estimate_at_each_action():
    own = policy(2)
    scored = collected(own)
    kl = KLControl(0.3, "k1", KLLoss("k2"))
    frozen = reference(kl)
    batch = TrainBatch.of(scored.rollout, ref_logprobs=frozen.shape(scored, own).ref_logprobs)
    found = frozen.losses(batch, frozen.evaluate(own, batch))
    assert found.tolist() == pytest.approx([0.3 * d * d / 2 for row in log_ratios(own, scored) for d in row])
    none = reference(KLControl(0.3))
    assert none.losses(batch, none.evaluate(own, batch)).tolist() == [0.0] * 9


def test_logprobs_that_are_not_finite_name_the_prompt():
    own = policy(2)
    scored = collected(own)
    scored.rollout.old_logprobs[2, 0] = math.nan
    with pytest.raises(UserError, match=r"^logprobs are not finite for the prompt '[^\n]*$"):
        reference(KLControl(0.3)).shape(scored, own)


def saved(kl):
    """What a checkpoint holds of a reference whose controller has moved on."""
    frozen = reference(kl)
    frozen.kl.update(100.0)
    checkpoint = {"state_dict": {f"reference.{name}": tensor for name, tensor in frozen.state_dict().items()}}
    checkpoint["state_dict"]["policy.logits"] = policy(2).logits
    frozen.save(checkpoint, path="some/folder")
    return frozen, checkpoint


def test_a_checkpoint_holds_the_controller_and_no_frozen_weights():
    frozen, checkpoint = saved(AdaptiveKLControl(0.1, target=0.05))
    assert set(checkpoint["state_dict"]) == {"policy.logits"}
    assert checkpoint["reference"] == {"path": "some/folder", "hash": frozen.fingerprint}
    again = reference(AdaptiveKLControl(0.1, target=0.05))
    again.load(checkpoint, algorithm="PPO")
    assert again.kl.coef == frozen.kl.coef > 0.1
    assert torch.equal(checkpoint["state_dict"]["reference.policy.logits"], policy(1).logits)


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (lambda: reference(AdaptiveKLControl(0.1), policy(3)), r"reference policy is not .* \(it was some/folder\)"),
        (lambda: Reference(AdaptiveKLControl(0.1), microbatch_size=None), "reference policy is not the one of the"),
        (lambda: reference(ThresholdKLControl(0.1)), "written with model.init_args.kl AdaptiveKLControl, and this run"),
    ],
    ids=["policy", "none", "controller"],
)
def test_a_checkpoint_of_another_reference_is_refused(other, line):
    _, checkpoint = saved(AdaptiveKLControl(0.1))
    with pytest.raises(UserError, match=line):
        other().load(checkpoint, algorithm="PPO")


def test_a_checkpoint_without_a_reference_is_refused():
    with pytest.raises(UserError, match="the checkpoint is not one of PPO: it names no reference policy"):
        reference(KLControl(0.1)).load({"state_dict": {}}, algorithm="PPO")


# -- in training -------------------------------------------------------------------------------------------------


def collect():
    return group_rollouts(Letters())


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
    seen = Iterations()
    module = build(RLOO, kl=IN_LOSS[name])
    rows = fit(module, collect(), seen, max_epochs=3).rows[1:]
    for row, scored in zip(rows, seen.scored, strict=True):
        assert row["objective/reward"] == pytest.approx(scored.scores.mean().item(), abs=1e-6)
        assert torch.allclose(module.reference.shape(scored, module.policy).rewards.sum(-1), scored.scores)
    assert rows[-1]["objective/kl_ref_sequence"] > 0.01


def test_the_price_in_the_loss_holds_the_policy_back():
    def distance(coef):
        kl = KLControl(coef, "exact", KLLoss("exact"))
        module = ppo(Letters(), kl=kl, optimization=Optimization(lr=2e-2), inner_epochs=3)
        return fit(module, collect(), max_epochs=8).rows[-1]["objective/kl_ref_sequence"]

    assert distance(3.0) < 0.3 * distance(0.0)


@pytest.mark.parametrize("name", IN_LOSS)
def test_padding_and_microbatches_change_nothing(name):
    def build(size):
        settings = {"inner_epochs": 2, "minibatch_size": 4, "ratio": SequenceRatio(), "lam": 1.0}
        optimization = Optimization(lr=1e-2, microbatch_size=size)
        return ppo(Letters(), kl=IN_LOSS[name], surrogate=Clip(0.02), optimization=optimization, **settings)

    _, rows = microbatches_change_nothing(build, collect, sizes=(None, 1))
    assert rows[-1]["policy/clip_fraction"] > 0  # of whole responses of unlike lengths
    padding_changes_nothing(lambda: build(None), collect)


@pytest.mark.parametrize("loss", [None, KLLoss("k2")], ids=["reward", "loss"])
@pytest.mark.parametrize("controller", [HalveDoubleKLControl, ThresholdKLControl])
def test_a_resumed_run_keeps_its_coefficient(tmp_path, controller, loss):
    def module():
        kl = controller(0.1, loss=loss, target=0.01)
        return ppo(Letters(), kl=kl, optimization=Optimization(lr=3e-2), inner_epochs=2)

    _, _, rows = resumed_run_is_identical(module, collect, tmp_path)
    assert len({row["kl_control/coef"] for row in rows[1:]}) > 1

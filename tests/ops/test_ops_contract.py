"""What every function of `ops` promises: shapes are checked, inputs stay as they are."""

import importlib
import inspect
import pkgutil
from dataclasses import is_dataclass
from functools import partial

import pytest
import torch

from rlhf_lightning import ops
from rlhf_lightning.ops import (
    advantages,
    best_of_n,
    groups,
    kl,
    logprobs,
    losses,
    masking,
    noise,
    objectives,
    preference,
    ratios,
    rewards,
    scaling,
    trust_region,
)

VALUES = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
MASK = torch.tensor([[True, True, False], [True, False, False]])
KEYS = torch.tensor([1, 2])
TARGETS = torch.tensor([0, 2])
CLIP = {"clip_range": 0.2, "clip_range_high": 0.3, "dual_clip": 3.0}

CALLS = {
    advantages.discounted_returns: partial(advantages.discounted_returns, VALUES, MASK, gamma=0.9),
    advantages.gae: partial(advantages.gae, VALUES, VALUES, VALUES, MASK, gamma=0.9, lam=0.9),
    advantages.following_values: partial(advantages.following_values, VALUES, MASK),
    advantages.episode_totals: partial(advantages.episode_totals, VALUES, MASK),
    best_of_n.best_of_n: partial(best_of_n.best_of_n, VALUES, VALUES, n=2),
    best_of_n.best_of_n_kl: partial(best_of_n.best_of_n_kl, 2),
    groups.leave_one_out_advantages: partial(groups.leave_one_out_advantages, VALUES[0, :2], group_size=2),
    groups.group_advantages: partial(
        groups.group_advantages, VALUES[0, :2], group_size=2, normalize_std=True, eps=1e-4
    ),
    groups.best_of_group: partial(groups.best_of_group, VALUES[0, :2], group_size=1),
    groups.groups_that_differ: partial(groups.groups_that_differ, VALUES[0, :2], group_size=1),
    groups.overlong_penalty: partial(groups.overlong_penalty, KEYS, max_length=3, cache_length=2),
    kl.k1: partial(kl.k1, VALUES, VALUES),
    kl.k2: partial(kl.k2, VALUES, VALUES),
    kl.k3: partial(kl.k3, VALUES, VALUES),
    kl.k3_ratio: partial(kl.k3_ratio, VALUES, VALUES, VALUES),
    kl.halve_double_coefficient: partial(kl.halve_double_coefficient, 0.1, 5.0, target=6.0),
    kl.threshold_coefficient: partial(kl.threshold_coefficient, 0.1, 5.0, target=6.0),
    kl.ziegler_coefficient: partial(kl.ziegler_coefficient, 0.1, 5.0, target=6.0, gain=0.1),
    logprobs.tempered_log_softmax: partial(logprobs.tempered_log_softmax, VALUES, temperature=1.0),
    logprobs.entropy_of: partial(logprobs.entropy_of, VALUES),
    logprobs.exact_kl: partial(logprobs.exact_kl, VALUES, VALUES),
    logprobs.token_statistics: partial(
        logprobs.token_statistics, VALUES, TARGETS, head=torch.clone, temperature=1.0, chunk_tokens=1
    ),
    logprobs.token_kl: partial(
        logprobs.token_kl, VALUES, VALUES, head=torch.clone, other_head=torch.clone, temperature=1.0, chunk_tokens=1
    ),
    losses.policy_gradient_loss: partial(losses.policy_gradient_loss, VALUES, VALUES),
    losses.clipped_surrogate_loss: partial(losses.clipped_surrogate_loss, VALUES, VALUES, **CLIP),
    losses.ratio_is_clipped: partial(losses.ratio_is_clipped, VALUES, VALUES, **CLIP),
    losses.conservative_weights: partial(losses.conservative_weights, VALUES, MASK, mixture=0.5, temperature=1.0),
    losses.unlikelihood_loss: partial(losses.unlikelihood_loss, -VALUES),
    losses.value_loss: partial(losses.value_loss, VALUES, VALUES, VALUES, value_clip_range=0.2),
    masking.masked: partial(masking.masked, VALUES, MASK),
    masking.masked_sum: partial(masking.masked_sum, VALUES, MASK),
    masking.sequence_sum: partial(masking.sequence_sum, VALUES, MASK),
    masking.selected: partial(masking.selected, VALUES[..., None], MASK),
    masking.scattered: partial(masking.scattered, VALUES[0], MASK),
    masking.masked_mean_and_variance: partial(masking.masked_mean_and_variance, VALUES, MASK),
    masking.whiten: partial(masking.whiten, VALUES, MASK, eps=1e-8),
    masking.explained_variance: partial(masking.explained_variance, VALUES, VALUES, MASK),
    noise.mix: partial(noise.mix, KEYS),
    noise.fold: partial(noise.fold, KEYS, KEYS),
    noise.row_keys: partial(noise.row_keys, seed=0, stream=0, iteration=0, rows=KEYS),
    noise.uniform: partial(noise.uniform, KEYS),
    noise.gumbel: partial(noise.gumbel, KEYS, size=3),
    noise.gumbel_argmax: partial(noise.gumbel_argmax, VALUES, KEYS),
    noise.permutation: partial(noise.permutation, seed=0, stream=0, iteration=0, size=3),
    objectives.objective_rewards: partial(objectives.objective_rewards, VALUES, VALUES[:, :2], VALUES[0, :2], MASK),
    objectives.weighted_advantages: partial(
        objectives.weighted_advantages, VALUES[..., None], VALUES[0, :1], MASK, eps=1e-8
    ),
    preference.bradley_terry_loss: partial(
        preference.bradley_terry_loss, VALUES[:, 0], VALUES[:, 1], margin=VALUES[:, 2], label_smoothing=0.1
    ),
    preference.plackett_luce_loss: partial(preference.plackett_luce_loss, VALUES, MASK),
    preference.all_pairs_loss: partial(preference.all_pairs_loss, VALUES, MASK),
    preference.regression_loss: partial(preference.regression_loss, VALUES, VALUES, MASK),
    preference.centering_penalty: partial(preference.centering_penalty, VALUES, MASK),
    preference.sigmoid_preference_loss: partial(
        preference.sigmoid_preference_loss, VALUES[:, 0], VALUES[:, 1], beta=0.1, label_smoothing=0.1
    ),
    preference.ipo_loss: partial(preference.ipo_loss, VALUES[:, 0], VALUES[:, 1], beta=0.1),
    ratios.sequence_log_ratio: partial(ratios.sequence_log_ratio, VALUES, VALUES, MASK),
    ratios.mean_log_ratio: partial(ratios.mean_log_ratio, VALUES, VALUES, MASK),
    rewards.last_action_rewards: partial(rewards.last_action_rewards, VALUES[:, 0], MASK),
    rewards.kl_shaped_rewards: partial(rewards.kl_shaped_rewards, VALUES, VALUES, MASK, kl_coef=0.1),
    scaling.magnitude: partial(scaling.magnitude, VALUES, each_row=True),
    scaling.mean_and_std: partial(scaling.mean_and_std, VALUES[0]),
    scaling.standardized: partial(scaling.standardized, VALUES[0], VALUES[1, 0], VALUES[1, 1], center=False),
    scaling.min_max: partial(scaling.min_max, VALUES[0]),
    scaling.signed_log: partial(scaling.signed_log, VALUES[0]),
    trust_region.flatten: partial(trust_region.flatten, [VALUES[0]]),
    trust_region.unflatten: partial(trust_region.unflatten, VALUES[0], like=[VALUES[1]]),
    trust_region.damped: partial(trust_region.damped, torch.clone, damping=0.1),
    trust_region.conjugate_gradient: partial(
        trust_region.conjugate_gradient, torch.clone, VALUES[0], iterations=2, tolerance=0.0
    ),
    trust_region.trust_region_scale: partial(trust_region.trust_region_scale, VALUES[0], VALUES[1], max_kl=0.1),
    trust_region.backtracking_line_search: partial(
        trust_region.backtracking_line_search,
        lambda parameters: (1.0, 0.0),
        VALUES[0],
        VALUES[1],
        expected_improvement=1.0,
        max_kl=0.1,
        shrink=0.5,
        max_backtracks=2,
        accept_ratio=0.1,
    ),
}

VIEWS = {trust_region.unflatten}
"""Functions whose purpose is to look at their input in another shape."""


def tensors_in(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if is_dataclass(value):
        value = list(vars(value).values())
    return [x for part in value for x in tensors_in(part)] if isinstance(value, list | tuple) else []


@pytest.mark.parametrize(("function", "call"), CALLS.items(), ids=[f.__name__ for f in CALLS])
def test_ops_leave_their_inputs_alone(function, call):
    tensors = tensors_in([*call.args, *call.keywords.values()])
    copies, versions = [x.clone() for x in tensors], [x._version for x in tensors]
    results = call()
    assert [x._version for x in tensors] == versions
    assert all(torch.equal(x, copy) for x, copy in zip(tensors, copies, strict=True))
    storages = {x.untyped_storage().data_ptr() for x in tensors}
    shared = [x for x in tensors_in(results) if x.untyped_storage().data_ptr() in storages]
    assert bool(shared) == (function in VIEWS)


@pytest.mark.parametrize("call", CALLS.values(), ids=[f.__name__ for f in CALLS])
def test_ops_draw_from_no_generator(call):
    before = torch.random.get_rng_state()
    call()
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "call",
    [
        lambda: masking.masked_sum(VALUES, MASK[:, :2]),
        lambda: masking.masked_sum(VALUES, MASK.float()),
        lambda: masking.masked(VALUES, MASK[:1]),
        lambda: advantages.gae(VALUES, VALUES, VALUES[:, :2], MASK, gamma=1.0, lam=1.0),
        lambda: best_of_n.best_of_n(VALUES, VALUES[:, :2], n=2),
        lambda: kl.k3(VALUES, VALUES[0]),
        lambda: losses.clipped_surrogate_loss(VALUES, VALUES[:, :1], **CLIP),
        lambda: losses.conservative_weights(VALUES, MASK[0], mixture=0.5, temperature=1.0),
        lambda: groups.group_advantages(VALUES, group_size=1, normalize_std=False, eps=0.0),
        lambda: groups.overlong_penalty(VALUES[0], max_length=3, cache_length=2),
        lambda: ratios.mean_log_ratio(VALUES, VALUES, MASK[:, :2]),
        lambda: preference.ipo_loss(VALUES[0], VALUES[:, 0], beta=0.1),
        lambda: trust_region.conjugate_gradient(torch.clone, VALUES, iterations=1, tolerance=0.0),
        lambda: trust_region.trust_region_scale(VALUES[0], VALUES[:, 0], max_kl=0.1),
        lambda: logprobs.token_statistics(VALUES, TARGETS[:1], head=torch.clone, temperature=1.0, chunk_tokens=1),
        lambda: preference.bradley_terry_loss(VALUES[0], VALUES[0], margin=VALUES[:, 0], label_smoothing=0.0),
        lambda: preference.plackett_luce_loss(VALUES, MASK[:, :2]),
        lambda: preference.regression_loss(VALUES, VALUES[:, :2], MASK),
        lambda: rewards.last_action_rewards(VALUES[0], MASK),
        lambda: rewards.kl_shaped_rewards(VALUES, VALUES[:, :2], MASK, kl_coef=0.1),
        lambda: scaling.min_max(VALUES),
        lambda: noise.fold(KEYS, KEYS.repeat(2)),
    ],
)
def test_shapes_and_types_are_checked_in_tests(call):
    with pytest.raises(TypeError, match="Type-check error"):
        call()


def test_every_public_function_of_ops_is_among_these():
    modules = [importlib.import_module(f"{ops.__name__}.{m.name}") for m in pkgutil.iter_modules(ops.__path__)]
    public = {
        f"{module.__name__}.{name}"
        for module in modules
        for name, member in inspect.getmembers(module, inspect.isfunction)
        if member.__module__ == module.__name__ and not name.startswith("_")
    }
    assert public == {f"{f.__module__}.{f.__name__}" for f in CALLS}

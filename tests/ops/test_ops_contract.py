"""What every function of `ops` promises: shapes are checked, inputs stay as they are."""

import importlib
import inspect
import pkgutil
from functools import partial

import pytest
import torch

from rlhf_lightning import ops
from rlhf_lightning.ops import advantages, kl, logprobs, losses, masking, noise, preference, rewards

VALUES = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
MASK = torch.tensor([[True, True, False], [True, False, False]])
KEYS = torch.tensor([1, 2])
TARGETS = torch.tensor([0, 2])

CALLS = {
    advantages.discounted_returns: partial(advantages.discounted_returns, VALUES, MASK, gamma=0.9),
    advantages.gae: partial(advantages.gae, VALUES, VALUES, VALUES, MASK, gamma=0.9, lam=0.9),
    advantages.response_transitions: partial(advantages.response_transitions, VALUES, MASK),
    kl.k1: partial(kl.k1, VALUES, VALUES),
    kl.k2: partial(kl.k2, VALUES, VALUES),
    kl.k3: partial(kl.k3, VALUES, VALUES),
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
    losses.clipped_surrogate_loss: partial(losses.clipped_surrogate_loss, VALUES, VALUES, clip_range=0.2),
    losses.ratio_is_clipped: partial(losses.ratio_is_clipped, VALUES, VALUES, clip_range=0.2),
    losses.value_loss: partial(losses.value_loss, VALUES, VALUES, VALUES, value_clip_range=0.2),
    masking.masked_sum: partial(masking.masked_sum, VALUES, MASK),
    masking.token_mean: partial(masking.token_mean, VALUES, MASK, tokens=3),
    masking.sequence_sum: partial(masking.sequence_sum, VALUES, MASK),
    masking.masked_mean_and_variance: partial(masking.masked_mean_and_variance, VALUES, MASK),
    masking.whiten: partial(masking.whiten, VALUES, MASK, eps=1e-8),
    masking.last_valid: partial(masking.last_valid, VALUES, MASK),
    masking.explained_variance: partial(masking.explained_variance, VALUES, VALUES, MASK),
    noise.mix: partial(noise.mix, KEYS),
    noise.fold: partial(noise.fold, KEYS, KEYS),
    noise.row_keys: partial(noise.row_keys, seed=0, stream=0, iteration=0, rows=KEYS),
    noise.uniform: partial(noise.uniform, KEYS),
    noise.gumbel: partial(noise.gumbel, KEYS, size=3),
    noise.permutation: partial(noise.permutation, seed=0, stream=0, iteration=0, size=3),
    preference.bradley_terry_loss: partial(
        preference.bradley_terry_loss, VALUES[:, 0], VALUES[:, 1], margin=VALUES[:, 2]
    ),
    rewards.kl_shaped_rewards: partial(rewards.kl_shaped_rewards, VALUES[:, 0], VALUES, MASK, kl_coef=0.1),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=[f.__name__ for f in CALLS])
def test_ops_leave_their_inputs_alone(call):
    tensors = [x for x in (*call.args, *call.keywords.values()) if isinstance(x, torch.Tensor)]
    copies, versions = [x.clone() for x in tensors], [x._version for x in tensors]
    results = call()
    assert [x._version for x in tensors] == versions
    assert all(torch.equal(x, copy) for x, copy in zip(tensors, copies, strict=True))
    storages = {x.untyped_storage().data_ptr() for x in tensors}
    for result in results if isinstance(results, tuple) else (results,):
        assert not isinstance(result, torch.Tensor) or result.untyped_storage().data_ptr() not in storages


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
        lambda: masking.last_valid(VALUES, MASK[:1]),
        lambda: advantages.gae(VALUES, VALUES, VALUES[:, :2], MASK, gamma=1.0, lam=1.0),
        lambda: kl.k3(VALUES, VALUES[0]),
        lambda: losses.clipped_surrogate_loss(VALUES, VALUES[:, :1], clip_range=0.2),
        lambda: logprobs.token_statistics(VALUES, TARGETS[:1], head=torch.clone, temperature=1.0, chunk_tokens=1),
        lambda: preference.bradley_terry_loss(VALUES[0], VALUES[0], margin=VALUES[:, 0]),
        lambda: rewards.kl_shaped_rewards(VALUES[0], VALUES, MASK, kl_coef=0.1),
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

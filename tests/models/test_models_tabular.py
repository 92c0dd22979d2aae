"""Tables as policy and critic, against a dictionary of prefixes and plain loops."""

import math
from itertools import product

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import keys, tokenizer
from training_helpers import run_seed_is

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.reward.architectures import JointEncoder
from rlhf_lightning.models.tabular import (
    DEPTH,
    OPEN,
    PREFIXES,
    TabularBackbone,
    TabularCritic,
    TabularPolicy,
    prefixes_before,
)
from rlhf_lightning.rollout.decode import EagerDecoder
from rlhf_lightning.tasks.bandit.tree import as_rollout, build_tokenizer
from rlhf_lightning.types import TokenContext, Trajectories

# every prefix of at most three letters, shorter ones first, 1 = a before 2 = b
NUMBERS = {
    prefix: number
    for number, prefix in enumerate(prefix for length in range(DEPTH + 1) for prefix in product((1, 2), repeat=length))
}
ACTIONS = [[0], [1, 0], [2, 1, 0], [1, 2, 2], [2, 2, 1, 0], [2, 0]]


def table(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def policy(seed=0, temperature=1.0):
    return TabularPolicy(build_tokenizer(), 2 * table(seed, OPEN, 3), temperature=temperature)


def context(count):
    return TokenContext(torch.zeros(count, 1, dtype=torch.long), torch.ones(count, 1, dtype=torch.bool))


def padded(rows=ACTIONS, garbage=0):
    width = max(map(len, rows)) + 1
    actions = torch.tensor([row + [garbage] * (width - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    return context(len(rows)), actions, mask


def distribution(policy, prefix):
    """Of the next token, by hand."""
    if len(prefix) == DEPTH:
        return [1.0, 0.0, 0.0]
    weights = [math.exp(logit / policy.temperature) for logit in policy.logits[NUMBERS[prefix]].tolist()]
    return [weight / sum(weights) for weight in weights]


def by_hand(policy, number):
    """A number of each distribution on the way of each response; 0 behind its end."""
    width = max(map(len, ACTIONS)) + 1
    rows = []
    for row in ACTIONS:
        found = [number(distribution(policy, tuple(row[:t])), tuple(row[:t]), row[t]) for t in range(len(row))]
        rows.append(found + [0.0] * (width - len(row)))
    return torch.tensor(rows, dtype=torch.float64)


def test_prefixes_are_numbered_level_by_level():
    assert (len(NUMBERS), sum(len(prefix) < DEPTH for prefix in NUMBERS)) == (PREFIXES, OPEN)
    _, actions, mask = padded(garbage=10**9)
    expected = by_hand(policy(), lambda p, prefix, action: NUMBERS[prefix])
    assert prefixes_before(actions, mask).tolist() == expected.long().tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_evaluate_equals_plain_loops(temperature):
    one, other = policy(0, temperature), policy(1, temperature)
    outputs = one.evaluate(*padded(garbage=-100), against=other)

    def kl(p, prefix, action):
        q = distribution(other, prefix)
        return sum(p[k] * math.log(p[k] / q[k]) for k in range(3) if p[k] > 0)

    torch.testing.assert_close(outputs.logprobs, by_hand(one, lambda p, _, action: math.log(p[action])))
    torch.testing.assert_close(outputs.entropy, by_hand(one, lambda p, *_: -sum(x * math.log(x) for x in p if x > 0)))
    torch.testing.assert_close(outputs.kl, by_hand(one, kl))
    forward = other.evaluate(*padded(garbage=-100), against=one, direction="forward").kl
    torch.testing.assert_close(forward, by_hand(one, kl))
    assert one.evaluate(*padded()).kl is None
    assert outputs.kl.max() > 0.1


def test_a_letter_too_many_is_impossible():
    batch, actions, mask = padded([[1, 1, 1, 1, 0], [1, 1, 1, 0]])
    logprobs = policy().evaluate(batch, actions, mask).logprobs
    assert logprobs[0, 3] == -math.inf
    assert logprobs[1, 3] == 0


def central_difference(function, at, step=1e-6):
    """Gradient of a number in the entries of a matrix."""
    result = torch.zeros_like(at)
    for place in range(at.numel()):
        shift = torch.zeros_like(at).view(-1)
        shift[place] = step
        up, down = (function(at + sign * shift.view_as(at)) for sign in (1, -1))
        result.view(-1)[place] = (up - down) / (2 * step)
    return result


@pytest.mark.parametrize("moving", ["own", "other"])
def test_every_output_is_differentiable(moving):
    logits = {"own": policy(0).logits.detach(), "other": policy(1).logits.detach()}
    weights = table(5, 3, len(ACTIONS), 5)

    def total(own, other):
        one, two = (TabularPolicy(build_tokenizer(), x, temperature=0.7) for x in (own, other))
        outputs = one.evaluate(*padded(), against=two)
        value = sum(
            (w * x).sum() for w, x in zip(weights, (outputs.logprobs, outputs.entropy, outputs.kl), strict=True)
        )
        return value, {"own": one.logits, "other": two.logits}[moving]

    value, parameter = total(**logits)
    (gradient,) = torch.autograd.grad(value, parameter)
    expected = central_difference(lambda x: total(**{**logits, moving: x})[0].detach(), logits[moving])
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("moving", ["own", "other"])
def test_kl_is_differentiable_twice(moving):
    logits = {"own": policy(0).logits.detach(), "other": policy(1).logits.detach()}
    direction = table(6, OPEN, 3)

    def slope(own, other):
        """Of the KL along the direction."""
        one, two = (TabularPolicy(build_tokenizer(), x) for x in (own, other))
        parameter = {"own": one.logits, "other": two.logits}[moving]
        kl = one.evaluate(*padded(), against=two).kl.sum()
        (gradient,) = torch.autograd.grad(kl, parameter, create_graph=True)
        return (gradient * direction).sum(), parameter

    value, parameter = slope(**logits)
    (product_with_hessian,) = torch.autograd.grad(value, parameter)
    expected = central_difference(lambda x: slope(**{**logits, moving: x})[0].detach(), logits[moving])
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(product_with_hessian, expected, rtol=1e-5, atol=1e-8)


def sampled(policy, count, length, **options):
    return EagerDecoder().generate(
        policy, context(count), keys=keys(*range(count)), rows=torch.arange(count), max_new_tokens=length, **options
    )


def test_decoding_knows_what_evaluate_says():
    one = policy(temperature=0.7)
    done = sampled(one, 500, 8)
    outputs = one.evaluate(done.context, done.actions, done.action_mask)
    torch.testing.assert_close(done.old_logprobs, outputs.logprobs.detach())
    assert {tuple(row[mask].tolist()) for row, mask in zip(done.actions, done.action_mask, strict=True)} > {
        (0,),
        (1, 0),
    }


def test_full_responses_are_closed_or_cut():
    closed, cut = sampled(policy(), 500, 48), sampled(policy(), 500, DEPTH)
    assert torch.equal(closed.actions[:, :DEPTH], cut.actions)
    assert closed.actions.shape[1] == DEPTH + 1
    assert not closed.truncated.any()
    full = closed.action_mask[:, DEPTH]
    assert 0 < full.sum() < 500
    assert (closed.actions[full, DEPTH] == 0).all()
    assert (closed.old_logprobs[full, DEPTH] == 0).all()
    assert torch.equal(cut.truncated.any(-1), full)


def test_several_samples_of_a_prompt_equal_as_many_prompts():
    one = policy()
    once = EagerDecoder().generate(one, context(3), keys=keys(*range(12)), rows=torch.arange(12), max_new_tokens=DEPTH)
    expected = sampled(one, 12, DEPTH)
    assert torch.equal(once.actions, expected.actions)
    assert torch.equal(once.context.input_ids, expected.context.input_ids)


def test_critic_reads_the_prefix_before_each_action():
    values = table(2, PREFIXES)
    critic = TabularCritic(values)
    batch, actions, mask = padded(garbage=-100)
    found = critic.values(Trajectories(batch, actions, mask, torch.zeros(mask.shape)))
    expected = by_hand(policy(), lambda p, prefix, action: values[NUMBERS[prefix]].item())
    assert torch.equal(torch.where(mask, found, 0.0), expected)
    found[mask].sum().backward()
    assert critic.table.grad.sum() == mask.sum()


def test_value_after_a_token_is_that_of_the_next_prefix_until_the_response_ends():
    critic, rollout = TabularCritic(torch.arange(15.0, dtype=torch.float64)), as_rollout(policy(), [0, 2, 4, 11])
    values = critic.values(rollout)
    assert values.tolist() == [[0, 0, 0], [0, 2, 0], [0, 1, 4], [0, 2, 5]]
    assert critic.next_values(rollout, values).tolist() == [[0, 0, 0], [2, 0, 0], [1, 4, 0], [2, 5, 0]]


def test_backbone_starts_from_the_seed():
    def start(seed, **options):
        with run_seed_is(seed):
            return TabularBackbone(**options).policy(build_tokenizer)

    first = start(1)
    assert first.precision == torch.float32
    assert first.logits.shape == (OPEN, 3)
    assert 0.5 < first.logits.std() < 2
    assert torch.equal(first.logits, start(1).logits)
    assert not torch.equal(first.logits, start(2).logits)
    torch.testing.assert_close(start(1, scale=3.0).logits, 3 * first.logits)
    uniform = start(1, scale=0.0).distributions()[:OPEN]
    torch.testing.assert_close(uniform, torch.full((OPEN, 3), -math.log(3)))


def test_backbone_makes_a_critic_of_zeros():
    critic = TabularBackbone().critic(policy())
    assert torch.equal(critic.table.detach(), torch.zeros(PREFIXES, dtype=torch.float64))


def test_networks_are_saved(tmp_path):
    one, critic = policy(), TabularCritic(table(2, PREFIXES))
    one.save(tmp_path)
    critic.save(tmp_path / "critic")
    assert torch.equal(load_file(tmp_path / "table.safetensors")["logits"], one.logits)
    assert torch.equal(load_file(tmp_path / "critic" / "table.safetensors")["table"], critic.table)
    assert (tmp_path / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TabularBackbone(scale=-1.0), "backbone.init_args.scale must not be negative, got -1.0"),
        (lambda: TabularBackbone(scale=math.inf), "backbone.init_args.scale must not be negative, got inf"),
        (lambda: TabularBackbone().policy(tokenizer), "knows the tokens </s>, a, b alone; expected task Bandit"),
        (lambda: TabularBackbone().policy(object), "knows the tokens </s>, a, b alone; expected task Bandit"),
        (lambda: TabularBackbone().critic(policy(), shared=True), "critic.shared is true, .* no trunk to share"),
        (lambda: TabularBackbone().critic(policy(), init="runs/x"), "critic.init is runs/x, .* cannot start from it"),
        (
            lambda: JointEncoder().build(TabularBackbone(), build_tokenizer, outputs=1, seed=None),
            "builds no reward model; expected LanguageBackbone",
        ),
        (lambda: policy(temperature=0.0), "temperature must be a number above 0"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()

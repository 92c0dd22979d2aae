"""Perceptrons in environments: what they read, say, keep and refuse."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scripted_environments import scattered
from training_helpers import Letters, run_seed_is, same, snapshot

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.control.backbone import ControlBackbone
from rlhf_lightning.models.control.layers import perceptron
from rlhf_lightning.models.control.policy import ControlCritic, ControlPolicy
from rlhf_lightning.models.control.spaces import Spaces
from rlhf_lightning.models.reward.architectures import JointEncoder
from rlhf_lightning.ops.noise import row_keys
from rlhf_lightning.types import ObservationContext, Rollout, Trajectories

CHOICES = Spaces("Choices-v0", observation_size=3, choices=4)
VECTORS = Spaces("Vectors-v0", observation_size=3, low=(-1.0, -math.inf), high=(1.0, math.inf))
PAIRS = Spaces("Pairs-v0", observation_size=3, choices=(2, 3), first_choice=(-1, 4), dtype="int32")
EVERY = pytest.mark.parametrize("spaces", [CHOICES, VECTORS, PAIRS], ids=["choices", "vectors", "pairs"])
MASK = torch.tensor([[True, True, True], [True, False, False]])


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def built(spaces, **settings):
    return scattered(ControlPolicy(spaces, hidden=(5,), **settings).double(), 0.5)


def trajectory(policy, seed=0):
    """Context and actions [2 3]; what the mask hides is not a number, or no action."""
    observations, following = random(2, 3, 3, seed=seed), random(2, 3, 3, seed=seed + 1)
    noise = policy.noise(row_keys(seed=seed, stream=0, iteration=0, rows=torch.arange(6)).view(2, 3))
    actions = policy.act(observations, noise).detach()
    hidden = ~MASK
    observations[hidden], following[hidden] = math.nan, math.nan
    actions[hidden] = math.nan if actions.is_floating_point() else -1
    return ObservationContext(observations, following), actions


@EVERY
def test_evaluation_is_that_of_each_step_alone(spaces):
    policy, other = built(spaces), built(spaces, temperature=1.0)
    with torch.no_grad():
        other.trunk[0].bias += 1
    context, actions = trajectory(policy)
    outputs = policy.evaluate(context, actions, MASK, against=other)
    for b, t in MASK.nonzero().tolist():
        observation = context.observations[b, t]
        ours, theirs = (p.head(p.trunk(observation), temperature=1.0) for p in (policy, other))
        assert outputs.logprobs[b, t].item() == pytest.approx(ours.logprobs(actions[b, t]).item(), rel=1e-9)
        assert outputs.entropy[b, t].item() == pytest.approx(ours.entropy().item(), rel=1e-9)
        assert outputs.kl[b, t].item() == pytest.approx(ours.kl(theirs).item(), rel=1e-9)
    for numbers in (outputs.logprobs, outputs.entropy, outputs.kl):
        assert torch.equal(numbers[~MASK], torch.zeros(2, dtype=torch.float64))
    assert (outputs.kl[MASK] > 1e-3).all()
    assert policy.evaluate(context, actions, MASK).kl is None
    assert policy.evaluate(context, actions, MASK, against=policy).kl.abs().max() < 1e-12


def test_a_policy_without_a_trunk_to_share_says_so():
    policy = built(CHOICES)
    context, actions = trajectory(policy)
    with pytest.raises(NotImplementedError, match="ControlPolicy has no trunk for a critic to share"):
        policy.hidden_before(Trajectories(context, actions, MASK, torch.zeros(MASK.shape)))


def kl_by_hand(policy, other, observation):
    """KL(policy‖other) in one state, from the definition: a sum over choices, the closed form over vectors."""
    ours, theirs = (p.head.layer(p.trunk(observation)).tolist() for p in (policy, other))
    if policy.spaces.continuous:
        # each entry: log(σ₂ / σ₁) + (σ₁² + (μ₁ − μ₂)²) / (2 σ₂²) − ½
        stds = zip(policy.head.log_std.exp().tolist(), other.head.log_std.exp().tolist(), strict=True)
        entries = zip(ours, theirs, stds, strict=True)
        return sum(math.log(s2 / s1) + (s1**2 + (m1 - m2) ** 2) / (2 * s2**2) - 0.5 for m1, m2, (s1, s2) in entries)
    if policy.spaces == PAIRS:  # as one distribution over the 2 × 3 pairs
        ours, theirs = ([first + second for first in x[:2] for second in x[2:]] for x in (ours, theirs))
    p, q = ([math.exp(x) / sum(map(math.exp, logits)) for x in logits] for logits in (ours, theirs))
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@EVERY
def test_forward_and_reverse_kl_are_those_of_their_definitions(spaces):
    policy, other = built(spaces), built(spaces)
    with torch.no_grad():
        other.trunk[0].bias += 1
        if spaces.continuous:
            other.head.log_std += 0.5
    context, actions = trajectory(policy)
    reverse, forward = (
        policy.evaluate(context, actions, MASK, against=other, direction=direction).kl
        for direction in ("reverse", "forward")
    )
    for b, t in MASK.nonzero().tolist():
        observation = context.observations[b, t]
        assert reverse[b, t].item() == pytest.approx(kl_by_hand(policy, other, observation), rel=1e-9)
        assert forward[b, t].item() == pytest.approx(kl_by_hand(other, policy, observation), rel=1e-9)
    assert ((forward - reverse)[MASK].abs() > 1e-4).all()
    assert torch.equal(forward[~MASK], torch.zeros(2, dtype=torch.float64))


@EVERY
def test_gradients_do_not_see_what_the_mask_hides(spaces):
    policy = built(spaces)
    context, actions = trajectory(policy)
    outputs = policy.evaluate(context, actions, MASK)
    gradients = torch.autograd.grad((outputs.logprobs + outputs.entropy).sum(), tuple(policy.parameters()))
    assert all(torch.isfinite(g).all() for g in gradients)
    first = ObservationContext(context.observations[MASK][:, None], context.next_observations[MASK][:, None])
    alone = policy.evaluate(first, actions[MASK][:, None], torch.ones(4, 1, dtype=torch.bool))
    expected = torch.autograd.grad((alone.logprobs + alone.entropy).sum(), tuple(policy.parameters()))
    torch.testing.assert_close(gradients, expected)


@EVERY
def test_fisher_vector_product_is_the_difference_of_gradients(spaces):
    policy, old = built(spaces), built(spaces)
    context, actions = trajectory(policy)
    parameters = tuple(policy.parameters())
    direction = [random(*p.shape, seed=9) for p in parameters]

    def gradient(create_graph=False):
        kl = old.evaluate(context, actions, MASK, against=policy).kl.sum()
        return torch.autograd.grad(kl, parameters, create_graph=create_graph)

    inner = sum((g * d).sum() for g, d in zip(gradient(create_graph=True), direction, strict=True))
    product = torch.autograd.grad(inner, parameters)
    step, moved = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, start, d in zip(parameters, old.parameters(), direction, strict=True):
                parameter.copy_(start + sign * step * d)
        moved.append(gradient())
    for exact, plus, minus in zip(product, *moved, strict=True):
        torch.testing.assert_close(exact, (plus - minus) / (2 * step), rtol=1e-4, atol=1e-7)


@EVERY
def test_actions_have_the_logprobs_of_the_evaluation(spaces):
    """Shares of Gumbel-max draws and densities: here only that act and evaluate use one distribution."""
    policy = built(spaces, temperature=0.7)
    observation = random(1, 3)
    greedy = policy.act(observation)
    context = ObservationContext(observation[:, None], observation[:, None])
    mask = torch.ones(1, 1, dtype=torch.bool)
    best = policy.evaluate(context, greedy[:, None], mask).logprobs
    noise = policy.noise(row_keys(seed=0, stream=0, iteration=0, rows=torch.arange(200)))
    drawn = policy.act(observation.expand(200, 3), noise)
    assert drawn.unique(dim=0).shape[0] > 2
    for action in drawn[:20]:
        assert policy.evaluate(context, action[None, None], mask).logprobs <= best


@EVERY
def test_acting_for_some_environments_is_acting_for_all(spaces):
    policy = built(spaces)
    observations, keys = random(6, 3), row_keys(seed=1, stream=0, iteration=2, rows=torch.arange(6))
    whole, some = policy.act(observations, policy.noise(keys)), torch.tensor([1, 4])
    torch.testing.assert_close(
        policy.act(observations[some], policy.noise(keys[some])), whole[some], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("normalize", [False, True])
@EVERY
def test_an_actor_acts_as_the_policy(spaces, normalize, activation):
    policy = built(spaces, temperature=0.7, normalize_observations=normalize, activation=activation)
    observations = random(64, 3)
    if normalize:
        observations = 10 + 3 * observations
        policy.normalizer.update(10 + 3 * random(50, 3, seed=4))
    keys = row_keys(seed=1, stream=0, iteration=2, rows=torch.arange(64))
    assert len(policy.act(observations, policy.noise(keys)).unique(dim=0)) > 1
    for noise in (None, policy.noise(keys)):
        with torch.no_grad():
            expected = policy.act(observations, noise).numpy()
        found = policy.actor()(observations.numpy(), None if noise is None else noise.numpy())
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_observations_are_normalized_in_acting_and_before_evaluating():
    policy = built(VECTORS, normalize_observations=True)
    plain = built(VECTORS)
    policy.normalizer.update(10 + 3 * random(50, 3, seed=4))
    observations = 10 + 3 * random(4, 3, seed=5)
    assert torch.equal(policy.act(observations), plain.act(policy.read(observations)))
    assert not torch.allclose(policy.act(observations), plain.act(observations))
    assert policy.read(observations.float()).dtype == torch.float64


def test_actions_are_taken_within_the_bounds():
    assert CHOICES.to_environment(np.array([0, 3])).tolist() == [0, 3]
    shifted = dataclasses.replace(CHOICES, first_choice=-1)
    assert shifted.to_environment(np.array([0, 3])).tolist() == [-1, 2]
    vectors = VECTORS.to_environment(np.array([[-3.0, -3.0], [0.25, 7.0]]))
    assert vectors.tolist() == [[-1.0, -3.0], [0.25, 7.0]]
    assert vectors.dtype == np.float32
    exact = dataclasses.replace(VECTORS, low=(-0.1, -math.inf), dtype="float64")
    assert exact.to_environment(np.array([[-3.0, 0.5]], np.float32)).tolist() == [[-0.1, 0.5]]
    pairs = PAIRS.to_environment(np.array([[0, 0], [1, 2]]))
    assert pairs.tolist() == [[-1, 4], [0, 6]]
    assert pairs.dtype == np.int32


# -- the critic ------------------------------------------------------------------------------------------------


def test_values_follow_until_an_episode_terminates():
    critic = scattered(ControlCritic(3, (5,), "tanh").double())
    context = ObservationContext(random(2, 3, 3), random(2, 3, 3, seed=1))
    context.observations[~MASK], context.next_observations[~MASK] = math.nan, math.nan
    flags = torch.zeros(2, 3, dtype=torch.bool)
    terminated, truncated = flags.clone(), flags.clone()
    terminated[0, 1] = truncated[0, 0] = terminated[1, 0] = truncated[1, 0] = True  # the last in both ways
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    rollout = Rollout(context, zeros.long(), MASK, zeros, terminated, truncated, torch.arange(2))
    values = critic.values(rollout)
    following = critic.next_values(rollout, values)

    def value(observation):
        return critic.score(critic.trunk(observation)).item()

    for b, t in MASK.nonzero().tolist():
        assert values[b, t].item() == pytest.approx(value(context.observations[b, t]), rel=1e-9)
        after = 0.0 if terminated[b, t] else value(context.next_observations[b, t])
        assert following[b, t].item() == pytest.approx(after, rel=1e-9)
    assert following[0, 0] != 0  # truncated
    assert values[~MASK].tolist() == following[~MASK].tolist() == [0, 0]


# -- building and saving ---------------------------------------------------------------------------------------


def test_networks_start_orthogonal():
    policy = ControlBackbone(hidden=(8, 8)).policy(lambda: CHOICES)
    critic = ControlBackbone(hidden=(8, 8)).critic(policy)
    for network, last, gain in ((policy, policy.head.layer, 0.01), (critic, critic.score, 1.0)):
        torch.testing.assert_close(network.trunk[2].weight @ network.trunk[2].weight.T, 2 * torch.eye(8))
        torch.testing.assert_close(last.weight @ last.weight.T, gain**2 * torch.eye(len(last.weight)))
        assert all((p == 0).all() for name, p in network.named_parameters() if name.endswith("bias"))
    assert not torch.equal(policy.trunk[0].weight, critic.trunk[0].weight)
    assert ControlBackbone(initial_log_std=-0.5).policy(lambda: VECTORS).head.log_std.tolist() == [-0.5, -0.5]
    assert [type(layer).__name__ for layer in perceptron(3, (4, 5), "relu")] == ["Linear", "ReLU", "Linear", "ReLU"]


def test_critic_may_have_other_layers_than_a_linear_policy():
    backbone = ControlBackbone(hidden=(), critic_hidden=(20,))
    policy = backbone.policy(lambda: CHOICES)
    size = policy.spaces.observation_size
    assert sum(p.numel() for p in policy.parameters()) == (size + 1) * policy.head.layer.out_features
    assert sum(p.numel() for p in backbone.critic(policy).parameters()) == (size + 1) * 20 + 20 + 1
    assert len(ControlBackbone(hidden=()).critic(policy).trunk) == 0, "the same layers if nothing is said"
    with pytest.raises(UserError, match=r"critic_hidden must be sizes of at least 1, got \[0\]"):
        ControlBackbone(critic_hidden=(0,))


def test_start_follows_from_the_seed_of_the_run_alone():
    def start(seed):
        with run_seed_is(seed):
            return snapshot(ControlBackbone().policy(lambda: CHOICES))

    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    assert same(start(0), start(0))
    assert not same(start(0), start(1))
    assert torch.equal(torch.random.get_rng_state(), state)


@EVERY
def test_saved_policy_plays_as_before(tmp_path, spaces):
    policy = scattered(
        ControlPolicy(spaces, hidden=(5, 6), temperature=0.5, normalize_observations=True, activation="relu")
    )
    policy.normalizer.update(random(20, 3))
    policy.save(tmp_path / "export")
    state = torch.random.get_rng_state()
    loaded = ControlPolicy.load(tmp_path / "export")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same(snapshot(loaded), snapshot(policy))
    assert loaded.spaces == spaces
    observations, noise = (
        random(4, 3).float(),
        policy.noise(row_keys(seed=0, stream=0, iteration=0, rows=torch.arange(4))),
    )
    assert torch.equal(loaded.act(observations, noise), policy.act(observations, noise))


def test_policy_that_cannot_be_loaded_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"has no policy.json; expected the export of a run in an environment"):
        ControlPolicy.load(tmp_path)
    built(CHOICES).save(tmp_path)
    (tmp_path / "policy.json").write_text(
        (tmp_path / "policy.json").read_text().replace('"choices": 4', '"choices": 5')
    )
    with pytest.raises(UserError, match="holds no policy that can be loaded") as refusal:
        ControlPolicy.load(tmp_path)
    assert "\n" not in str(refusal.value)


def test_export_from_before_vectors_had_a_type_is_loaded(tmp_path):
    built(VECTORS).save(tmp_path)
    arguments = json.loads((tmp_path / "policy.json").read_text())
    del arguments["spaces"]["dtype"]
    (tmp_path / "policy.json").write_text(json.dumps(arguments))
    assert ControlPolicy.load(tmp_path).spaces == VECTORS


def test_critic_is_saved(tmp_path):
    critic = ControlCritic(3, (5,), "tanh")
    critic.save(tmp_path / "critic")
    assert same(load_file(tmp_path / "critic" / "critic.safetensors"), snapshot(critic))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: ControlBackbone(distribution="categorical").policy(lambda: VECTORS),
            "vectors of length 2; expected gaussian",
        ),
        (
            lambda: ControlBackbone(distribution="gaussian").policy(lambda: CHOICES),
            "are 4 choices; expected categorical",
        ),
        (
            lambda: ControlBackbone(distribution="gaussian").policy(lambda: PAIRS),
            "are vectors of 2 × 3 choices; expected categorical",
        ),
        (
            lambda: ControlBackbone(distribution="beta"),
            "distribution is 'beta'; expected auto or categorical or gaussian",
        ),
        (lambda: ControlBackbone(activation="gelu"), "activation is 'gelu'; expected tanh or relu"),
        (lambda: ControlBackbone(hidden=(64, 0)), "hidden must be sizes of at least 1"),
        (lambda: ControlBackbone(initial_log_std=math.nan), "initial_log_std must be a finite number, got nan"),
        (lambda: ControlBackbone().policy(lambda: CHOICES, temperature=0.0), "temperature must be a number above 0"),
        (lambda: ControlBackbone().policy(Letters().interface), "the task is one of text; expected LanguageBackbone"),
        (
            lambda: JointEncoder().build(ControlBackbone(), lambda: CHOICES, outputs=1, seed=None),
            "builds no reward model",
        ),
        (lambda: ControlBackbone().critic(built(CHOICES), init="x"), r"critic.init is a reward model of text.*null"),
        (lambda: ControlBackbone().critic(built(CHOICES), shared=True), r"critic.shared true is for language models"),
    ],
)
def test_what_cannot_be_built_is_one_line(build, message):
    with pytest.raises(UserError, match=message) as refusal:
        build()
    assert "\n" not in str(refusal.value)

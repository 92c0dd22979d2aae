"""Exact answers, against recursion over the tree, finite differences and what must hold at a maximum."""

import math

import pytest
import torch
from bandit_oracles import (
    action_fisher,
    exact_critic,
    exact_optimum,
    log_partition,
    mean_length,
    reward_to_go_gradient,
    table_of,
    trajectory_fisher,
)

from rlhf_lightning.models.language.backbone import LanguageBackbone
from rlhf_lightning.models.tabular import OPEN, PREFIXES, TabularPolicy
from rlhf_lightning.tasks.bandit import Bandit
from rlhf_lightning.tasks.bandit.exact import Objective, flat_gradient, probabilities
from rlhf_lightning.tasks.bandit.tree import RESPONSES, as_rollout, build_tokenizer

SCORES = Bandit(seed=3).scores().double()
KL_COEF = 0.3


def policy(seed=0, temperature=0.8):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(OPEN, 3, generator=generator, dtype=torch.float64)
    return TabularPolicy(build_tokenizer(), logits, temperature=temperature)


def moved(given, logits):
    return TabularPolicy(given.tokenizer, logits.view(OPEN, 3), temperature=given.temperature)


POLICY, REFERENCE = policy(0), policy(1)
FREE, PENALIZED = Objective(SCORES), Objective(SCORES, REFERENCE, KL_COEF)
OBJECTIVES = pytest.mark.parametrize("objective", [FREE, PENALIZED], ids=["free", "penalized"])


def rows(policy):
    """The tree as a dictionary: probabilities of the tokens </s>, a, b after each text that can be continued."""
    weights = (policy.logits / policy.temperature).detach().exp()
    texts = [text for text in RESPONSES if len(text.split()) < 3]
    return {text: (row / row.sum()).tolist() for text, row in zip(texts, weights, strict=True)}


def steps(text):
    """The (prefix, token) of each action of a response that is cut at three tokens."""
    letters = text.split()
    found = [(" ".join(letters[:t]), "ab".index(letter) + 1) for t, letter in enumerate(letters)]
    return found if len(letters) == 3 else [*found, (text, 0)]


def probability(policy, text):
    tree = rows(policy)
    return math.prod(tree[prefix][token] for prefix, token in steps(text))


def step_rewards(objective, policy, text):
    """Of each action: minus the price of the KL, and the score at the last one."""
    own, rewards = rows(policy), [0.0] * len(steps(text))
    if objective.reference is not None:
        reference = rows(objective.reference)
        rewards = [-objective.kl_coef * math.log(own[s][a] / reference[s][a]) for s, a in steps(text)]
    rewards[-1] += objective.scores[RESPONSES.index(text)].item()
    return rewards


def reward_to_go(objective, policy, text, t, gamma):
    return sum(gamma**k * reward for k, reward in enumerate(step_rewards(objective, policy, text)[t:]))


def score_function(policy, prefix, token):
    """∇ log π(token|prefix) of a table: (1[k = token] − π(k|prefix)) / temperature in the prefix's row."""
    gradient = torch.zeros(OPEN, 3, dtype=torch.float64)
    row = torch.tensor(rows(policy)[prefix], dtype=torch.float64)
    gradient[RESPONSES.index(prefix)] = (torch.eye(3, dtype=torch.float64)[token] - row) / policy.temperature
    return gradient.view(-1)


def finite_differences(function, policy, step=1e-5):
    at, result = policy.logits.detach().view(-1), []
    for place in range(len(at)):
        shift = torch.zeros_like(at)
        shift[place] = step
        up, down = (function(moved(policy, at + sign * shift)).detach() for sign in (1, -1))
        result.append((up - down) / (2 * step))
    return torch.stack(result)


# -- the tree ----------------------------------------------------------------------------------------------------


def test_every_response_stands_once_in_the_tree():
    def grow(letters):
        yield " ".join(letters)
        if len(letters) < 3:
            for letter in "ab":
                yield from grow([*letters, letter])

    assert sorted(grow([])) == sorted(RESPONSES)
    assert len(set(RESPONSES)) == PREFIXES == 15


def test_as_rollout_is_what_decoding_would_have_given():
    rollout = as_rollout(POLICY)
    for row, text in enumerate(RESPONSES):
        expected = [token for _, token in steps(text)]
        mask = rollout.action_mask[row]
        assert mask.tolist() == [t < len(expected) for t in range(3)]
        assert rollout.actions[row][mask].tolist() == expected
        full = len(text.split()) == 3
        ends = [False] * (len(expected) - 1) + [True] + [False] * (3 - len(expected))
        assert rollout.truncated[row].tolist() == [full and end for end in ends]
        assert rollout.terminated[row].tolist() == [not full and end for end in ends]
        tree = rows(POLICY)
        logprobs = torch.tensor([math.log(tree[s][a]) for s, a in steps(text)], dtype=torch.float64)
        torch.testing.assert_close(rollout.old_logprobs[row][mask], logprobs)
    assert not rollout.old_logprobs.requires_grad


def test_as_rollout_of_chosen_responses():
    every, chosen = as_rollout(POLICY), as_rollout(POLICY, [2, 0, 2])
    assert chosen.actions.tolist() == [[2, 0], [0, 0], [2, 0]]
    assert chosen.rows.tolist() == [0, 1, 2]
    expected = every.select(torch.tensor([2, 0, 2]))
    for name in ("actions", "action_mask", "old_logprobs", "terminated", "truncated"):
        assert torch.equal(getattr(chosen, name), getattr(expected, name))
    assert as_rollout(POLICY, [14]).truncated.tolist() == [[False, False, True]]


def test_probabilities_equal_products_over_the_tree():
    found = probabilities(POLICY)
    torch.testing.assert_close(found.tolist(), [probability(POLICY, text) for text in RESPONSES])
    assert found.sum().item() == pytest.approx(1, abs=1e-12)
    lengths = sum(probability(POLICY, text) * len(steps(text)) for text in RESPONSES)
    assert mean_length(POLICY).item() == pytest.approx(lengths, abs=1e-12)


# -- objective and gradients -------------------------------------------------------------------------------------


@OBJECTIVES
def test_objective_equals_a_sum_over_the_tree(objective):
    expected = sum(probability(POLICY, text) * sum(step_rewards(objective, POLICY, text)) for text in RESPONSES)
    assert objective.value(POLICY).item() == pytest.approx(expected, abs=1e-12)


@OBJECTIVES
def test_gradient_equals_finite_differences_and_the_score_function(objective):
    found = objective.gradient(POLICY)
    assert found.norm() > 0.1
    torch.testing.assert_close(found, finite_differences(objective.value, POLICY), rtol=1e-7, atol=1e-9)
    expected = sum(
        probability(POLICY, text)
        * sum(step_rewards(objective, POLICY, text))
        * sum(score_function(POLICY, *step) for step in steps(text))
        for text in RESPONSES
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@OBJECTIVES
@pytest.mark.parametrize("gamma", [1.0, 0.5, 0.0])
def test_reward_to_go_gradient_equals_plain_loops(objective, gamma):
    found = reward_to_go_gradient(objective, POLICY, gamma=gamma)
    expected = sum(
        probability(POLICY, text) * reward_to_go(objective, POLICY, text, t, gamma) * score_function(POLICY, *step)
        for text in RESPONSES
        for t, step in enumerate(steps(text))
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    difference = (found - objective.gradient(POLICY)).abs().max()
    assert difference < 1e-12 if gamma == 1 else difference > 1e-2


def test_reward_to_go_is_not_the_gradient_of_the_discounted_return():
    gamma = 0.5

    def discounted(policy):
        factors = gamma ** (as_rollout(policy).lengths() - 1)
        return (probabilities(policy) * factors * SCORES).sum()

    found = reward_to_go_gradient(FREE, POLICY, gamma=gamma)
    assert (found - finite_differences(discounted, POLICY)).abs().max() > 1e-2


# -- Fisher matrix -----------------------------------------------------------------------------------------------


def test_fisher_equals_that_of_whole_responses():
    # gradients of different actions are uncorrelated, so E[Σₜ gₜ gₜᵀ] = E[(Σₜ gₜ)(Σₜ gₜ)ᵀ]
    expected = 0
    for text in RESPONSES:
        score = sum(score_function(POLICY, *step) for step in steps(text))
        expected = expected + probability(POLICY, text) * torch.outer(score, score)
    found = trajectory_fisher(POLICY)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert torch.linalg.matrix_rank(found) == 14  # a constant added to a row of logits changes nothing


def test_fisher_equals_the_hessian_of_the_kl():
    def kl_gradient(other):
        every = as_rollout(POLICY)
        kl = POLICY.evaluate(every.context, every.actions, every.action_mask, against=other).kl
        return flat_gradient((probabilities(POLICY).detach() * kl.sum(-1)).sum(), other)

    assert kl_gradient(moved(POLICY, POLICY.logits.detach().clone())).abs().max() < 1e-12
    expected = finite_differences(kl_gradient, POLICY)
    torch.testing.assert_close(trajectory_fisher(POLICY), expected, rtol=1e-6, atol=1e-9)


def test_fisher_per_action_is_divided_by_the_mean_length():
    expected = trajectory_fisher(POLICY) / sum(probability(POLICY, text) * len(steps(text)) for text in RESPONSES)
    torch.testing.assert_close(action_fisher(POLICY), expected)


# -- values ------------------------------------------------------------------------------------------------------


@OBJECTIVES
@pytest.mark.parametrize("gamma", [1.0, 0.7])
def test_values_equal_recursion_over_the_tree(objective, gamma):
    own = rows(POLICY)

    def value(prefix):
        score = objective.scores[RESPONSES.index(prefix)].item()
        if prefix not in own:
            return score
        total = 0.0
        for token, p in enumerate(own[prefix]):
            following = f"{prefix} {'ab'[token - 1]}".strip() if token else prefix
            price = 0.0
            if objective.reference is not None:
                price = objective.kl_coef * math.log(p / rows(objective.reference)[prefix][token])
            ends = token == 0 or following not in own
            worth = objective.scores[RESPONSES.index(following)].item() if ends else gamma * value(following)
            total += p * (worth - price)
        return total

    values = objective.values(POLICY, gamma=gamma)
    torch.testing.assert_close(values.tolist(), [value(text) for text in RESPONSES])
    if gamma == 1:
        assert values[0].item() == pytest.approx(objective.value(POLICY).item(), abs=1e-12)
    critic = exact_critic(objective, POLICY, gamma=gamma)
    assert torch.equal(critic.table.detach(), values)


# -- the maximum -------------------------------------------------------------------------------------------------


def test_optimum_equals_its_formula():
    weights = [
        probability(REFERENCE, t) * math.exp(r / KL_COEF) for t, r in zip(RESPONSES, SCORES.tolist(), strict=True)
    ]
    assert log_partition(PENALIZED).item() == pytest.approx(math.log(sum(weights)), abs=1e-12)
    torch.testing.assert_close(exact_optimum(PENALIZED).tolist(), [weight / sum(weights) for weight in weights])


def test_optimum_is_the_maximum():
    best = table_of(exact_optimum(PENALIZED), like=POLICY)
    torch.testing.assert_close(probabilities(best), exact_optimum(PENALIZED))
    largest = KL_COEF * log_partition(PENALIZED)
    assert PENALIZED.value(best).item() == pytest.approx(largest.item(), abs=1e-12)
    assert PENALIZED.gradient(best).abs().max() < 1e-12
    for seed in range(20):  # J(best) − J(π) = β KL(π‖best) for every π, so nothing is better
        other = probabilities(policy(seed)).detach()
        gap = KL_COEF * (other * (other / exact_optimum(PENALIZED)).log()).sum()
        assert gap > 0.01
        torch.testing.assert_close(largest - PENALIZED.value(policy(seed)).detach(), gap)


def test_optimum_without_a_price_is_refused():
    for objective in (FREE, Objective(SCORES, REFERENCE, 0.0)):
        with pytest.raises(ValueError, match="without a reference and a coefficient above 0"):
            exact_optimum(objective)


def test_table_of_keeps_tokenizer_precision_and_temperature():
    again = table_of(probabilities(POLICY).detach(), like=POLICY)
    assert again.temperature == POLICY.temperature
    torch.testing.assert_close(again.distributions()[:OPEN], POLICY.distributions()[:OPEN])
    single = policy().float()
    assert table_of(probabilities(single).detach(), like=single).logits.dtype == torch.float32


def test_answers_hold_for_a_transformer_too():
    backbone = LanguageBackbone(style="gpt2", width=8, layers=1, heads=2, context_length=8)
    network = backbone.policy(Bandit().interface).double()
    assert probabilities(network).sum().item() == pytest.approx(1, abs=1e-12)
    gradient = PENALIZED.gradient(network)
    torch.testing.assert_close(gradient, reward_to_go_gradient(PENALIZED, network, gamma=1.0), rtol=0, atol=1e-12)
    assert gradient.abs().max() > 1e-4
    torch.testing.assert_close(trajectory_fisher(network), trajectory_fisher(network).T)

    table = table_of(probabilities(network).detach(), like=POLICY)
    torch.testing.assert_close(PENALIZED.value(network), PENALIZED.value(table))
    torch.testing.assert_close(PENALIZED.values(network, gamma=0.9), PENALIZED.values(table, gamma=0.9))

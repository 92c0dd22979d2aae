"""Conservative policy iteration: the mixture in closed form, and what must not change the fit."""

import math

import pytest
import torch
from bandit_oracles import exact_critic
from run_checks import (
    microbatches_change_nothing,
    padding_changes_nothing,
    policy_waits_for_the_critic,
    resumed_run_is_identical,
)
from training_helpers import (
    Iterations,
    Letters,
    distance,
    fit,
    rollouts,
    snapshot,
    tiny,
)

from rlhf_lightning.algorithms.cpi import CPI
from rlhf_lightning.algorithms.parts.critic import CriticOptions
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.lora import LoRA
from rlhf_lightning.models.tabular import OPEN, TabularBackbone
from rlhf_lightning.ops.rewards import last_action_rewards
from rlhf_lightning.tasks.bandit import Bandit
from rlhf_lightning.tasks.bandit.exact import Objective, flat_gradient
from rlhf_lightning.tasks.bandit.tree import RESPONSES, as_rollout
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import ScoredRollout

SCORES = Bandit(seed=3).scores().double()


def algorithm(task, **settings):
    defaults = {"optimization": Optimization(lr=1e-2), "minibatch_size": 8, "inner_epochs": 2, "eval_every": 1000}
    return CPI(task, settings.pop("backbone", None) or tiny(), **{**defaults, **settings})


# -- the mixture --------------------------------------------------------------------------------------------------

# π(</s>|s), π(a|s), π(b|s) in quarters, so that 64 responses can be as frequent as they are probable
QUARTERS = torch.tensor(
    [[1, 1, 2], [2, 1, 1], [1, 2, 1], [1, 1, 2], [1, 2, 1], [2, 1, 1], [1, 1, 2]], dtype=torch.float64
)


def steps(number):
    """The (prefix, token) of each action of a response that is cut at three tokens, from its text."""
    found, prefix = [], 0
    for letter in RESPONSES[number].split():
        token = "_ab".index(letter)
        found.append((prefix, token))
        prefix = 2 * prefix + token
    return found if prefix >= OPEN else [*found, (prefix, 0)]


def frequency(number):
    """How many of 64 responses are this one: 64 Π π(token|prefix)."""
    return round(64 * math.prod(QUARTERS[prefix, token].item() / 4 for prefix, token in steps(number)))


def value(prefix):
    """The expected score from here."""
    return sum(QUARTERS[prefix, token].item() / 4 * worth(prefix, token) for token in range(3))


def worth(prefix, token):
    """The expected score after a token."""
    after = 2 * prefix + token
    return SCORES[prefix].item() if token == 0 else SCORES[after].item() if after >= OPEN else value(after)


def mixture(alpha, eta):
    """(1 − α) π + α π e^{A/η} / Z, normalized in each prefix; Z is the mean over all actions that are taken."""
    visits = torch.zeros(OPEN, 3, dtype=torch.float64)
    for number in range(len(RESPONSES)):
        for prefix, token in steps(number):
            visits[prefix, token] += frequency(number)
    advantages = torch.tensor(
        [[worth(prefix, token) - value(prefix) for token in range(3)] for prefix in range(OPEN)], dtype=torch.float64
    )
    share = visits / visits.sum()
    deviation = (share * (advantages - (share * advantages).sum()) ** 2).sum().sqrt()
    weights = (advantages / deviation / eta).exp()
    weights = weights / (share * weights).sum()
    unnormalized = QUARTERS / 4 * (1 - alpha + alpha * weights)
    return unnormalized / unnormalized.sum(-1, keepdim=True)


def on_all_responses(**settings):
    """CPI with the critic that knows the values, and the batch of 64 responses that is the policy itself."""
    module = algorithm(Bandit(), backbone=TabularBackbone(), kl=KLControl(0.0), lam=0.0, minibatch_size=64, **settings)
    module.configure_model()
    module.double()
    with torch.no_grad():
        module.policy.logits.copy_(QUARTERS.log())
    module.critic.network = exact_critic(Objective(SCORES), module.policy, gamma=1.0)
    numbers = [number for number in range(len(RESPONSES)) for _ in range(frequency(number))]
    rollout, scores = as_rollout(module.policy, numbers), SCORES[numbers]
    scored = ScoredRollout(rollout, rewards=last_action_rewards(scores, rollout.action_mask), scores=scores)
    with torch.no_grad():
        return module, module.prepare(scored).batch


def loss(module, batch):
    whole = module.as_one_minibatch(batch)
    return sum(module.loss(part, whole).value for part in whole.parts)


def test_the_batch_is_the_policy():
    assert sum(frequency(number) for number in range(len(RESPONSES))) == 64
    _, batch = on_all_responses()
    assert len(batch) == 64


@pytest.mark.parametrize(("alpha", "eta"), [(0.3, 1.0), (1.0, 1.0), (0.5, 0.3)])
def test_fitted_policy_is_the_mixture(alpha, eta):
    module, batch = on_all_responses(mixture=alpha, eta=eta)
    expected = mixture(alpha, eta)
    assert (expected - QUARTERS / 4).abs().max() > 0.1
    optimizer = torch.optim.LBFGS(
        [module.policy.logits], max_iter=200, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        total = loss(module, batch)
        total.backward()
        return total

    optimizer.step(closure)
    torch.testing.assert_close(module.policy.logits.detach().softmax(-1), expected, rtol=1e-6, atol=1e-8)


def test_small_share_stays_close_to_the_policy():
    moved = [(mixture(alpha, 0.3) - QUARTERS / 4).abs().max().item() for alpha in (0.0, 0.01, 1.0)]
    assert moved[0] < 1e-15
    assert moved[1] < 0.1 * moved[2]


def test_share_of_zero_leaves_the_policy_in_place():
    module, batch = on_all_responses(mixture=0.0)
    assert torch.equal(batch.weights[batch.action_mask], torch.ones(int(batch.action_mask.sum())).double())
    assert flat_gradient(loss(module, batch), module.policy).abs().max() < 1e-12
    module, batch = on_all_responses(mixture=0.1)
    assert flat_gradient(loss(module, batch), module.policy).abs().max() > 1e-3


@pytest.mark.parametrize(("alpha", "eta"), [(0.3, 1.0), (1.0, 0.02)])
def test_weights_have_mean_one_over_the_actions(alpha, eta):
    task, seen = Letters(), Iterations()
    module = algorithm(task, mixture=alpha, eta=eta)
    row = fit(module, rollouts(task), seen, max_epochs=1, precision="64-true").rows[-1]
    mask, weights = seen.batch.action_mask, seen.batch.weights
    assert weights[mask].mean().item() == pytest.approx(1, abs=1e-12)
    assert weights[mask].min() >= 1 - alpha
    assert torch.equal(weights[~mask], torch.zeros_like(weights[~mask]))
    assert row["policy/weight_max"] == weights[mask].max() > 1.2


def test_update_approaches_the_mixture_of_what_was_sampled():
    task, seen = Bandit(), Iterations()
    module = algorithm(
        task,
        backbone=TabularBackbone(scale=0.3),
        optimization=Optimization(lr=0.03, max_grad_norm=None),
        mixture=0.7,
        eta=0.7,
        minibatch_size=64,
        inner_epochs=150,
    )
    row = fit(module, rollouts(task, task.gold(), size=64, max_new_tokens=3), seen, max_epochs=1).rows[-1]
    batch, weighted = seen.batch, torch.zeros(OPEN, 3)
    for i in range(len(batch)):
        prefix = 0
        for t, token in enumerate(batch.actions[i][batch.action_mask[i]].tolist()):
            weighted[prefix, token] += batch.weights[i, t]
            prefix = 2 * prefix + token
    often = weighted.min(-1).values > 0  # prefixes after which all three tokens were drawn
    assert often.sum() >= 4
    expected = weighted / weighted.sum(-1, keepdim=True)
    torch.testing.assert_close(module.policy.logits.detach().softmax(-1)[often], expected[often], rtol=0, atol=5e-3)
    assert row["policy/steps"] == 150


# -- what moves ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True], ids=["separate critic", "shared trunk"])
def test_critic_warmup_leaves_the_policy_of_cpi_as_it_is(shared):
    critic, optimization = CriticOptions(warmup=1, shared=shared), Optimization(lr=1e-2, weight_decay=0.1)
    module = algorithm(Letters(), critic=critic, optimization=optimization)
    policy_waits_for_the_critic(module, rollouts(Letters()), warmup=1)


def test_only_adapters_move_in_cpi(tmp_path):
    task = Letters()
    tiny().policy(task.tokenizer).save(tmp_path)
    module = algorithm(task, backbone=tiny(checkpoint=str(tmp_path), lora=LoRA(rank=2, alpha=8.0)))
    fit(module, rollouts(task), max_epochs=2)
    start, end = snapshot(module.reference.policy), snapshot(module.policy)
    assert {name for name in end if not torch.equal(end[name], start[name])} == {n for n in end if ".lora_" in n}


# -- what must not change it --------------------------------------------------------------------------------------


def test_microbatches_change_nothing_in_cpi():
    def build(size):
        return algorithm(Letters(), optimization=Optimization(3e-3, max_grad_norm=0.1, microbatch_size=size))

    module, _ = microbatches_change_nothing(build, lambda: rollouts(Letters()), iterations=3)
    assert distance(snapshot(module.policy), snapshot(module.reference.policy)) > 0.01


def test_padding_changes_nothing_in_cpi():
    padding_changes_nothing(lambda: algorithm(Letters(), minibatch_size=4), lambda: rollouts(Letters()))


def test_resumed_cpi_is_bit_identical(tmp_path):
    def build():
        optimization = Optimization(1e-2, "cosine", warmup=0.25, weight_decay=0.01)
        return algorithm(Letters(), optimization=optimization, minibatch_size=4)

    resumed_run_is_identical(build, lambda: rollouts(Letters()), tmp_path, iterations=3, after=1)


# -- what it says and what it learns ------------------------------------------------------------------------------

NAMES = {
    *(f"policy/{name}" for name in ("loss", "kl_old", "grad_norm", "weight_change", "weight_max", "steps")),
    *("objective/entropy", "rollout/logprob_gap"),
    *("value/loss", "value/grad_norm", "value/weight_change", "value/explained_variance"),
}


def test_rows_of_cpi_have_the_documented_names():
    task = Letters()
    row = fit(algorithm(task, minibatch_size=4), rollouts(task), max_epochs=2).rows[-1]
    own = {name for name in row if name.startswith(("policy/", "value/"))}
    assert own | (set(row) & NAMES) == NAMES
    assert all(type(value) in (int, float) and math.isfinite(value) for value in row.values())
    assert row["policy/steps"] == 2 * 2
    assert row["policy/kl_old"] > 1e-4
    assert row["rollout/logprob_gap"] <= 1e-4  # before the first step


def test_cpi_finds_the_best_response_of_the_tree():
    task = Bandit()
    scores = sorted(task.scores().tolist())
    module = algorithm(
        task,
        backbone=TabularBackbone(),
        optimization=Optimization(lr=0.1),
        kl=KLControl(0.0),
        mixture=1.0,
        eta=0.5,
        minibatch_size=64,
        inner_epochs=4,
    )
    data = rollouts(task, task.gold(), size=64, max_new_tokens=3, eval_prompts=64)
    rows = fit(module, data, max_epochs=20).rows
    assert rows[0]["eval/score"] < scores[-3] - 0.5
    assert rows[-1]["eval/score"] > scores[-3] + 0.4  # the two best are almost as good as each other


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixture": -0.1}, "mixture must be between 0 and 1, got -0.1"),
        ({"mixture": 1.1}, "mixture must be between 0 and 1, got 1.1"),
        ({"mixture": math.nan}, "mixture must be between 0 and 1, got nan"),
        ({"eta": 0.0}, "eta must be above 0, got 0.0"),
        ({"eta": math.inf}, "eta must be above 0, got inf"),
        ({"inner_epochs": 0}, "inner_epochs must be at least 1, got 0"),
        ({"lam": 1.1}, "lam must be between 0 and 1, got 1.1"),
        ({"kl": KLControl(0.1, "exact")}, "kl.estimator exact is .*"),
    ],
)
def test_bad_arguments_of_cpi_are_named_in_one_line(settings, message):
    with pytest.raises(UserError, match=rf"^model\.init_args\.{message}$"):
        algorithm(Letters(), **settings)

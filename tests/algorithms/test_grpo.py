"""GRPO and its relatives: gradients against loops over plain lists, averages by hand, and what must not change them."""

import statistics

import pytest
import torch
from group_helpers import group_rollouts
from plain_forward import action_logprobs, sequences, share_of_b, token_logprobs
from run_checks import (
    compared_gradients,
    microbatches_change_nothing,
    padding_changes_nothing,
    resumed_run_is_identical,
)
from training_helpers import (
    AtHook,
    BeforeUpdate,
    CountsB,
    Iterations,
    Letters,
    PaysFor,
    fit,
    same,
    snapshot,
    tiny,
)

from rlhf_lightning.algorithms.grpo import GRPO, ResponseMean, ResponseSum, TokenMean
from rlhf_lightning.algorithms.parts.kl_control import AdaptiveKLControl, KLControl, KLLoss
from rlhf_lightning.algorithms.parts.surrogates import (
    Clip,
    MeanRatio,
    Penalty,
    SequenceRatio,
    Surrogate,
    TokenRatio,
)
from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.optimization import Optimization

BETA, SAMPLES = 0.3, 4


def in_loss(coef, estimator):
    """A KL in the loss that is measured by the same estimator."""
    return KLControl(coef, estimator, KLLoss(estimator))


def grpo(task=None, **settings):
    defaults = {"eval_every": 1000, "optimization": Optimization(lr=1e-2)}
    return GRPO(task or Letters(), tiny(), **{**defaults, **settings})


# -- the loss ----------------------------------------------------------------------------------------------------


def test_averages_of_a_microbatch_by_hand():
    # responses of 3 and 1 tokens, in a minibatch of 5 responses and 12 tokens
    positions = torch.tensor([[True, True, True], [True, False, False]])
    losses = torch.tensor([1.0, 2.0, 6.0, 4.0])
    counts = {"responses": 5, "count": 12}
    assert ResponseMean().reduce(losses, positions, **counts).item() == pytest.approx((9 / 3 + 4) / 5)
    assert TokenMean().reduce(losses, positions, **counts).item() == pytest.approx(13 / 12)
    assert ResponseSum().reduce(losses, positions, **counts).item() == pytest.approx(13 / 5)
    first = torch.tensor([[True, False, False], [True, False, False]])
    counts = {"responses": 5, "count": 5}
    for average in (ResponseMean(), TokenMean(), ResponseSum()):
        assert average.reduce(torch.tensor([3.0, 4.0]), first, **counts).item() == pytest.approx(7 / 5)


def by_hand(variant):
    """The loss of a variant, by a loop over rows and tokens."""
    low, high = variant.get("clip", (0.2, 0.2))

    def loss(module, prepared, old):
        rows = list(sequences(prepared.batch))
        logprobs = action_logprobs(module.policy, prepared.batch)
        if old is None:
            return group_scores(module, rows), [row.tolist() for row in logprobs]
        advantages, before = old
        terms = []  # of each response, the losses of its tokens
        for advantage, then, now in zip(advantages, before, logprobs, strict=True):
            differences = [n - t for n, t in zip(now, then, strict=True)]
            if variant.get("ratio") == "mean":
                differences = [sum(differences) / len(differences)]
            if variant.get("ratio") == "product":
                differences = [sum(differences)]
            ratios = [d.exp() for d in differences]
            terms.append([-torch.minimum(r * advantage, r.clamp(1 - low, 1 + high) * advantage) for r in ratios])
        total = averaged(variant["average"], terms)
        if variant.get("beta"):
            total = total + variant["beta"] * averaged(variant["average"], divergences(module, rows, variant))
        return total

    def group_scores(module, rows):
        scores = [share_of_b(module.policy, actions) for _, actions in rows]
        if variant.get("price"):
            prices = [sum(row).item() for row in divergences(module, rows, {"estimator": "k1"})]
            scores = [score - variant["price"] * price for score, price in zip(scores, prices, strict=True)]
        advantages = []
        for i, score in enumerate(scores):
            group = scores[i // SAMPLES * SAMPLES :][:SAMPLES]
            spread = statistics.stdev(group) + 1e-4 if variant["std"] else 1.0
            advantages.append((score - statistics.mean(group)) / spread)
        return advantages

    return loss


def averaged(name, terms):
    if name == "response mean":
        return sum(sum(row) / len(row) for row in terms) / len(terms)
    total = sum(sum(row) for row in terms)
    return total / (sum(len(row) for row in terms) if name == "token mean" else len(terms))


def divergences(module, rows, variant):
    """Of each response, the estimate of the KL to the reference at its tokens."""
    result = []
    for prompt, actions in rows:
        own = token_logprobs(module.policy, prompt, actions)
        reference = token_logprobs(module.reference.policy, prompt, actions).detach()
        if variant["estimator"] == "exact":
            result.append([(p.exp() * (p - q)).sum() for p, q in zip(own, reference, strict=True)])
            continue
        if variant["estimator"] == "forward":
            result.append([(q.exp() * (q - p)).sum() for p, q in zip(own, reference, strict=True)])
            continue
        differences = [p[a] - q[a] for p, q, a in zip(own, reference, actions, strict=True)]
        if variant["estimator"] == "k1":
            result.append(differences)
        elif variant["estimator"] == "k2":
            result.append([d**2 / 2 for d in differences])
        else:
            result.append([(-d).exp() - 1 + d for d in differences])
    return result


GRPO_AND_RELATIVES = {
    "GRPO": (
        {"kl": in_loss(BETA, "k3")},
        {"std": True, "average": "response mean", "beta": BETA, "estimator": "k3"},
    ),
    "Dr. GRPO": (
        {"normalize_std": False, "average": ResponseSum(), "kl": KLControl(0.0, "k3")},
        {"std": False, "average": "response sum"},
    ),
    "DAPO": (
        {"average": TokenMean(), "surrogate": Clip(0.2, 0.28), "kl": KLControl(0.0, "k3")},
        {"std": True, "average": "token mean", "clip": (0.2, 0.28)},
    ),
    "GSPO": (
        {"ratio": MeanRatio(), "surrogate": Clip(0.02, 0.03), "kl": KLControl(0.0)},
        {"std": True, "average": "response mean", "ratio": "mean", "clip": (0.02, 0.03)},
    ),
    "whole responses, token mean, k2": (
        {"ratio": SequenceRatio(), "average": TokenMean(), "surrogate": Surrogate(), "kl": in_loss(BETA, "k2")},
        {
            **{"std": True, "average": "token mean", "ratio": "product", "clip": (1e9, 1e9)},
            **{"beta": BETA, "estimator": "k2"},
        },
    ),
    "response sum, exact KL": (
        {"average": ResponseSum(), "normalize_std": False, "kl": in_loss(BETA, "exact")},
        {"std": False, "average": "response sum", "beta": BETA, "estimator": "exact"},
    ),
    "forward KL": (
        {"kl": KLControl(BETA, "k1", KLLoss("exact", "forward"))},
        {"std": True, "average": "response mean", "beta": BETA, "estimator": "forward"},
    ),
    "KL in the reward": (
        {"average": ResponseSum(), "kl": KLControl(BETA, "k1")},
        {"std": True, "average": "response sum", "price": BETA},
    ),
}


@pytest.mark.parametrize("name", GRPO_AND_RELATIVES)
def test_grpo_gradient_is_that_of_the_papers_loss(name):
    settings, variant = GRPO_AND_RELATIVES[name]
    task = Letters()
    optimization = Optimization(lr=2e-2, microbatch_size=3, max_grad_norm=None)
    module = grpo(task, **settings, inner_epochs=3, optimization=optimization, temperature=0.8)
    assert compared_gradients(module, group_rollouts(task, max_new_tokens=5), by_hand(variant), iterations=2) == 6


@pytest.mark.parametrize("name", ["GRPO", "DAPO", "GSPO"])
def test_grpo_clips_in_those_comparisons(name):
    settings, _ = GRPO_AND_RELATIVES[name]
    task = Letters()
    module = grpo(task, **settings, inner_epochs=3, optimization=Optimization(lr=2e-2, max_grad_norm=None))
    rows = fit(module, group_rollouts(task, max_new_tokens=5), max_epochs=2, precision="64-true").rows
    assert max(row["policy/clip_fraction"] for row in rows[1:]) > 0.05


def test_grpo_ratio_is_one_at_the_first_step():
    task = Letters()
    rows = fit(grpo(task), group_rollouts(task, max_new_tokens=6), max_epochs=3).rows[1:]
    assert all(row["policy/ratio_max"] == pytest.approx(1, abs=1e-4) for row in rows)
    assert all(row["policy/clip_fraction"] == 0 for row in rows)


def calls_of_the_reference(**settings):
    """How often the reference is evaluated before the update, and in it up to its last step; the last row."""
    task, calls = Letters(), []

    def count(trainer, module):
        trunk = module.reference.policy.model.base_model
        trunk.register_forward_pre_hook(lambda network, inputs: calls.append("forward"))

    mark = BeforeUpdate(lambda trainer, module, prepared: calls.append("update"))
    step = AtHook("on_before_optimizer_step", lambda trainer, module: calls.append("step"))
    module = grpo(task, **settings, inner_epochs=2)
    rows = fit(module, group_rollouts(task), AtHook("on_train_epoch_start", count), mark, step, max_epochs=1).rows
    assert calls.count("step") == 2
    start, end = calls.index("update"), len(calls) - calls[::-1].index("step")
    return calls[:start].count("forward"), calls[start:end].count("forward"), rows[-1]


def test_grpo_evaluates_the_reference_in_the_loss_only_where_the_exact_kl_is_asked_for():
    for kl in (KLControl(0.0, "k3"), in_loss(0.1, "k3"), in_loss(0.0, "exact"), KLControl(0.1, "k1")):
        before, within, row = calls_of_the_reference(kl=kl)
        assert before > 0
        assert within == 0
        assert "objective/kl_ref_sequence" in row
    for direction in ("reverse", "forward"):
        _, within, _ = calls_of_the_reference(kl=KLControl(0.1, "exact", KLLoss("exact", direction)))
        assert within == 2


@pytest.mark.parametrize("estimator", ["k3", "exact"])
def test_grpo_reports_the_kl_and_the_coefficient_that_the_loss_holds(estimator):
    task, measured, coefficients = Letters(), [], []

    def measure(trainer, module, prepared):
        rows = divergences(module, list(sequences(prepared.batch)), {"estimator": estimator})
        with torch.no_grad():
            measured.append((sum(sum(row).item() for row in rows), len(rows), sum(len(row) for row in rows)))
            coefficients.append(module.reference.kl.coef)

    kl = AdaptiveKLControl(0.1, estimator, KLLoss(estimator), target=0.05)
    module = grpo(task, kl=kl, optimization=Optimization(lr=3e-2))
    rows = fit(module, group_rollouts(task), BeforeUpdate(measure), max_epochs=4).rows[1:]
    assert [row["kl_control/coef"] for row in rows] == coefficients
    coef = 0.1
    for row, (total, responses, tokens) in zip(rows, measured, strict=True):
        assert row["kl_control/coef"] == pytest.approx(coef)
        assert row["objective/kl_ref_sequence"] == pytest.approx(total / responses, abs=1e-5)
        assert row["objective/kl_ref_token"] == pytest.approx(total / tokens, abs=1e-5)
        coef *= 1 + 0.5 * min(max(row["objective/kl_ref_sequence"] / 0.05 - 1, -0.2), 0.2)
    assert module.reference.kl.coef == pytest.approx(coef)
    assert min(coefficients) < 0.1 < coef


def test_grpo_overlong_responses_are_punished_before_groups_are_compared():
    task, seen = Letters(), Iterations()
    module = grpo(task, overlong_cache=2, normalize_std=False)
    data = group_rollouts(task, max_new_tokens=4)
    [_, row] = fit(module, data, seen, max_epochs=1).rows
    batch, [scored] = seen.batch, seen.scored
    # of at most 4 tokens, the last 2 are the cache: 2 or fewer cost nothing, 3 a half, 4 all
    punishment = [{1: 0.0, 2: 0.0, 3: 0.5, 4: 1.0}[int(n)] for n in batch.action_mask.sum(-1)]
    assert len(set(punishment)) > 1
    rewards = [score - cost for score, cost in zip(scored.scores.tolist(), punishment, strict=True)]
    for i, reward in enumerate(rewards):
        group = rewards[i // SAMPLES * SAMPLES :][:SAMPLES]
        assert batch.advantages[i, 0].item() == pytest.approx(reward - statistics.mean(group), abs=1e-6)
    assert row["objective/reward"] == pytest.approx(statistics.mean(rewards), abs=1e-6)
    assert row["objective/score"] == pytest.approx(statistics.mean(scored.scores.tolist()), abs=1e-6)


def test_grpo_price_in_the_reward_stands_in_the_reported_reward():
    task, seen = Letters(), Iterations()
    module = grpo(task, kl=KLControl(0.5), optimization=Optimization(lr=3e-2))
    rows = fit(module, group_rollouts(task), seen, max_epochs=3).rows[1:]
    for row, scored in zip(rows, seen.scored, strict=True):
        price = 0.5 * row["objective/kl_ref_sequence"]
        assert row["objective/reward"] == pytest.approx(scored.scores.mean().item() - price, abs=1e-6)
    assert rows[-1]["objective/kl_ref_sequence"] > 0.01


def test_grpo_update_ends_where_the_policy_has_gone_too_far():
    task, moved = Letters(), []
    hook = AtHook("on_before_optimizer_step", lambda trainer, module: moved.append(module.current_epoch))
    settings = {"inner_epochs": 5, "optimization": Optimization(lr=3e-2), "minibatch_size": 4}
    free = fit(grpo(task, **settings), group_rollouts(task), max_epochs=2).rows[1:]
    rows = fit(grpo(task, **settings, stop_kl=0.01), group_rollouts(task), hook, max_epochs=2).rows[1:]
    assert [row["policy/steps"] for row in free] == [10, 10]
    assert [row["policy/steps"] for row in rows] == [moved.count(0), moved.count(1)]
    assert 1 <= rows[0]["policy/steps"] < 10


@pytest.mark.parametrize("ratio", [MeanRatio(), TokenRatio()], ids=["responses", "tokens"])
def test_grpo_padding_changes_nothing(ratio):
    padding_changes_nothing(
        lambda: grpo(minibatch_size=3, inner_epochs=2, ratio=ratio), lambda: group_rollouts(Letters())
    )


@pytest.mark.parametrize("name", ["GRPO", "GSPO"])
def test_grpo_microbatches_change_nothing(name):
    settings = GRPO_AND_RELATIVES[name][0] | {"surrogate": Clip(0.01), "dynamic_sampling": 2, "overlong_cache": 1}

    def build(size):
        optimization = Optimization(lr=1e-2, microbatch_size=size)
        return grpo(minibatch_size=4, inner_epochs=3, optimization=optimization, **settings)

    _, rows = microbatches_change_nothing(build, lambda: group_rollouts(Letters()))
    assert rows[-1]["policy/clip_fraction"] > 0.05


# -- dynamic sampling --------------------------------------------------------------------------------------------


class PaysSome(CountsB):
    """Share of the words that are ``b``, but 1 for whatever answers a prompt with a bee."""

    def score(self, prompts, responses):
        shares = super().score(prompts, responses)
        certain = torch.tensor(["bee" in prompt for prompt in prompts])
        return torch.where(certain, 1.0, shares)


def run_with_spy(reward, *, iterations=3, **settings):
    """Rows of a run; of each iteration the rollouts that were drawn, and what was trained on."""
    task, drawn, seen = Letters(), {}, Iterations()
    data = group_rollouts(task, reward, size=16)
    collect = data.collect

    def spy(policy, iteration, attempt=0):
        scored = collect(policy, iteration, attempt)
        drawn.setdefault(iteration, []).append((attempt, scored))
        return scored

    data.collect = spy
    module = grpo(task, kl=KLControl(0.0), **settings)
    rows = fit(module, data, seen, max_epochs=iterations).rows[1:]
    used = [(scored, prepared.batch) for scored, prepared in zip(seen.scored, seen.prepared, strict=True)]
    return module, rows, [drawn[iteration] for iteration in range(iterations)], used


def groups_of(scored):
    """Each group as prompt, responses and scores."""
    scores = scored.scores.tolist()
    return [
        (scored.prompts[i], tuple(scored.responses[i : i + SAMPLES]), tuple(scores[i : i + SAMPLES]))
        for i in range(0, len(scored), SAMPLES)
    ]


def wanted_groups(groups, count):
    """The first that differ; where those run out, the first of the others; in the order in which they were drawn."""
    useful = [i for i, (_, _, scores) in enumerate(groups) if len(set(scores)) > 1]
    others = [i for i in range(len(groups)) if i not in useful]
    return [groups[i] for i in sorted((useful + others)[:count])], min(len(useful), count)


def test_grpo_dynamic_sampling_fills_the_batch_with_groups_that_differ():
    _, rows, drawn, used = run_with_spy(PaysSome(), iterations=8, dynamic_sampling=3)
    samples, numbers, fillings = 0, set(), set()
    for row, draws, (scored, batch) in zip(rows, drawn, used, strict=True):
        assert [attempt for attempt, _ in draws] == list(range(len(draws)))
        groups = [group for _, draw in draws for group in groups_of(draw)]
        wanted, kept = wanted_groups(groups, 4)
        assert groups_of(scored) == wanted
        assert row["rollout/groups_kept"] == kept
        # it was drawn again only while groups were missing, and at most three times
        _, before = wanted_groups(groups[:-4], 4)
        assert len(draws) == 1 or before < 4
        assert kept == 4 or len(draws) == 3
        samples += 16 * len(draws)
        assert row["samples"] == samples
        scores = [score for _, _, group in groups for score in group]
        assert row["objective/score"] == pytest.approx(statistics.mean(scores), abs=1e-6)
        assert row["objective/reward"] == pytest.approx(statistics.mean(scores), abs=1e-6)
        # what was chosen belongs together: text, tokens, and what each token was given
        tokenizer = Letters().tokenizer()
        for i, (prompt, actions) in enumerate(sequences(batch)):
            assert tokenizer.decode(prompt) == scored.prompts[i]
            assert tokenizer.decode(actions, skip_special_tokens=True) == scored.responses[i]
            assert (batch.advantages[i][batch.action_mask[i]] == batch.advantages[i, 0]).all()
            if len(set(wanted[i // SAMPLES][2])) == 1:
                assert batch.advantages[i, 0] == 0
        numbers.add(len(draws))
        fillings.add(kept)
    assert len(numbers) > 1
    assert 4 in fillings
    assert len(fillings) > 1


def test_grpo_chosen_log_probabilities_are_those_of_the_policy():
    task, gaps = Letters(), []

    def compare(trainer, module, prepared):
        batch = prepared.batch
        rows = action_logprobs(module.policy, batch), action_logprobs(module.reference.policy, batch)
        for i, (own, reference) in enumerate(zip(*rows, strict=True)):
            mask = batch.action_mask[i]
            gaps.append((batch.old_logprobs[i][mask] - own).abs().max().item())
            gaps.append((batch.ref_logprobs[i][mask] - reference).abs().max().item())

    module = grpo(task, dynamic_sampling=3)
    fit(module, group_rollouts(task, PaysSome(), max_new_tokens=6), BeforeUpdate(compare), max_epochs=3)
    assert len(gaps) == 48
    assert max(gaps) < 1e-4


def test_grpo_draws_once_without_dynamic_sampling():
    _, rows, drawn, used = run_with_spy(PaysSome())
    kept = []
    for number, (row, draws, (scored, batch)) in enumerate(zip(rows, drawn, used, strict=True), start=1):
        [(attempt, draw)] = draws
        assert attempt == 0
        assert groups_of(scored) == groups_of(draw)  # in the same order
        assert row["samples"] == 16 * number
        uniform = [len(set(scores)) == 1 for _, _, scores in groups_of(scored)]
        assert row["rollout/groups_kept"] == uniform.count(False)
        for i, flag in enumerate(uniform):
            assert (batch.advantages[i * SAMPLES : (i + 1) * SAMPLES].abs().max() == 0) == flag
        kept.append(uniform.count(False))
    assert min(kept) < 4


def test_grpo_without_any_difference_stays_where_it_is():
    module, rows, drawn, used = run_with_spy(PaysFor("never"), dynamic_sampling=2)
    assert [len(draws) for draws in drawn] == [2, 2, 2]
    assert [row["samples"] for row in rows] == [32, 64, 96]
    for row, (scored, batch) in zip(rows, used, strict=True):
        assert row["rollout/groups_kept"] == 0
        assert len(scored) == 16
        assert batch.advantages.abs().max() == 0
        assert row["policy/grad_norm"] == 0
    assert same(snapshot(module.policy), snapshot(module.reference.policy))


@pytest.mark.parametrize("dynamic_sampling", [1, 3])
def test_grpo_resumed_run_is_bit_identical(tmp_path, dynamic_sampling):
    def build():
        return grpo(
            dynamic_sampling=dynamic_sampling,
            minibatch_size=4,
            inner_epochs=2,
            eval_every=2,
            kl=AdaptiveKLControl(0.1, "k3", KLLoss("k3"), target=0.05),
            optimization=Optimization(1e-2, "cosine"),
        )

    _, _, rows = resumed_run_is_identical(build, lambda: group_rollouts(Letters(), PaysSome(), size=16), tmp_path)
    assert (rows[-1]["samples"] > 64) == (dynamic_sampling > 1)


# -- bad input ---------------------------------------------------------------------------------------------------


def test_grpo_needs_several_samples_of_a_prompt():
    task = Letters()
    with pytest.raises(UserError, match=r"data\.init_args\.samples_per_prompt is 1; expected at least 2") as error:
        fit(grpo(task), group_rollouts(task, samples=1), max_epochs=1)
    assert "\n" not in str(error.value)


def test_grpo_cache_longer_than_a_response_is_refused():
    task = Letters()
    with pytest.raises(UserError, match=r"overlong_cache is 5, more than data\.init_args\.max_new_tokens 4"):
        fit(grpo(task, overlong_cache=5), group_rollouts(task), max_epochs=1)


def test_grpo_refuses_a_task_without_groups():
    class Walk(Task):
        provides = frozenset({"environments", "step rewards"})

    with pytest.raises(UserError, match="GRPO needs groups, which task Walk does not provide"):
        grpo(Walk(), kl=KLControl(0.0))


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"inner_epochs": 0}, r"model\.init_args\.inner_epochs"),
        ({"minibatch_size": 0}, r"model\.init_args\.minibatch_size"),
        ({"dynamic_sampling": 0}, r"model\.init_args\.dynamic_sampling"),
        ({"overlong_cache": -1}, r"model\.init_args\.overlong_cache"),
        ({"surrogate": Penalty()}, r"model\.init_args\.surrogate"),
        ({"stop_kl": 0.0}, r"model\.init_args\.stop_kl"),
        ({"kl": KLControl(0.1, "exact")}, r"model\.init_args\.kl\.estimator"),
    ],
)
def test_grpo_bad_arguments_are_named_in_one_line(bad, named):
    with pytest.raises(UserError, match=named) as error:
        grpo(**bad)
    assert "\n" not in str(error.value)


def test_grpo_takes_any_estimator_where_the_kl_is_only_measured():
    task = Letters()
    row = fit(grpo(task, kl=KLControl(0.0, "k1")), group_rollouts(task), max_epochs=2).rows[-1]
    assert row["objective/kl_ref_sequence"] != 0

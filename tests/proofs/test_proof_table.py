"""The table: its numbers are those of the moments, its verdicts can go either way, and its cells say so."""

from dataclasses import replace

import pytest
import torch
from placed import placed

from rlhf_lightning.algorithms.parts.claims import BIASED, SHORT_BY_BATCH, UNBIASED
from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.proofs.estimators import all_estimators
from rlhf_lightning.proofs.expectation import expected_gradient
from rlhf_lightning.proofs.instance import Instance
from rlhf_lightning.proofs.table import EstimatorRow, markdown, measure
from rlhf_lightning.tasks.bandit.exact import probabilities

AT = Instance(seed=2)
BY_NAME = {one.variant.name: one for one in all_estimators()}
SHORT, OFF = BY_NAME["REINFORCE, batch mean"], BY_NAME["PPO, geometric mean ratio"]


def claiming(estimator, claim):
    """The same estimator with another claim."""
    return replace(estimator, variant=replace(estimator.variant, claim=claim))


@pytest.fixture(scope="module")
def rows():
    return {one.variant.name: measure(one, AT, batch_size=2) for one in (SHORT, OFF)}


def test_row_of_a_scaled_estimator(rows):
    moments = expected_gradient(SHORT.module(AT), AT.scores, batch_size=2)
    row = rows[SHORT.variant.name]
    assert row.scale == 0.5
    assert row.error < 1e-12
    assert row.cosine == pytest.approx(1)
    assert row.variance == pytest.approx(moments.variance.item() / 0.25)
    assert row.holds


def test_row_of_a_biased_estimator_has_the_scale_that_fits_best(rows):
    found = -expected_gradient(OFF.module(AT), AT.scores, batch_size=2).mean
    exact = AT.objective.gradient(AT.policy)
    row = rows[OFF.variant.name]
    for other in (0.98 * row.scale, 1.02 * row.scale):
        assert (found - other * exact).norm() > row.error
    assert row.error == pytest.approx((found - row.scale * exact).norm().item())
    assert row.bias == pytest.approx((1 / row.cosine**2 - 1) ** 0.5)  # the tangent of the angle
    assert row.bias > 0.1
    assert row.holds


@pytest.mark.parametrize(
    ("claim", "error", "holds"),
    [
        (UNBIASED, 1e-12, True),
        (UNBIASED, 1e-3, False),
        (BIASED, 1e-3, True),
        (BIASED, 1e-12, False),
        (UNBIASED, float("nan"), False),
        (BIASED, float("nan"), False),
    ],
)
def test_verdicts_go_both_ways(claim, error, holds):
    row = EstimatorRow(claiming(SHORT, claim), scale=1.0, error=error, size=1.0, bias=0.2, cosine=0.9, variance=1.0)
    assert row.holds == holds
    assert ("REFUTED" in row.cells()[1]) != holds


@pytest.mark.parametrize("kl_coef", [0.0, 1e-9, 1e9])
@pytest.mark.parametrize(
    "name",
    [
        "REINFORCE, batch mean",
        "GRPO, no std, response sum, k2 in the loss",
        "PPO, λ = 0.95, wrong values",
        "PPO, geometric mean ratio",
    ],
)
def test_verdicts_do_not_depend_on_the_price_of_the_kl(name, kl_coef):
    """Rounding grows with β, a bias by the KL shrinks with it, and one by wrong values does not grow with it."""
    row = measure(BY_NAME[name], Instance(seed=2, kl_coef=kl_coef), batch_size=2)
    assert row.holds
    if kl_coef == 1e9:  # what was absolute would see a bias in the rounding
        assert (row.error > 1e-9) or row.exact
        assert "1e-09" not in row.cells()[3]


@pytest.mark.parametrize("kl_coef", [1e-9, 1e9])
@pytest.mark.parametrize(("estimator", "claim"), [(SHORT, UNBIASED), (SHORT, BIASED), (OFF, UNBIASED)])
def test_a_wrong_claim_is_refuted_at_any_price(estimator, claim, kl_coef):
    assert not measure(claiming(estimator, claim), Instance(seed=2, kl_coef=kl_coef), batch_size=2).holds


@pytest.mark.parametrize(
    ("estimator", "claim"), [(SHORT, UNBIASED), (SHORT, BIASED), (OFF, UNBIASED), (OFF, SHORT_BY_BATCH)]
)
def test_a_wrong_claim_is_refuted(estimator, claim):
    assert not measure(claiming(estimator, claim), AT, batch_size=2).holds


def test_markdown_says_what_it_is_about(rows):
    text = markdown(rows.values(), AT, batch_size=2)
    lines = text.splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    assert table[0] == ["optimizer", "E[g]", "c", "‖E[g] − c ∇J‖", "variance / c²"]
    assert table[1] == [
        SHORT.variant.name,
        "(1 − 1/B) ∇J",
        "0.5",
        "< 1e-09",
        f"{rows[SHORT.variant.name].variance:.4f}",
    ]
    row = rows[OFF.variant.name]
    verdict = f"biased: {100 * row.bias:.1f}%, cosine {row.cosine:.3f}"
    assert table[2] == [OFF.variant.name, verdict, f"≈ {row.scale:.3f}", f"{row.error:.4f}", f"{row.variance:.4f}"]
    assert len({len(line) for line in lines if line.startswith("|")}) == 1
    assert "seed 2: every batch of 2" in lines[0]
    assert f"‖∇J‖ = {AT.objective.gradient(AT.policy).norm().item():.4f}" in lines[1]
    assert "this is no ranking" in text


def test_instances_are_reproducible_and_differ():
    again, other = Instance(seed=2), Instance(seed=3)
    assert torch.equal(AT.policy.logits, again.policy.logits)
    assert torch.equal(AT.scores, again.scores)
    assert not torch.equal(AT.policy.logits, other.policy.logits)
    assert not torch.equal(AT.scores, other.scores)


def test_instance_places_networks(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")  # what a backbone would draw from
    module = placed(AT, PPO)
    torch.testing.assert_close(probabilities(module.policy), probabilities(AT.policy))
    torch.testing.assert_close(probabilities(module.reference.policy), probabilities(AT.reference))
    assert (probabilities(module.policy) - probabilities(module.reference.policy)).abs().max() > 0.1
    right = module.critic.network.table.detach()
    torch.testing.assert_close(right, AT.objective.values(AT.policy, gamma=1.0))
    wrong = placed(AT, PPO, wrong_critic=True).critic.network.table.detach()
    assert 0.2 < (wrong - right).std() < 1

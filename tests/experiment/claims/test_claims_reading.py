"""Claims as they are declared, and what is said of those that are wrong."""

import pytest
import yaml

from rlhf_lightning.errors import UserError
from rlhf_lightning.experiment.claims.chains import BestOf, Ordered
from rlhf_lightning.experiment.claims.contrasts import (
    Above,
    Below,
    Better,
    Decreasing,
    Equivalent,
    Greater,
    Increasing,
    LessSpread,
)
from rlhf_lightning.experiment.claims.declared import Kind
from rlhf_lightning.experiment.claims.reading import CHECKS, read_claims

ARMS = ["ppo", "reinforce", "grpo", "rloo"]
MEASURES = ["return", "fit_r2"]


def read(text, margin=None):
    return read_claims(yaml.safe_load(text), arms=ARMS, measures=MEASURES, margin=margin)


def test_every_check_is_read():
    claims = read("""
      - {better: [ppo, reinforce], kind: must hold, name: Figure 2, by: 0.1, published: 195}
      - {greater: [ppo, grpo], measure: fit_r2, kind: two-sided}
      - {order: [ppo, grpo, rloo]}
      - {equivalent: [ppo, grpo], margin: 0.1}
      - {above: {arm: ppo, value: 0.9}, measure: fit_r2}
      - {below: {arm: ppo, value: 2}}
      - {increasing: [ppo, grpo, rloo], kind: report only}
      - {decreasing: [ppo, grpo, rloo]}
      - {best_of: [ppo, grpo], better_than: [rloo]}
      - {less_spread: [ppo, rloo]}
    """)
    assert claims == [
        Better(measure="return", name="Figure 2", published=195, first="ppo", second="reinforce", by=0.1),
        Greater(measure="fit_r2", kind=Kind.TWO_SIDED, first="ppo", second="grpo"),
        Ordered(measure="return", ordered=("ppo", "grpo", "rloo")),
        Equivalent(measure="return", first="ppo", second="grpo", margin=0.1),
        Above(measure="fit_r2", arm="ppo", value=0.9),
        Below(measure="return", arm="ppo", value=2.0),
        Increasing(measure="return", kind=Kind.REPORT_ONLY, ordered=("ppo", "grpo", "rloo")),
        Decreasing(measure="return", ordered=("ppo", "grpo", "rloo")),
        BestOf(measure="return", candidates=("ppo", "grpo"), rivals=("rloo",)),
        LessSpread(measure="return", first="ppo", second="rloo"),
    ]
    assert {type(claim) for claim in claims} == set(CHECKS.values())
    assert claims[0].title == "Figure 2"
    assert claims[1].title == "ppo is greater than grpo"


def test_the_margin_of_the_comparison_is_for_its_primary_measure():
    primary, own, other = read(
        "[{better: [ppo, grpo]}, {equivalent: [ppo, grpo], margin: 2}, {better: [ppo, grpo], measure: fit_r2}]",
        margin=0.5,
    )
    assert (primary.equivalence_margin, own.equivalence_margin, other.equivalence_margin) == (0.5, 2, None)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ("{better: [ppo, grpoo]}", r"claim 1 \(better\): unknown arm 'grpoo': did you mean grpo"),
        ("{better: [ppo, x]}", "unknown arm 'x': expected ppo, reinforce, grpo, rloo"),
        ("{better: [ppo]}", "better must be a list of 2 arms, got"),
        ("{better: ppo}", "better must be a list of 2 arms, got 'ppo'"),
        ("{better: [ppo, ppo]}", "better must name different arms"),
        ("{better: [ppo, grpo], by: -1}", "by must be a number above 0, got -1"),
        ("{better: [ppo, grpo], by: yes}", "by must be a number above 0, got True"),
        ("{better: [ppo, grpo], margin: 0}", "margin must be a number above 0, got 0"),
        ("{better: [ppo, grpo], measure: retur}", "unknown measure 'retur': did you mean return"),
        ("{better: [ppo, grpo], kind: must}", "unknown kind 'must': did you mean must hold"),
        ("{better: [ppo, grpo], kinds: must hold}", "unknown key 'kinds': did you mean kind"),
        ("{better: [ppo, grpo], published: [1]}", "published must be a number or text"),
        ("{better: [ppo, grpo], name: 3}", "name must be text, got 3"),
        ("{order: [ppo, grpo], by: 1}", "unknown key 'by'"),
        ("{bettr: [ppo, grpo]}", "claim 1: unknown check or key 'bettr': did you mean better"),
        ("{measure: return}", "claim 1: no check, expected one of better"),
        ("{better: [ppo, grpo], order: [ppo, grpo]}", "one check per claim, got better and order"),
        ("ppo > grpo", "expected a mapping"),
        ("{equivalent: [ppo, grpo]}", "equivalence needs a margin above 0"),
        ("{equivalent: [ppo, grpo], measure: fit_r2}", "equivalence needs a margin above 0"),
        ("{above: [ppo, 1]}", "above must be {arm: NAME, value: NUMBER}"),
        ("{above: {arm: ppo, value: high}}", "above.value must be a number, got 'high'"),
        ("{below: {arm: pp, value: 1}}", "unknown arm 'pp': did you mean ppo"),
        ("{increasing: [ppo, grpo]}", "increasing must be a list of at least 3 arms"),
        ("{best_of: [ppo, grpo]}", "best_of needs better_than"),
        ("{best_of: [ppo, grpo], better_than: [grpo]}", "grpo cannot be in best_of and in better_than"),
        ("{less_spread: [ppo, 3]}", "unknown arm 3"),
    ],
)
def test_a_wrong_claim_is_refused_with_its_place(claim, message):
    with pytest.raises(UserError, match=message) as error:
        read(f"[{claim}]")
    assert "\n" not in str(error.value)


def test_an_equivalence_claim_with_a_margin_of_0_is_refused():
    with pytest.raises(UserError, match="needs a margin above 0"):
        read("[{equivalent: [ppo, grpo]}]", margin=0.0)


@pytest.mark.parametrize("margin", [-1.0, float("nan"), float("inf")])
def test_a_wrong_margin_of_the_comparison_is_refused(margin):
    with pytest.raises(UserError, match="margin must be"):
        read("[]", margin=margin)


def test_all_wrong_claims_are_named_at_once():
    with pytest.raises(UserError, match=r"claim 1 .*; claim 3 "):
        read("[{better: [a, ppo]}, {better: [ppo, grpo]}, {order: [b, ppo]}]")


def test_claims_are_a_list():
    with pytest.raises(UserError, match="claims must be a list"):
        read("{better: [ppo, grpo]}")

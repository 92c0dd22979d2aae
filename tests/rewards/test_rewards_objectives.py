import math

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.objectives import DeclaredWeights, Lagrangian

DECLARED = {"helpful": 1.0, "harmless": 0.5, "concise": 0.25}


def learned(**settings):
    return Lagrangian("helpful", {"harmless": 0.5, "concise": -1.0}, **{"lr": 0.5, "initial": 1.0, **settings})


def test_declared_weights_are_the_sources_own_unless_others_are_given():
    assert DeclaredWeights().of(DECLARED) == DECLARED
    assert DeclaredWeights({"concise": 2.0, "harmless": -1.0}).of(DECLARED) == {
        "helpful": 1.0,
        "harmless": -1.0,
        "concise": 2.0,
    }
    assert DeclaredWeights().of({}) == {}


def test_declared_weights_learn_nothing():
    weights = DeclaredWeights({"concise": 2.0})
    before = weights.of(DECLARED)
    weights.update(dict.fromkeys(DECLARED, -9.0))
    assert weights.of(DECLARED) == before
    assert weights.measures() == weights.state_dict() == {}


def test_multipliers_by_hand():
    """λ of harmless: 1 + 0.5 (0.5 − 0.1) = 1.2; of concise: 1 + 0.5 (−1 − (−0.4)) = 0.7; 1 + 1.2 + 0.7 = 2.9."""
    weights = learned()
    third = 1 / 3
    assert weights.of(DECLARED) == pytest.approx({"helpful": third, "harmless": third, "concise": third})
    weights.update({"helpful": 5.0, "harmless": 0.1, "concise": -0.4})
    expected = {"helpful": 1 / 2.9, "harmless": 1.2 / 2.9, "concise": 0.7 / 2.9}
    assert weights.of(DECLARED) == pytest.approx(expected)
    assert weights.measures() == pytest.approx({f"objective/weight_{name}": x for name, x in expected.items()})


def test_multipliers_stay_between_0_and_their_bound():
    """Harmless is 4 below its floor: 1 + 0.5 · 4 = 3 > 2.5; concise is 4 above: 1 − 0.5 · 4 = −1 < 0."""
    weights = learned(maximum=2.5)
    weights.update({"harmless": -3.5, "concise": 3.0})
    assert weights.state_dict() == {"harmless": 2.5, "concise": 0.0}
    assert weights.of(DECLARED) == pytest.approx({"helpful": 1 / 3.5, "harmless": 2.5 / 3.5, "concise": 0.0})
    weights.update({"harmless": 0.5, "concise": -1.2})  # at its floor; 0.2 below: 0 + 0.5 · 0.2
    assert weights.state_dict() == pytest.approx({"harmless": 2.5, "concise": 0.1})


def test_what_is_neither_maximized_nor_held_has_no_weight():
    weights = Lagrangian("helpful", {"harmless": 0.0}).of(DECLARED)
    assert weights == {"helpful": 0.5, "harmless": 0.5, "concise": 0.0}
    assert list(weights) == list(DECLARED)


def test_dual_ascent_finds_the_multiplier_of_a_problem_that_is_solved_by_hand():
    """max −(x − 2)² with 1 − x ≥ 0: the bound holds, x = 1, and λ is the slope of the objective there, 2 (2 − 1).

    For a given λ the best x of (−(x − 2)² + λ (1 − x)) / (1 + λ) is 2 − λ / 2.
    """
    weights = Lagrangian("near", {"low": 0.0}, lr=0.5, initial=0.0)
    for _ in range(200):
        shares = weights.of({"near": 1.0, "low": 1.0})
        x = 2 - shares["low"] / shares["near"] / 2
        weights.update({"near": -((x - 2) ** 2), "low": 1 - x})
    assert weights.state_dict()["low"] == pytest.approx(2.0)
    assert x == pytest.approx(1.0)


def test_a_floor_that_is_met_anyway_gets_no_weight():
    weights = Lagrangian("helpful", {"harmless": 0.5}, lr=0.1, initial=1.0)
    for _ in range(20):
        weights.update({"harmless": 1.5})
    assert weights.of(DECLARED) == {"helpful": 1.0, "harmless": 0.0, "concise": 0.0}


def test_multipliers_survive_a_checkpoint():
    weights, again = learned(), learned()
    weights.update({"harmless": 0.1, "concise": -0.4})
    again.load_state_dict(weights.state_dict())
    assert again.of(DECLARED) == weights.of(DECLARED) != learned().of(DECLARED)
    state = again.state_dict()
    again.update({"harmless": 0.1, "concise": -0.4})
    assert state != again.state_dict()  # what was saved is no view of what goes on


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DeclaredWeights({"kind": 1.0}).of(DECLARED), "kind, .* it has helpful, harmless, concise$"),
        (lambda: DeclaredWeights({"kind": 1.0}).of({}), "kind, .* it gives one score only$"),
        (lambda: DeclaredWeights({"helpful": math.inf}), r"weights\.helpful must be a finite number, got inf$"),
        (lambda: Lagrangian("kind", {"harmless": 0.0}).of(DECLARED), "kind, .* it has helpful, harmless, concise$"),
        (lambda: Lagrangian("helpful", {"kind": 0.0}).of(DECLARED), "kind, .* it has helpful, harmless, concise$"),
        (lambda: Lagrangian("helpful", {"harmless": 0.0}).of({}), "helpful, .* it gives one score only$"),
        (lambda: Lagrangian("helpful", {}), "floors is empty; expected"),
        (lambda: Lagrangian("helpful", {"helpful": 0.0}), "floors holds helpful, which is the objective to maximize"),
        (lambda: learned(lr=math.nan), r"init_args\.lr must be 0 or more, and finite, got nan$"),
        (lambda: learned(lr=-0.1), r"init_args\.lr must be 0 or more, and finite, got -0\.1$"),
        (lambda: learned(initial=-1.0), r"init_args\.initial must be between 0 and maximum 10, got -1\.0$"),
        (lambda: learned(initial=11.0), r"init_args\.initial must be between 0 and maximum 10, got 11\.0$"),
        (lambda: learned(maximum=math.inf), r"init_args\.maximum must be above 0, and finite, got inf$"),
        (lambda: Lagrangian("helpful", {"concise": math.nan}), r"floors\.concise must be a finite number, got nan$"),
        (lambda: learned().load_state_dict({"kind": 1.0}), "multipliers of kind, .* names harmless, concise; expected"),
    ],
)
def test_bad_input_is_one_line(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)

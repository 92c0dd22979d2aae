"""Mistakes on one of two ranks end the run on both, with that rank's message; and how far float32 is from exact."""

import launched
import pytest
import torch
from one_rank import in_float32
from training_helpers import distance, same

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory):
    """What each of two ranks ends with."""
    return launched.on_two_ranks("one_rank.py", tmp_path_factory.mktemp("one_rank"))


@pytest.mark.parametrize(
    ("case", "expected"),
    {
        "reward raises": "UserError: reward source FailsInThirdCall raised ValueError: the judge hung up",
        "reward is not a number": "UserError: reward source NotANumber returned nan for the response",
        "reward measures more": "UserError: the reward sources give score (float32), gold (float32) for responses on "
        "rank 0 and score (float32), more (float32), gold (float32) on rank 1; expected",
        "prompt without tokens": "UserError: the prompt '' has no tokens",
        "loss is not finite": "UserError: the PPO loss is nan at iteration 1",
        "gradient is not finite": "UserError: the gradient of the policy is not finite at iteration 1",
        "seeds differ": "UserError: rank 0 starts with seed 0 after 0 steps and rank 1 with seed 1 after 0 steps",
        "checkpoints differ": "UserError: rank 0 starts with seed 0 after 0 steps and rank 1 with seed 0 after 1 steps",
    }.items(),
)
def test_mistake_on_one_rank_is_told_on_both(case, expected, on_two_ranks):
    messages = [result["raised"][case] for result in on_two_ranks]
    assert messages[0].startswith(expected)
    assert "\n" not in messages[0]
    assert messages[1] == messages[0]


def test_bug_on_one_rank_keeps_its_own_error_there(on_two_ranks):
    other, own = (result["raised"]["environment raises"] for result in on_two_ranks)
    assert own == "ArithmeticError: the simulator diverged"
    assert other == "RuntimeError: rank 1 failed: ArithmeticError: the simulator diverged"


def test_iteration_of_the_mistake_is_named(on_two_ranks):
    assert on_two_ranks[0]["raised"]["reward raises"].endswith("(at iteration 2; the checkpoint before it is kept)")


def without_key_biases(parameters):
    """They have no gradient: a number that all keys share leaves attention as it is. Adam follows their rounding."""
    width = next(tensor for name, tensor in parameters.items() if name.endswith("wte.weight")).shape[1]
    kept = torch.arange(3 * width) // width != 1  # query, key, value side by side
    return {n: tensor[kept] if n.endswith("c_attn.bias") else tensor for n, tensor in parameters.items()}


def test_float32_agrees_on_two_ranks_to_rounding(on_two_ranks, tmp_path):
    """Sums in another order: 6e-8 of each number, and twelve steps of up to 1e-2. Parameters agree to 5e-6 (3e-7
    measured), logged numbers to 1e-4 of each, or 1e-6.
    """
    first, other = (result["float32"] for result in on_two_ranks)
    whole = in_float32(default_root_dir=tmp_path)
    assert same(first["parameters"], other["parameters"])
    assert distance(whole["start"], whole["parameters"]) > 1e-2
    assert distance(without_key_biases(first["parameters"]), without_key_biases(whole["parameters"])) < 5e-6
    for row, wanted in zip(first["rows"], whole["rows"], strict=True):
        assert row == pytest.approx(wanted, rel=1e-4, abs=1e-6)

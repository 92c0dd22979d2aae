import pytest
import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.source import Judgement, RewardSource, judged

PROMPTS = ["first question", "second question", "third question"]
RESPONSES = ["a", "b", "c"]


class Gives(RewardSource):
    """Returns, or raises, what it was made with."""

    def __init__(self, result):
        super().__init__()
        self.result = result

    def score(self, prompts, responses):
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


def refused(result):
    with pytest.raises(UserError) as caught:
        judged(Gives(result), PROMPTS, RESPONSES)
    return str(caught.value)


def test_good_scores_pass_unchanged():
    scores = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    found = judged(Gives(scores), PROMPTS, RESPONSES).scores
    assert found.dtype == torch.float64
    assert torch.equal(found, scores)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.bfloat16])
def test_other_numbers_become_float32(dtype):
    found = judged(Gives(torch.tensor([1, 0, 1]).to(dtype)), PROMPTS, RESPONSES).scores
    assert found.dtype == torch.float32
    assert found.tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_score_that_is_not_finite_names_prompt_and_response(value):
    line = refused(torch.tensor([0.0, value, 0.0]))
    assert f"returned {value} for the response 'b' to the prompt 'second question'" in line


def test_source_that_raises_names_itself_the_reason_and_the_prompt():
    line = refused(KeyError("price"))
    assert "Gives raised KeyError: 'price'" in line
    assert "'first question'" in line


def test_user_error_of_a_source_passes_as_it_is():
    assert refused(UserError("the judge is out")) == "the judge is out"


def test_interruption_is_no_error_of_the_source():
    with pytest.raises(KeyboardInterrupt):
        judged(Gives(KeyboardInterrupt()), PROMPTS, RESPONSES)


@pytest.mark.parametrize(
    ("result", "given"),
    [
        (torch.zeros(2), "shape (2,)"),
        (torch.zeros(3, 1), "shape (3, 1)"),
        (torch.zeros(()), "shape ()"),
        ([0.0, 1.0, 2.0], "a list"),
        (None, "a NoneType"),
    ],
)
def test_anything_but_one_number_per_response_is_refused(result, given):
    line = refused(result)
    assert f"Gives returned {given} for 3 responses, expected a tensor of shape (3,)" in line
    assert "'first question'" in line


class Measures(RewardSource):
    """Scores 0, and measures 1 under a given name."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def judge(self, prompts, responses):
        return Judgement(torch.zeros(3), measures={self.name: torch.ones(3)})


@pytest.mark.parametrize("name", ["score", "gold", "reward", "entropy", "kl_ref_token", "length_mean", "win_rate"])
def test_a_measure_with_the_name_of_another_metric_is_refused(name):
    with pytest.raises(UserError, match=f"reward source Measures measures {name}, which is another metric"):
        judged(Measures(name), PROMPTS, RESPONSES)
    assert list(judged(Measures(f"own_{name}"), PROMPTS, RESPONSES).measures) == [f"own_{name}"]


def test_scores_carry_no_gradient():
    class Learns(RewardSource):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def score(self, prompts, responses):
            return self.weight * 2

    assert not judged(Learns(), PROMPTS, RESPONSES).scores.requires_grad


def test_a_source_has_to_be_written():
    with pytest.raises(NotImplementedError):
        RewardSource().score(PROMPTS, RESPONSES)

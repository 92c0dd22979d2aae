"""Learned, rule-based and user-written rewards as one."""

import sys
import types

import pytest
import tiny_models
import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.composite import CompositeReward
from rlhf_lightning.rewards.function import FunctionReward
from rlhf_lightning.rewards.learned import LearnedReward
from rlhf_lightning.rewards.source import Judgement, RewardSource, judged
from rlhf_lightning.rewards.task_reward import TaskReward, give_gold

PROMPTS = ["the cat", "a dog", "the red cow"]
RESPONSES = ["red", "blue dog", "a a a"]


class Words(RewardSource):
    """A rule with two objectives, and something that it measures."""

    def __init__(self, measure="doubt"):
        super().__init__()
        self.measure = measure
        self.objectives = {"long": 1.0, "red": 4.0}

    def judge(self, prompts, responses):
        long = torch.tensor([float(len(response.split())) for response in responses])
        red = torch.tensor([float("red" in response) for response in responses])
        return Judgement(long + 4 * red, {"long": long, "red": red}, {self.measure: 0.1 * long})


LONG, RED = [1.0, 2.0, 3.0], [1.0, 0.0, 0.0]
WORDS = [5.0, 2.0, 3.0]  # long + 4 red


class Fails(RewardSource):
    def score(self, prompts, responses):
        return torch.tensor([0.0, float("nan"), 0.0])


@pytest.fixture
def function(monkeypatch):
    module = types.ModuleType("own_rewards_of_a_test")
    module.letters = lambda prompts, responses: [len(response) for response in responses]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return FunctionReward(f"{module.__name__}:letters")


LETTERS = [3.0, 8.0, 5.0]


def close(values, expected):
    torch.testing.assert_close(values, torch.as_tensor(expected))


def test_learned_model_rule_and_function_are_weighed(tmp_path, function):
    tiny_models.reward_model("llama").save(tmp_path)
    learned = LearnedReward(str(tmp_path))
    own = learned.score(PROMPTS, RESPONSES)
    assert own.std() > 0.1
    parts = {"model": learned, "rule": Words(), "letters": function}
    source = CompositeReward(parts, weights={"letters": -0.5, "rule": 2})
    judgement = judged(source, PROMPTS, RESPONSES)
    assert source.objectives == {"model": 1.0, "rule": 2.0, "letters": -0.5}
    assert list(judgement.objectives) == ["model", "rule", "letters"]
    close(judgement.objectives["model"], own)
    close(judgement.objectives["rule"], WORDS)
    close(judgement.objectives["letters"], LETTERS)
    close(judgement.scores, [own[i].item() + 2 * WORDS[i] - 0.5 * LETTERS[i] for i in range(3)])
    assert list(source.parameters())  # those of the learned part, which moves to the device with it


def test_objectives_of_a_part_are_measured_under_its_name():
    judgement = judged(CompositeReward({"rule": Words()}), PROMPTS, RESPONSES)
    assert set(judgement.measures) == {"rule_long", "rule_red", "doubt"}
    close(judgement.measures["rule_long"], LONG)
    close(judgement.measures["rule_red"], RED)
    close(judgement.measures["doubt"], [0.1, 0.2, 0.3])


def test_measures_of_the_same_name_are_told_apart_by_part():
    parts = {"one": Words("disagreement"), "two": Words("disagreement"), "three": Words("other")}
    measures = judged(CompositeReward(parts), PROMPTS, RESPONSES).measures
    assert {name for name in measures if "_long" not in name and "_red" not in name} == {
        *("one_disagreement", "two_disagreement", "other")
    }


def test_composites_can_be_parts():
    inner = CompositeReward({"rule": Words()}, weights={"rule": 10.0})
    judgement = judged(CompositeReward({"inner": inner}, weights={"inner": 0.1}), PROMPTS, RESPONSES)
    close(judgement.scores, WORDS)
    close(judgement.objectives["inner"], [10 * value for value in WORDS])
    close(judgement.measures["inner_rule"], WORDS)


@pytest.mark.parametrize(
    ("parts", "weights", "line"),
    [
        ({}, None, "reward.init_args.parts is empty"),
        ({"rule": Words()}, {"rules": 1.0}, "reward.init_args.weights names 'rules', which is none of rule"),
        ({"rule": Words()}, {"rule": float("inf")}, "reward.init_args.weights.rule must be a finite number, got inf"),
        ({"a rule": Words()}, None, "'a rule' is no name for metrics; expected letters, digits, _ and -"),
        ({"a/rule": Words()}, None, "'a/rule' is no name for metrics"),
    ],
)
def test_parts_and_weights_that_do_not_fit_are_one_line(parts, weights, line):
    with pytest.raises(UserError) as caught:
        CompositeReward(parts, weights)
    assert line in str(caught.value)


def test_failing_part_is_named_with_its_record():
    with pytest.raises(UserError) as caught:
        judged(CompositeReward({"rule": Words(), "bad": Fails()}), PROMPTS, RESPONSES)
    assert str(caught.value) == (
        "part bad of the reward: reward source Fails returned nan for the response 'blue dog' to the prompt 'a dog'; "
        "expected a finite number"
    )


def test_task_reward_is_one_component_or_the_whole_of_gold():
    source = CompositeReward({"red": TaskReward("red"), "all": TaskReward()}, weights={"red": 3.0, "all": 0.0})
    gold = Words()
    give_gold(source, gold)
    judgement = judged(source, PROMPTS, RESPONSES)
    close(judgement.objectives["red"], RED)
    close(judgement.objectives["all"], WORDS)
    close(judgement.scores, [3 * value for value in RED])
    close(judgement.measures["all_long"], LONG)
    assert "red_long" not in judgement.measures


def test_task_reward_by_itself_has_the_objectives_of_gold():
    source = TaskReward()
    give_gold(source, Words())
    judgement = judged(source, PROMPTS, RESPONSES)
    assert source.objectives == {"long": 1.0, "red": 4.0}
    close(judgement.scores, WORDS)
    close(judgement.objectives["long"], LONG)


@pytest.mark.parametrize(
    ("objective", "gold", "line"),
    [
        (None, None, "the task has no reward of its own"),
        ("kind", Words(), "objective 'kind' is unknown; the task's reward has long, red"),
        ("kind", Fails(), "objective 'kind' is unknown; the task's reward has a single score"),
    ],
)
def test_task_reward_that_the_task_cannot_give_is_one_line(objective, gold, line):
    with pytest.raises(UserError, match=line):
        give_gold(CompositeReward({"part": TaskReward(objective)}), gold)


def test_task_reward_without_a_task_is_one_line():
    with pytest.raises(UserError, match="reward TaskReward has no task here"):
        judged(TaskReward(), PROMPTS, RESPONSES)

"""The task as the rest of the suite sees it."""

import math
import pickle
import time

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.assistant import Assistant
from rlhf_lightning.types import Demonstration

TASK = Assistant(demonstrations=2000)


def test_construction_is_quick():
    start = time.perf_counter()
    Assistant()
    assert time.perf_counter() - start < 0.2


def test_task_provides_what_it_says():
    assert TASK.provides == {"prompts", "demonstrations", "gold", "reference", "groups", "annotators"}
    TASK.require(frozenset({"prompts", "gold", "groups"}), "PPO")
    with pytest.raises(UserError, match="step_rewards"):
        TASK.require(frozenset({"step_rewards"}), "A2C")


def test_demonstrations_have_the_stated_sizes_and_prompts():
    assert len(TASK.demonstrations("train")) == 2000
    assert len(TASK.demonstrations("heldout")) == 1024
    for split in ("train", "heldout"):
        known = {prompt[0]["content"] for prompt in TASK.prompts(split)}
        assert {d.prompt[0]["content"] for d in TASK.demonstrations(split)} <= known


def test_fewer_demonstrations_are_a_prefix_of_more():
    assert Assistant(demonstrations=50).demonstrations("train") == TASK.demonstrations("train")[:50]
    assert Assistant(demonstrations=50, seed=1).demonstrations("train") != TASK.demonstrations("train")[:50]


def test_demonstration_entropy_is_the_sum_over_prompts():
    demonstrations = TASK.demonstrations("heldout")
    entropies = [TASK.demonstrator.entropy(TASK.book.parse(d.prompt)) for d in demonstrations]
    assert TASK.demonstration_entropy(demonstrations) == pytest.approx(sum(entropies))
    assert TASK.demonstration_entropy([]) == 0.0


def test_demonstration_entropy_is_the_mean_surprise():
    demonstrations = TASK.demonstrations("train")
    surprises = [-TASK.demonstration_log_probability(d.prompt, d.response) for d in demonstrations]
    # Responses are independent, each surprise around its own entropy, with a deviation of about 2 nats
    tolerance = 4 * 2.5 * math.sqrt(len(demonstrations))
    assert abs(sum(surprises) - TASK.demonstration_entropy(demonstrations)) < tolerance


def test_demonstration_entropy_ignores_the_response():
    demonstration = TASK.demonstrations("train")[0]
    other = Demonstration(demonstration.prompt, "anything")
    assert TASK.demonstration_entropy([demonstration]) == TASK.demonstration_entropy([other])


def test_demonstrations_leave_something_to_improve():
    demonstrations = TASK.demonstrations("train")
    gold = TASK.gold().judge([d.prompt for d in demonstrations], [d.response for d in demonstrations]).scores
    assert 0.5 < gold.mean().item() < 0.7


def test_task_survives_pickling():
    task = Assistant(demonstrations=20)
    task.annotate(task.demonstrations("train")[0].prompt, "sure", "well", 0)
    copy = pickle.loads(pickle.dumps(task))
    assert copy.demonstrations("train") == task.demonstrations("train")
    assert copy.demonstrations("heldout") == task.demonstrations("heldout")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"entities": 30}, "between 16 and 24 entities, got 30"),
        ({"demonstrations": 0}, "at least one demonstration, got 0"),
        ({"annotators": 0}, "at least one annotator, got 0"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(UserError, match=message):
        Assistant(**arguments)


def test_an_unknown_split_is_refused():
    with pytest.raises(UserError, match="'train' and 'heldout', got 'test'"):
        TASK.prompts("test")

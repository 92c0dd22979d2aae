"""The task as the rest of the suite sees it."""

import math
import pickle
import time

import pytest
from grammar_probabilities import log_probability

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.assistant import Assistant
from rlhf_lightning.types import Demonstration

TASK = Assistant(demonstrations=2000)


def test_construction_is_quick():
    start = time.perf_counter()
    Assistant()
    assert time.perf_counter() - start < 0.2


def test_task_provides_what_it_says():
    assert TASK.provides == {"prompts", "demonstrations", "labels", "gold", "reference", "groups", "annotators"}
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
    surprises = [-log_probability(TASK.demonstrator, TASK.book.parse(d.prompt), d.response) for d in demonstrations]
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


def test_labels_are_an_annotators_choice_between_two_responses_to_one_prompt():
    for split, count in (("train", 2000), ("heldout", 1024)):
        labels = TASK.labels(split)
        assert 1.8 * count < len(labels) <= 2 * count
        for good, bad in zip(labels[::2], labels[1::2], strict=True):
            assert (good.prompt, good.annotator, good.label, bad.label) == (bad.prompt, bad.annotator, True, False)
            assert good.response != bad.response
        assert {one.annotator for one in labels} == set(TASK.annotators.names)
    shown = {(one.prompt[0]["content"], one.response) for one in TASK.demonstrations("heldout")}
    pairs = zip(labels[::2], labels[1::2], strict=True)
    assert all(any((one.prompt[0]["content"], one.response) in shown for one in pair) for pair in pairs)


def test_desirable_responses_have_the_higher_gold_reward():
    labels = TASK.labels("train")
    gold = TASK.gold().judge([one.prompt for one in labels], [one.response for one in labels]).scores
    assert (gold[::2] - gold[1::2]).mean().item() > 0.1


def test_labels_depend_on_the_seed_alone():
    few = Assistant(demonstrations=50)
    assert few.labels("train") == TASK.labels("train")[: len(few.labels("train"))]
    assert Assistant(demonstrations=50, seed=1).labels("train") != few.labels("train")


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

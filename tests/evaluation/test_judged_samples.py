"""Sampling responses of a policy to prompts of a task, and judging them."""

import pytest
import tiny_models
import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.evaluation.judged_samples import heldout_prompts, sample_groups, score_groups
from rlhf_lightning.rewards.source import RewardSource
from rlhf_lightning.tasks.task import Task

PROMPTS = ["the cat", "the dog sees", "a cow"]


class Repeating(Task):
    provides = frozenset({"prompts"})

    def prompts(self, split):
        return {"heldout": ["a", "b", "a", "c"], "train": ["d"]}[split]


class Empty(Repeating):
    def prompts(self, split):
        return []


class Numbering(RewardSource):
    """The number of responses judged so far: the same response judged twice has two scores."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def score(self, prompts, responses):
        start = sum(map(len, self.batches))
        self.batches.append(list(zip(prompts, responses, strict=True)))
        return start + torch.arange(len(responses)).float()


def untracked(items, title):
    return items


def sampled(policy, prompts, samples, batch_size=64):
    return sample_groups(
        policy,
        prompts,
        samples=samples,
        max_new_tokens=6,
        batch_size=batch_size,
        seed=3,
        track=untracked,
        title="",
    )


def test_repeated_prompts_count_once():
    assert heldout_prompts(Repeating(), 2, by="bestof") == ["a", "b"]
    assert heldout_prompts(Repeating(), 9, by="bestof") == ["a", "b", "c"]


def test_a_task_without_prompts_is_refused():
    with pytest.raises(UserError, match="bestof needs prompts, which task Task does not provide"):
        heldout_prompts(Task(), 2, by="bestof")
    with pytest.raises(UserError, match="bestof: task Empty has no held-out prompts"):
        heldout_prompts(Empty(), 2, by="bestof")


def test_responses_do_not_depend_on_the_batch_size():
    policy = tiny_models.policy("llama")
    groups = sampled(policy, PROMPTS, 4)
    assert [len(group) for group in groups] == [4, 4, 4]
    assert len({text for group in groups for text in group}) > 6
    for batch_size in (1, 5, 8):
        assert sampled(policy, PROMPTS, 4, batch_size) == groups


def test_the_same_response_to_the_same_prompt_is_judged_once():
    source = Numbering()
    groups = [["x", "y", "x"], ["x", "z", "z"]]
    scores = score_groups(source, ["p", "q"], groups, batch_size=3, track=untracked, title="")
    assert source.batches == [[("p", "x"), ("p", "y"), ("q", "x")], [("q", "z")]]
    assert scores.tolist() == [[0, 1, 0], [2, 3, 3]]

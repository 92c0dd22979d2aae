"""Reward sources are tried on two rows of the task before networks are built."""

from typing import ClassVar

import pytest
import torch
from training_helpers import CountsB, Letters, OneToken, fit, ppo, rollouts, tiny

from rlhf_lightning.algorithms.dpo import DPO
from rlhf_lightning.data.collection import try_rewards
from rlhf_lightning.data.preferences import PreferenceDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.source import RewardSource
from rlhf_lightning.rollout.responses import ResponseCollector


class Recording(RewardSource):
    """Remembers what it was asked, draws a random number, and fails if told so."""

    def __init__(self, fails=False):
        super().__init__()
        self.fails = fails
        self.asked = []

    def score(self, prompts, responses):
        if self.fails:
            raise RuntimeError("the judge fell asleep")
        self.asked += zip(prompts, responses, strict=True)
        return torch.rand(len(responses))


class Pairs(Letters):
    """Has no demonstrations."""

    provides: ClassVar[frozenset[str]] = frozenset({"prompts", "preferences"})


def asked(task, gold=None):
    source = Recording()
    try_rewards(ResponseCollector(source, gold, max_new_tokens=4), task, task.prompts("heldout"))
    return source.asked


def test_rows_are_the_tasks_own_where_it_has_some():
    task = Letters(demonstrations=13, pairs=13)
    expected = [(task.noun_prompt(i), task.answer(i, 1)) for i in (13, 14)]
    assert asked(task) == expected
    pairs = Pairs(pairs=13)
    assert asked(pairs) == [(pairs.noun_prompt(i), "b " + pairs.answer(i, 2)) for i in (13, 14)]


def test_a_task_of_prompts_alone_gives_them_as_responses_and_not_to_its_gold():
    assert asked(OneToken(), gold=Recording(fails=True)) == [("a", "a"), ("a", "a")]


def test_random_numbers_go_on_as_before():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert len(asked(Letters())) == 2
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("role", ["reward", "gold", "monitors"])
def test_a_source_that_fails_does_so_before_networks_are_built(role):
    task = Letters()
    if role == "gold":
        task.gold_source = Recording(fails=True)
    more = {"monitors": {"other": Recording(fails=True)}} if role == "monitors" else {}
    data = rollouts(task, Recording(fails=True) if role == "reward" else CountsB(), **more)
    module = ppo(task)
    with pytest.raises(UserError, match="reward source Recording raised RuntimeError: the judge fell asleep"):
        fit(module, data, max_epochs=1)
    assert not hasattr(module, "policy")


def test_the_judge_of_a_policy_from_feedback_is_tried_too():
    task = Letters()
    module = DPO(task, tiny(), reward=Recording(fails=True))
    with pytest.raises(UserError, match="the judge fell asleep"):
        fit(module, PreferenceDataModule(task, batch_size=4), max_steps=1, max_epochs=-1)
    assert not hasattr(module, "policy")

"""Responses that are alike are judged alike, on any number of ranks."""

import tiny_models
import torch

from rlhf_lightning.data.rollouts import RolloutDataModule
from rlhf_lightning.ops.groups import groups_that_differ
from rlhf_lightning.rewards.learned import LearnedReward
from rlhf_lightning.tasks.task import Task


class Animals(Task):
    """Prompts of several lengths."""

    provides = frozenset({"prompts", "groups"})

    def prompts(self, split):
        return ["the cat sees a dog", "a", "the red dog likes a green cow", "blue"]


def scored_rollout(folder, *, batch_size: int, decided: bool):
    """Eight responses to each prompt, which a reward model scores so many at a time.

    Args:
        decided: whether the policy always says the same.
    """
    if not folder.exists():
        tiny_models.reward_model("llama").save(folder)
    policy = tiny_models.policy("llama", temperature=1e-3 if decided else 1.0)
    reward = LearnedReward(str(folder), batch_size=batch_size)
    data = RolloutDataModule(Animals(), reward, rollout_batch_size=32, samples_per_prompt=8, max_new_tokens=5)
    data.setup()
    return data.collect(policy, 0)


def test_responses_that_are_alike_have_the_same_score_whatever_the_batch(tmp_path):
    scored = scored_rollout(tmp_path / "reward", batch_size=7, decided=True)
    groups = scored.scores.view(4, 8)
    assert torch.equal(groups, groups[:, :1].expand(4, 8))
    assert not groups_that_differ(scored.scores, group_size=8).any()
    alone = LearnedReward(str(tmp_path / "reward"), batch_size=1).score(scored.prompts, scored.responses)
    torch.testing.assert_close(scored.scores, alone, rtol=0, atol=1e-5)
    assert torch.equal(scored.rewards.sum(-1), scored.scores)


def test_responses_that_differ_keep_their_own_scores(tmp_path):
    scored = scored_rollout(tmp_path / "reward", batch_size=3, decided=False)
    assert len(set(zip(scored.prompts, scored.responses, strict=True))) > 16
    alone = LearnedReward(str(tmp_path / "reward"), batch_size=1).score(scored.prompts, scored.responses)
    torch.testing.assert_close(scored.scores, alone, rtol=0, atol=1e-5)

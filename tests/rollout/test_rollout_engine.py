"""Engines of the user's own sample responses in place of the built-in one."""

import pytest
import tiny_models
import torch
from tiny_tasks import Animals

from rlhf_lightning.data.rollouts import RolloutDataModule
from rlhf_lightning.distributed import Stream
from rlhf_lightning.ops.noise import row_keys
from rlhf_lightning.rewards.source import RewardSource
from rlhf_lightning.rollout.decode import FastDecoder
from rlhf_lightning.rollout.engine import DecodingEngine
from rlhf_lightning.rollout.responses import ResponseCollector
from rlhf_lightning.types import Rollout

PROMPTS = ["the red cat", "the red cat", "a dog sees the cow", "a dog sees the cow"]
STOP = 1  # the tiny tokenizer's end-of-sequence token


class Words(RewardSource):
    """The number of words of a response."""

    def score(self, prompts, responses):
        return torch.tensor([float(len(response.split())) for response in responses])


class Echo(DecodingEngine):
    """Answers with the last token of the prompt, then ends; remembers how it was called."""

    def __init__(self):
        self.calls = []

    def generate(self, policy, context, *, keys, rows, max_new_tokens, greedy=False):
        self.calls.append((keys, rows, max_new_tokens, greedy))
        actions = torch.stack([context.input_ids[:, -1], torch.full((len(rows),), STOP)], dim=1)
        mask = torch.ones_like(actions, dtype=torch.bool)
        ends = torch.tensor([[False, True]]).expand_as(mask)
        with torch.no_grad():
            logprobs = policy.evaluate(context, actions, mask).logprobs
        return Rollout(context, actions, mask, logprobs, terminated=ends, truncated=torch.zeros_like(mask), rows=rows)


def collect(policy, **options):
    collector = ResponseCollector(Words(), None, max_new_tokens=6, **options)
    return collector.collect(policy, PROMPTS, stream=Stream.ROLLOUT, iteration=3, group_size=2)


def test_an_engine_of_the_users_own_samples_the_responses():
    engine, policy = Echo(), tiny_models.policy()
    scored = collect(policy, engine=engine, decode_batch_size=3)
    assert scored.responses == ["cat", "cat", "cow", "cow"]
    assert scored.scores.tolist() == [1, 1, 1, 1]
    assert scored.rewards.tolist() == [[0, 1]] * 4  # at the token that ends the response
    assert scored.rollout.rows.tolist() == [0, 1, 2, 3]
    rollout = scored.rollout
    evaluated = policy.evaluate(rollout.context, rollout.actions, rollout.action_mask).logprobs
    torch.testing.assert_close(rollout.old_logprobs, evaluated, rtol=0, atol=1e-5)


@pytest.mark.parametrize("reproducible", [True, False])
def test_an_engine_that_does_not_repeat_itself_is_warned_about(reproducible, caplog, monkeypatch):
    monkeypatch.setattr(Echo, "reproducible", reproducible)
    data = RolloutDataModule(Animals(), rollout_batch_size=4, eval_prompts=2, engine=Echo())
    data.setup("fit")
    assert [message.startswith("Echo draws other responses each time") for message in caplog.messages] == (
        [] if reproducible else [True]
    )


def test_an_engine_gets_the_noise_keys_of_its_rows():
    engine = Echo()
    collect(tiny_models.policy(), engine=engine, decode_batch_size=3)
    assert [rows.tolist() for _, rows, _, _ in engine.calls] == [[0, 1, 2], [3]]
    for keys, rows, max_new_tokens, greedy in engine.calls:
        assert torch.equal(keys, row_keys(seed=0, stream=Stream.ROLLOUT, iteration=3, rows=rows))
        assert (max_new_tokens, greedy) == (6, False)


def test_without_an_engine_the_fast_one_is_used():
    policy = tiny_models.policy()
    default, explicit = collect(policy), collect(policy, engine=FastDecoder())
    assert torch.equal(default.rollout.actions, explicit.rollout.actions)
    assert torch.equal(default.rollout.old_logprobs, explicit.rollout.old_logprobs)
    assert default.responses == explicit.responses != collect(policy, engine=Echo()).responses

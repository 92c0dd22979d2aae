"""A reward model of one decoder: where its score is read, batching, files."""

import pytest
import tiny_models
import torch
from transformers import AutoModelForSequenceClassification

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.learned import LearnedReward

KINDS = ("gpt2", "llama")
PROMPTS = ["the cat sees", "a", "the red dog likes a green cow", "blue"]
RESPONSES = ["red blue", "", "cow", "the dog sees the cat"]


def score_by_hand(reward_model, prompt, response):
    """The model's own score of prompt, response and end of sequence, at the last token."""
    ids = [
        *reward_model.members[0].tokenizer(prompt)["input_ids"],
        *reward_model.members[0].tokenizer(response)["input_ids"],
        1,
    ]
    return reward_model.members[0].model(torch.tensor([ids])).logits.item()


@pytest.mark.parametrize("kind", KINDS)
def test_score_is_read_at_the_last_token(kind):
    reward_model = tiny_models.reward_model(kind).eval()
    expected = [score_by_hand(reward_model, *pair) for pair in zip(PROMPTS, RESPONSES, strict=True)]
    assert reward_model.score(PROMPTS, RESPONSES).tolist() == pytest.approx(expected, abs=1e-4)
    assert len({round(score, 3) for score in expected}) == 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_score_does_not_depend_on_the_batch_and_keeps_the_order(kind, batch_size):
    reward_model = tiny_models.reward_model(kind)
    together = reward_model.score(PROMPTS, RESPONSES)
    torch.testing.assert_close(
        reward_model.score(PROMPTS, RESPONSES, batch_size=batch_size), together, rtol=0, atol=1e-5
    )
    order = [3, 1, 0, 2]
    shuffled = reward_model.score([PROMPTS[i] for i in order], [RESPONSES[i] for i in order], batch_size=batch_size)
    torch.testing.assert_close(shuffled, together[order], rtol=0, atol=1e-5)


def test_score_of_a_prompt_that_is_too_long_does_not_depend_on_the_batch():
    reward_model = tiny_models.reward_model(n_positions=12)
    long = "the cat sees a dog likes a red cow the cat sees a green cow"
    alone = reward_model.score([long], ["red"])
    beside = reward_model.score([long, "a"], ["red", "blue green red blue green"])
    assert beside[0].item() == pytest.approx(alone.item(), abs=1e-5)
    last = " ".join(long.split()[-10:])
    assert alone.item() == pytest.approx(score_by_hand(reward_model.eval(), last, "red"), abs=1e-4)


def test_score_of_a_response_that_is_too_long_is_read_where_it_is_cut():
    reward_model = tiny_models.reward_model(n_positions=8).eval()
    found = reward_model.score(["a"], ["red blue green red blue green"]).item()
    expected = reward_model.members[0].model(torch.tensor([[14, 5, 6, 7, 5]])).logits.item()
    assert found == pytest.approx(expected, abs=1e-5)


def test_score_of_nothing_is_empty():
    assert tiny_models.reward_model().score([], []).shape == (0,)


def test_score_is_centered_and_forward_is_not():
    reward_model = tiny_models.reward_model()
    raw = reward_model.score(PROMPTS, RESPONSES)
    reward_model.centers.fill_(0.75)
    torch.testing.assert_close(reward_model.score(PROMPTS, RESPONSES), raw - 0.75)
    network = reward_model.members[0]
    torch.testing.assert_close(network(network.encode(PROMPTS, RESPONSES))[:, 0], raw, rtol=0, atol=1e-5)


@pytest.mark.parametrize("garbage", [1, -100, 10**9])
def test_forward_ignores_what_stands_at_padding(garbage):
    network = tiny_models.reward_model().members[0]
    encoded = network.encode(PROMPTS, RESPONSES)
    clean = network(encoded)
    encoded.context.input_ids[~encoded.context.attention_mask] = garbage
    encoded.actions[~encoded.action_mask] = garbage
    assert torch.equal(network(encoded), clean)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_reward_model_scores_the_same_when_loaded(kind, tmp_path):
    reward_model = tiny_models.reward_model(kind)
    reward_model.centers.fill_(1 / 3)
    reward_model.save(tmp_path)
    loaded = LearnedReward(str(tmp_path), batch_size=2)
    assert torch.equal(loaded.model.centers, reward_model.centers)
    assert loaded.model.members[0].tokenizer.chat_template == tiny_models.TEMPLATE
    torch.testing.assert_close(
        loaded.score(PROMPTS, RESPONSES), reward_model.score(PROMPTS, RESPONSES), rtol=0, atol=1e-6
    )
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    own = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[13, 8, 11, 5, 6, 1]])
    assert own(ids).logits.item() - 1 / 3 == pytest.approx(loaded.score(PROMPTS[:1], RESPONSES[:1]).item(), abs=1e-4)


@pytest.mark.parametrize("pad", ["</s>", None])
@pytest.mark.parametrize("kind", KINDS)
def test_reward_model_does_without_a_pad_token(kind, pad, tmp_path):
    words = tiny_models.tokenizer(pad=pad)
    reward_model = tiny_models.reward_model(kind, words=words, pad_token_id=None if pad is None else 1).eval()
    reward_model.save(tmp_path)
    ids, network = torch.tensor([[13, 8, 11, 5, 6, 1]]), reward_model.members[0]
    expected = network.model.score(network.model.base_model(ids).last_hidden_state[0, -1]).item()
    found = LearnedReward(str(tmp_path)).score(PROMPTS, RESPONSES)[0].item()
    assert found == pytest.approx(expected, abs=1e-4)


def test_reward_model_without_an_end_of_sequence_token_is_refused():
    with pytest.raises(UserError, match="no end-of-sequence token"):
        tiny_models.reward_model(words=tiny_models.tokenizer(eos=None), eos_token_id=None)

import pytest
import tiny_models
import torch
from tiny_models import context
from transformers import AutoModelForSequenceClassification

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.backbone import LanguageBackbone
from rlhf_lightning.models.policy import LanguagePolicy
from rlhf_lightning.models.scorers import SharedTrunkCritic
from rlhf_lightning.models.state import fingerprint
from rlhf_lightning.rewards.learned import LearnedReward

KINDS = ("gpt2", "llama")
PROMPTS = ["the cat sees", "a", "the red dog likes a green cow", "blue"]
RESPONSES = ["red blue", "", "cow", "the dog sees the cat"]


def score_by_hand(reward_model, prompt, response):
    """The model's own score of prompt, response and end of sequence, at the last token."""
    ids = [*reward_model.tokenizer(prompt)["input_ids"], *reward_model.tokenizer(response)["input_ids"], 1]
    return reward_model.model(torch.tensor([ids])).logits.item()


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
    expected = reward_model.model(torch.tensor([[14, 5, 6, 7, 5]])).logits.item()
    assert found == pytest.approx(expected, abs=1e-5)


def test_score_of_nothing_is_empty():
    assert tiny_models.reward_model().score([], []).shape == (0,)


def test_score_is_centered_and_forward_is_not():
    reward_model = tiny_models.reward_model()
    raw = reward_model.score(PROMPTS, RESPONSES)
    reward_model.center.fill_(0.75)
    torch.testing.assert_close(reward_model.score(PROMPTS, RESPONSES), raw - 0.75)
    encoded = reward_model.encode(PROMPTS, RESPONSES)
    forward = reward_model(encoded.context, encoded.actions, encoded.action_mask)
    torch.testing.assert_close(forward, raw, rtol=0, atol=1e-5)


@pytest.mark.parametrize("garbage", [1, -100, 10**9])
def test_forward_ignores_what_stands_at_padding(garbage):
    reward_model = tiny_models.reward_model()
    encoded = reward_model.encode(PROMPTS, RESPONSES)
    clean = reward_model(encoded.context, encoded.actions, encoded.action_mask)
    encoded.context.input_ids[~encoded.context.attention_mask] = garbage
    encoded.actions[~encoded.action_mask] = garbage
    assert torch.equal(reward_model(encoded.context, encoded.actions, encoded.action_mask), clean)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_reward_model_scores_the_same_when_loaded(kind, tmp_path):
    reward_model = tiny_models.reward_model(kind)
    reward_model.center.fill_(1 / 3)
    reward_model.save(tmp_path)
    loaded = LearnedReward(str(tmp_path), batch_size=2)
    assert torch.equal(loaded.model.center, reward_model.center)
    assert loaded.model.tokenizer.chat_template == tiny_models.TEMPLATE
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
    ids = torch.tensor([[13, 8, 11, 5, 6, 1]])
    expected = reward_model.model.score(reward_model.model.base_model(ids).last_hidden_state[0, -1]).item()
    found = LearnedReward(str(tmp_path)).score(PROMPTS, RESPONSES)[0].item()
    assert found == pytest.approx(expected, abs=1e-4)


def test_reward_model_without_an_end_of_sequence_token_is_refused():
    with pytest.raises(UserError, match="no end-of-sequence token"):
        tiny_models.reward_model(words=tiny_models.tokenizer(eos=None), eos_token_id=None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pad", ["<pad>", None])
def test_critic_from_a_reward_model_values_what_the_reward_model_would_score(kind, pad, tmp_path):
    words = tiny_models.tokenizer(pad=pad)
    reward_model = tiny_models.reward_model(kind, words=words, pad_token_id=None if pad is None else 0)
    reward_model.center.fill_(0.5)
    reward_model.save(tmp_path)
    critic = LanguageBackbone().critic(LanguagePolicy(tiny_models.model(kind), words), init=str(tmp_path))
    actions = torch.tensor([[6, 1]])
    found = critic.values(context([5, 9]), actions, torch.ones_like(actions).bool())
    hidden = reward_model.eval().model.base_model(torch.tensor([[5, 9, 6]])).last_hidden_state[0, 1:]
    torch.testing.assert_close(found[0], reward_model.model.score(hidden).squeeze(-1) - 0.5, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_critic_values_are_read_before_each_action(kind):
    critic = tiny_models.critic(kind)
    prompts = ([5, 9, 11], [13])
    actions, mask = torch.tensor([[6, 9, 1], [14, 1, 0]]), torch.tensor([[True, True, True], [True, True, False]])
    values = critic.values(context(*prompts, width=6), actions, mask)
    for row, prompt in enumerate(prompts):
        for step in range(int(mask[row].sum())):
            before = torch.tensor([[*prompt, *actions[row, :step].tolist()]])
            expected = critic.model.score(critic.model.base_model(before).last_hidden_state[0, -1]).item()
            assert values[row, step].item() == pytest.approx(expected, abs=1e-5)


def test_shared_critic_starts_at_zero_and_reads_the_trunk(tmp_path):
    critic = SharedTrunkCritic(16)
    trunk = torch.randn(2, 3, 16)
    actions, mask = torch.zeros(2, 3).long(), torch.ones(2, 3).bool()
    assert critic.values(context([5], [6]), actions, mask, trunk=trunk).eq(0).all()
    with torch.no_grad():
        critic.score.weight[0, 4] = 2.0
        critic.score.bias.fill_(-1.0)
    expected = 2 * trunk[:, :, 4] - 1
    torch.testing.assert_close(critic.values(context([5], [6]), actions, mask, trunk=trunk), expected)
    with pytest.raises(ValueError, match="needs the policy's hidden states"):
        critic.values(context([5], [6]), actions, mask)
    critic.save(tmp_path / "critic")
    assert (tmp_path / "critic" / "value_head.safetensors").is_file()


def test_fingerprint_tells_apart_any_change():
    first, second = tiny_models.reward_model(), tiny_models.reward_model()
    assert fingerprint(first) == fingerprint(second)
    second.center.fill_(1e-8)
    assert fingerprint(first) != fingerprint(second)
    second.center.fill_(0.0)
    with torch.no_grad():
        second.model.score.weight[0, 3] += 1e-6
    assert fingerprint(first) != fingerprint(second)

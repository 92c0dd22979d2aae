import pytest
import tiny_models
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.learned import LearnedReward
from rlhf_lightning.rewards.source import judged

CONVERSATION = [{"role": "user", "content": "the cat"}]


def letters():
    """Another tokenizer: one token per letter, another template, other special tokens."""
    ids = {token: i for i, token in enumerate(("[stop]", "[unk]", *"abcdefghijklmnopqrstuvwxyz:"))}
    backend = Tokenizer(models.WordLevel(ids, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="[stop]", unk_token="[unk]", chat_template="q:{{ messages[0].content }}a:"
    )


@pytest.fixture
def folder(tmp_path):
    tiny_models.reward_model("llama", words=letters(), vocab_size=29, eos_token_id=0, pad_token_id=None).save(tmp_path)
    return str(tmp_path)


def test_reward_model_reads_text_in_its_own_vocabulary(folder):
    source = LearnedReward(folder)
    ids = [*letters()("q:the cata:red", add_special_tokens=False)["input_ids"], 0]
    hidden = source.model.members[0].model.base_model(torch.tensor([ids])).last_hidden_state[0, -1]
    expected = source.model.members[0].model.score(hidden).item()
    assert source.score([CONVERSATION], ["red"]).item() == pytest.approx(expected, abs=1e-5)


def test_reward_model_is_a_module_that_moves_and_does_not_learn(folder):
    source = LearnedReward(folder)
    assert len(list(source.parameters())) > 0
    assert not any(p.requires_grad for p in source.parameters())
    assert "model.centers" in dict(source.named_buffers())


def test_scores_are_checked_and_independent_of_the_batch_size(folder):
    prompts = [CONVERSATION, [{"role": "user", "content": "a much longer question"}], CONVERSATION]
    responses = ["red", "", "the green dog"]
    whole = judged(LearnedReward(folder), prompts, responses).scores
    single = judged(LearnedReward(folder, batch_size=1), prompts, responses).scores
    torch.testing.assert_close(single, whole, rtol=0, atol=1e-5)


def test_batch_size_must_be_positive(folder):
    with pytest.raises(UserError, match="batch_size must be at least 1, got 0"):
        LearnedReward(folder, batch_size=0)


def test_several_labels_are_refused(tmp_path):
    tiny_models.classifier(num_labels=3).save_pretrained(tmp_path)
    tiny_models.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="3 scores of a response; expected 1"):
        LearnedReward(str(tmp_path))

"""The head that reads a trunk's surprise, against the same numbers from the language model's own logits."""

from __future__ import annotations

import pytest
import tiny_models
import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.backbone import LanguageBackbone
from rlhf_lightning.models.reward.architectures import JointEncoder
from rlhf_lightning.models.reward.surprise import FILE
from rlhf_lightning.rewards.learned import LearnedReward

PROMPTS = ["the red cat", "a cow", "the dog sees"]
RESPONSES = ["likes", "sees the blue dog", "a cat"]


def language_model(path, *, tied: bool):
    model, words = tiny_models.model("llama", tie_word_embeddings=tied), tiny_models.tokenizer()
    model.save_pretrained(path)
    words.save_pretrained(path)
    return model, words


def on(path, words):
    return tiny_models.reward_model_on(LanguageBackbone(checkpoint=str(path)), lambda: words, JointEncoder(True))


@pytest.mark.parametrize("tied", [True, False])
def test_surprise_is_that_of_the_language_model(tmp_path, tied):
    model, words = language_model(tmp_path, tied=tied)
    reward_model = on(tmp_path, words)
    assert reward_model.score(PROMPTS, RESPONSES).tolist() == [0, 0, 0]  # all heads start at 0

    weights = torch.tensor([0.5, -0.3, 0.2, -0.7])
    reward_model.members[0].surprise.weights.data.copy_(weights[:, None])
    expected = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):  # one row at a time, no padding
        asked = words(prompt)["input_ids"]
        said = [*words(response, add_special_tokens=False)["input_ids"], words.eos_token_id]
        logprobs = model(torch.tensor([asked + said])).logits[0, len(asked) - 1 : -1].log_softmax(-1)
        chosen = logprobs[range(len(said)), said]
        excess = -chosen + (logprobs.exp() * logprobs).sum(-1)
        statistics = [chosen.sum() / 5, excess.sum() / 5, excess.max().clamp_min(0), (2 * (excess - 3)).sigmoid().sum()]
        expected.append(sum(w * s for w, s in zip(weights, statistics, strict=True)).item())
    assert reward_model.score(PROMPTS, RESPONSES).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_surprise_head_is_saved_beside_the_model(tmp_path, tied):
    _, words = language_model(tmp_path / "lm", tied=tied)
    reward_model = on(tmp_path / "lm", words)
    torch.manual_seed(1)
    for parameter in reward_model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    (tmp_path / "export").mkdir()
    reward_model.save(tmp_path / "export")
    loaded = LearnedReward(str(tmp_path / "export"))
    assert torch.allclose(loaded.score(PROMPTS, RESPONSES), reward_model.score(PROMPTS, RESPONSES), atol=1e-5)

    (tmp_path / "export" / FILE).unlink()
    with pytest.raises(UserError, match=FILE):
        LearnedReward(str(tmp_path / "export"))


def test_surprise_trains_the_trunk_through_its_own_projection(tmp_path):
    _, words = language_model(tmp_path, tied=False)
    reward_model = on(tmp_path, words)
    network = reward_model.members[0]
    network.surprise.weights.data.fill_(1.0)
    network(network.encode(PROMPTS, RESPONSES)).sum().backward()
    assert network.surprise.projection.weight.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.trunk.parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_heads_are_what_starts_anew_and_the_trunk_is_the_language_model(tmp_path, tied):
    _, words = language_model(tmp_path, tied=tied)
    network = on(tmp_path, words).members[0]
    heads, trunk = ({id(p) for p in part.parameters()} for part in (network.heads, network.trunk))
    assert heads == {id(network.model.score.weight), id(network.surprise.weights)}
    assert not heads & trunk
    assert heads | trunk == {id(p) for p in network.parameters()}

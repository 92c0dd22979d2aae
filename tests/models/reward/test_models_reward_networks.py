"""Encoders and separate encoders: scores against the same models run on one unpadded text at a time."""

import pytest
import tiny_models
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, BertConfig

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.backbone import LanguageBackbone
from rlhf_lightning.models.language.lora import LoRA
from rlhf_lightning.models.language.trunk import known_positions, trainable
from rlhf_lightning.models.reward.architectures import JointEncoder, SeparateEncoders
from rlhf_lightning.models.reward.networks import EncoderNetwork
from rlhf_lightning.models.reward.reward_model import RewardModel
from rlhf_lightning.models.reward.separate_network import FILE, SeparateNetwork

PROMPTS = ["the cat sees", "a", "the red dog likes a green cow", "blue"]
RESPONSES = ["red blue", "green", "cow", "the dog sees the cat"]


def pair_tokenizer():
    """``<user> prompt </s> response </s>``, token types 0 and 1."""
    words = tiny_models.tokenizer()
    words.backend_tokenizer.post_processor = TemplateProcessing(
        single="<user> $A </s>", pair="<user> $A </s> $B:1 </s>:1", special_tokens=[("<user>", 3), ("</s>", 1)]
    )
    words.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return words


def roberta(path, auto, *, positions=34):
    """A model of the RoBERTa family on disk: its padding token has id 0, so that positions begin at 1."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    settings = {"vocab_size": 15, "pad_token_id": 0, "max_position_embeddings": positions, "num_labels": 1}
    torch.manual_seed(0)
    model = auto.from_config(AutoConfig.for_model("roberta", **settings, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    model.save_pretrained(path)
    words = pair_tokenizer()
    words.model_input_names = ["input_ids", "attention_mask"]
    words.save_pretrained(path)
    return model.eval()


def bert(path, *, outputs=1, positions=32):
    """A BERT classifier on disk; a language model's checkpoint has no such head."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = BertConfig(vocab_size=15, max_position_embeddings=positions, pad_token_id=0, num_labels=outputs, **sizes)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    model.save_pretrained(path)
    pair_tokenizer().save_pretrained(path)
    return model.eval()


def test_an_encoder_is_scored_its_own_way(tmp_path):
    own = bert(tmp_path)
    model = RewardModel.from_pretrained(tmp_path)
    assert isinstance(model.members[0], EncoderNetwork)
    words = model.members[0].tokenizer
    expected = [own(**words(*both, return_tensors="pt")).logits.item() for both in zip(PROMPTS, RESPONSES, strict=True)]
    assert model.score(PROMPTS, RESPONSES).tolist() == pytest.approx(expected, abs=1e-4)
    assert model.score(PROMPTS, RESPONSES, batch_size=1).tolist() == pytest.approx(expected, abs=1e-4)
    assert len({round(score, 3) for score in expected}) == 4


def test_an_encoder_keeps_the_last_tokens_of_a_prompt_and_the_first_of_a_response(tmp_path):
    bert(tmp_path, positions=10)
    model = RewardModel.from_pretrained(tmp_path)
    long = "the cat sees a dog likes a red cow"
    encoded = model.members[0].encode([long, "a", "a"], ["red blue", "red", long])
    assert (encoded.truncated_prompts, encoded.truncated_responses) == (1, 1)
    # ten places: three special tokens and two of the response leave five
    alone = model.score(["dog likes a red cow"], ["red blue"])
    assert model.score([long], ["red blue"]).item() == pytest.approx(alone.item(), abs=1e-5)
    cut = model.score(["a"], ["the cat sees a dog"])
    assert model.score(["a"], [long]).item() == pytest.approx(cut.item(), abs=1e-5)


def test_an_encoder_that_mixes_texts_with_padding_is_refused(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 24, "max_position_embeddings": 32}
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("fnet", vocab_size=15, **sizes))
    model.save_pretrained(tmp_path)  # its Fourier transform over the tokens takes no mask
    pair_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"FNetForSequenceClassification is not supported: .*beside other rows"):
        RewardModel.from_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"FNetModel is not supported"):
        SeparateEncoders().build(LanguageBackbone(checkpoint=str(tmp_path)), None, outputs=1, seed=0)


@pytest.mark.parametrize("kind", ["canine", "ibert"])
@pytest.mark.parametrize("architecture", [JointEncoder(), SeparateEncoders()])
def test_a_model_without_an_embedding_of_token_ids_is_refused(kind, architecture, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **sizes)).save_pretrained(tmp_path)
    pair_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"(?i){kind}.* is not supported: it has no plain embedding of token ids"):
        architecture.build(LanguageBackbone(checkpoint=str(tmp_path)), None, outputs=1, seed=0)


def test_an_encoder_is_trained_from_a_checkpoint_without_a_head(tmp_path):
    bert(tmp_path / "whole")
    AutoModel.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "trunk")
    pair_tokenizer().save_pretrained(tmp_path / "trunk")
    backbone = LanguageBackbone(checkpoint=str(tmp_path / "trunk"))
    network = JointEncoder().build(backbone, None, outputs=2, seed=None)
    scores = network(network.encode(PROMPTS, RESPONSES))
    assert scores.tolist() == [[0, 0]] * 4
    scores.sum().backward()
    assert network.heads[-1].weight.grad.abs().sum() > 0
    with pytest.raises(UserError, match="surprise needs a language model"):
        JointEncoder(surprise=True).build(backbone, None, outputs=1, seed=None)


def test_a_head_that_the_checkpoint_has_is_kept(tmp_path):
    own = bert(tmp_path)
    network = JointEncoder().build(LanguageBackbone(checkpoint=str(tmp_path)), None, outputs=1, seed=None)
    assert torch.equal(network.model.classifier.weight, own.classifier.weight)
    decoder = tiny_models.reward_model("llama")
    decoder.save(tmp_path / "decoder")
    backbone = LanguageBackbone(checkpoint=str(tmp_path / "decoder"))
    again = JointEncoder().build(backbone, None, outputs=1, seed=None)
    assert torch.equal(again.model.score.weight, decoder.members[0].model.score.weight)
    assert JointEncoder().build(backbone, None, outputs=3, seed=None).model.score.weight.eq(0).all()


def test_adapters_for_an_encoder_are_refused(tmp_path):
    bert(tmp_path)
    with pytest.raises(UserError, match="lora is for decoders"):
        JointEncoder().build(LanguageBackbone(checkpoint=str(tmp_path), lora=LoRA()), None, outputs=1, seed=None)


def separate(kind="llama", path=None):
    """Separate encoders whose head is not at its start."""
    tiny_models.policy(kind, scale=4.0).save(path)
    backbone = LanguageBackbone(checkpoint=str(path))
    network = SeparateEncoders().build(backbone, None, outputs=2, seed=3)
    with torch.no_grad():
        for number, parameter in enumerate(network.responses.parameters()):
            parameter.add_(0.01 * (number % 3))  # the two encoders differ
    return network


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_separate_encoders_read_means_of_unpadded_texts(kind, tmp_path):
    network = separate(kind, tmp_path)
    found = network(network.encode(PROMPTS, RESPONSES))
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        asked = torch.tensor([network.tokenizer(prompt)["input_ids"]])
        said = torch.tensor([[*network.tokenizer(response)["input_ids"], 1]])
        p = network.prompts(asked).last_hidden_state[0].mean(0)
        r = network.responses(said).last_hidden_state[0].mean(0)
        hidden = network.interaction.hidden(torch.cat([p, r, p * r, (p - r).abs()]))
        expected = network.interaction.score(torch.nn.functional.gelu(hidden))
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-4)
    assert found.std(0).min() > 1e-3


def test_separate_encoders_ignore_what_stands_at_padding(tmp_path):
    network = separate(path=tmp_path)
    encoded = network.encode(PROMPTS, RESPONSES)
    clean = network(encoded)
    encoded.context.input_ids[~encoded.context.attention_mask] = 10**9
    encoded.actions[~encoded.action_mask] = -1
    assert torch.equal(network(encoded), clean)


def test_separate_encoders_are_saved_and_read_again(tmp_path):
    model = RewardModel([separate(path=tmp_path / "lm")], objectives={"kind": 1.0, "short": -0.5})
    model.save(tmp_path / "export")
    loaded = RewardModel.from_pretrained(tmp_path / "export")
    assert isinstance(loaded.members[0], SeparateNetwork)
    torch.testing.assert_close(loaded.score(PROMPTS, RESPONSES), model.score(PROMPTS, RESPONSES))
    (tmp_path / "export" / FILE).unlink()
    with pytest.raises(UserError, match=rf"{FILE} is missing or unreadable"):
        RewardModel.from_pretrained(tmp_path / "export")


def test_separate_encoders_train_both_trunks(tmp_path):
    network = separate(path=tmp_path)
    network(network.encode(PROMPTS, RESPONSES)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.trunk.parameters())
    assert all(encoder.get_input_embeddings().weight.grad.abs().sum() > 0 for encoder in network.trunk)


def test_separate_encoders_count_every_prompt_that_loses_tokens(tmp_path):
    network = separate(path=tmp_path)  # each reads 32 tokens
    prompts = [" ".join(["cat"] * length) for length in (31, 32, 33, 50, 70)]
    encoded = network.encode([*prompts, prompts[2]], ["dog"] * 5 + [" ".join(["dog"] * 40)])
    assert (encoded.truncated_prompts, encoded.truncated_responses) == (4, 1)
    assert encoded.context.attention_mask.sum(-1).tolist() == [31, 32, 32, 32, 32, 32]
    alone = [network(network.encode([prompt], ["dog"]))[0] for prompt in prompts]
    torch.testing.assert_close(network(encoded)[:5], torch.stack(alone), rtol=0, atol=1e-4)


def test_separate_encoders_without_an_end_of_sequence_token_end_with_the_separator(tmp_path):
    bert(tmp_path)
    words = tiny_models.tokenizer(eos=None)
    words.sep_token = "</s>"
    words.save_pretrained(tmp_path)
    network = SeparateEncoders().build(LanguageBackbone(checkpoint=str(tmp_path)), None, outputs=1, seed=0)
    encoded = network.encode(["the cat"], ["red dog"])
    assert encoded.actions.tolist() == [[5, 9, 1]]
    assert network(encoded).isfinite().all()


def test_a_member_with_separate_encoders_is_a_reward_model(tmp_path):
    networks = [separate(path=tmp_path / "lm") for _ in range(2)]
    with torch.no_grad():
        networks[1].interaction.score.weight.mul_(-2)
    model = RewardModel(networks, objectives={"kind": 1.0, "short": 0.5})
    model.centers.copy_(torch.tensor([[0.1, 0.2], [0.3, 0.4]]))
    model.save(tmp_path / "export")
    expected = model.weighted(model.member_scores(PROMPTS, RESPONSES)[1])
    alone = RewardModel.from_pretrained(tmp_path / "export" / "member_1")
    torch.testing.assert_close(alone.score(PROMPTS, RESPONSES), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert", "mpnet"])
def test_positions_of_the_roberta_family_begin_behind_the_padding_tokens(kind):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = AutoConfig.for_model(kind, vocab_size=15, max_position_embeddings=514, pad_token_id=1, **sizes)
    model = AutoModel.from_config(config)
    assert known_positions(model) == 512
    assert known_positions(trainable(model)) == 512
    assert model(torch.full((1, 512), 5)).last_hidden_state.isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, 513), 5))


def test_a_long_text_fills_the_positions_of_a_roberta(tmp_path):
    own = roberta(tmp_path, AutoModelForSequenceClassification)
    model = RewardModel.from_pretrained(tmp_path)
    words = model.members[0].tokenizer
    long = " ".join(["the cat sees a red dog"] * 10)
    encoded = model.members[0].encode([long], ["blue"])
    assert encoded.inputs["input_ids"].shape == (1, 33)
    assert encoded.truncated_prompts == 1
    # 33 places: three special tokens and one of the response leave 29 of the prompt's 60 words
    cut = words(" ".join(long.split()[-29:]), "blue", return_tensors="pt")
    assert model.score([long], ["blue"]).item() == pytest.approx(own(**cut).logits.item(), abs=1e-4)


def test_separate_encoders_start_from_a_masked_language_model(tmp_path):
    trunk = roberta(tmp_path, AutoModelForMaskedLM).base_model
    network = SeparateEncoders().build(LanguageBackbone(checkpoint=str(tmp_path)), None, outputs=1, seed=3)
    long = " ".join(["the cat sees a red dog"] * 10)
    encoded = network.encode(["the cat", long], ["red dog", long])
    assert (encoded.truncated_prompts, encoded.truncated_responses) == (1, 1)
    scores = network(encoded)
    asked, said = encoded.context.input_ids[:1][encoded.context.attention_mask[:1]][None], torch.tensor([[5, 9, 1]])
    p, r = (trunk(ids).last_hidden_state[0].mean(0) for ids in (asked, said))
    torch.testing.assert_close(scores[0], network.interaction(p[None], r[None])[0], rtol=0, atol=1e-4)
    RewardModel([network]).save(tmp_path / "export")
    again = RewardModel.from_pretrained(tmp_path / "export").members[0]
    torch.testing.assert_close(again(encoded), scores)

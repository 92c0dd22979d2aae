"""Scores of other programs' reward models here, and of ours in transformers: by the model's own forward."""

import json

import pytest
import tiny_markup
import tiny_models
import torch
from tiny_markup import FAMILIES
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig

from rlhf_lightning.models.language.markup import turn_end
from rlhf_lightning.models.reward.networks import DecoderNetwork
from rlhf_lightning.models.reward.reward_model import FILE, RewardModel

SAID = [{"role": "user", "content": "say hello"}]
LONGER = [*SAID, {"role": "assistant", "content": "hello"}, {"role": "user", "content": "and now ?"}]
PROMPTS, RESPONSES = [SAID, LONGER, SAID, SAID], ["ok", "bye bye", "", "one two three"]


def classifier(words, pad):
    """A model of large weights whose padding token is EOS, another one, or none."""
    other = next(
        token_id for token_id in words.all_special_ids if token_id not in {words.eos_token_id, turn_end(words)}
    )
    ids = {"eos": words.eos_token_id, "other": other, None: None}
    options = {"vocab_size": tiny_markup.VOCABULARY, "max_position_embeddings": 200}
    return tiny_models.classifier("llama", eos_token_id=words.eos_token_id, pad_token_id=ids[pad], **options)


def by_transformers(path, rows):
    """Scores of rows of token ids by transformers itself, padded as the files say."""
    model, words = AutoModelForSequenceClassification.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    if model.config.pad_token_id is None:
        return [model(torch.tensor([row])).logits.item() for row in rows]
    words.pad_token = words.convert_ids_to_tokens(model.config.pad_token_id)
    batch = words.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
    return model(**batch).logits[:, 0].tolist()


def conversations(path):
    words = AutoTokenizer.from_pretrained(path)
    pairs = zip(PROMPTS, RESPONSES, strict=True)
    turns = [[*prompt, {"role": "assistant", "content": response}] for prompt, response in pairs]
    return [words.apply_chat_template(row)["input_ids"] for row in turns]


def close(found, expected):
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    assert len({round(score, 3) for score in expected}) == len(expected)


@pytest.mark.parametrize("pad", ["eos", "other", None])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_foreign_model_is_read_as_transformers_reads_it(family, pad, tmp_path):
    words = FAMILIES[family]()
    classifier(words, pad).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    model = RewardModel.from_pretrained(tmp_path)
    close(model.score(PROMPTS, RESPONSES), by_transformers(tmp_path, conversations(tmp_path)))
    model.save(tmp_path / "again")
    again = RewardModel.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(again.score(PROMPTS, RESPONSES), model.score(PROMPTS, RESPONSES), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pad", ["eos", "other", None])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_our_export_as_we_do(family, pad, tmp_path):
    words = FAMILIES[family]()
    model = RewardModel([DecoderNetwork(classifier(words, pad), words)])
    model.save(tmp_path)
    close(model.score(PROMPTS, RESPONSES), by_transformers(tmp_path, conversations(tmp_path)))
    close(RewardModel.from_pretrained(tmp_path).score(PROMPTS, RESPONSES), model.score(PROMPTS, RESPONSES).tolist())


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("pad", ["eos", "other"])
def test_texts_have_the_same_score_here_and_in_transformers(pad, ours, tmp_path):
    words = tiny_markup.llama(pad_token="</s>")
    if ours:
        RewardModel([DecoderNetwork(classifier(words, pad), words)]).save(tmp_path)
    else:
        classifier(words, pad).save_pretrained(tmp_path)
        words.save_pretrained(tmp_path)
    prompts, eos = ["say hello", "and", "now"], words.eos_token_id
    rows = [
        [*words(prompt)["input_ids"], *words(response, add_special_tokens=False)["input_ids"], eos]
        for prompt, response in zip(prompts, RESPONSES[:3], strict=True)
    ]
    close(RewardModel.from_pretrained(tmp_path).score(prompts, RESPONSES[:3]), by_transformers(tmp_path, rows))


def test_a_new_head_is_read_at_eos_even_where_eos_was_the_padding():
    words = tiny_markup.llama(pad_token="</s>")
    network = DecoderNetwork(classifier(words, "eos"), words)
    ids = torch.tensor([[*words("say")["input_ids"], *words("ok", add_special_tokens=False)["input_ids"], 257]])
    hidden = network.model.base_model(ids).last_hidden_state
    found = network(network.encode(["say"], ["ok"]))
    assert found.item() == pytest.approx(network.model.score(hidden[0, -1]).item(), abs=1e-4)
    assert (words.pad_token, network.tokenizer.pad_token_id) == ("</s>", network.model.config.pad_token_id)


def test_an_export_of_an_earlier_version_is_read_as_it_was_fitted(tmp_path):
    words = tiny_markup.chatml()
    own = classifier(words, "eos")
    RewardModel([DecoderNetwork(own, words)]).save(tmp_path)
    own.config.pad_token_id = words.eos_token_id
    own.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / FILE).read_text())
    del settings["as_rendered"]
    (tmp_path / FILE).write_text(json.dumps(settings))
    end = words.convert_tokens_to_ids("<|im_end|>")
    prompt = words.apply_chat_template(SAID, add_generation_prompt=True)["input_ids"]
    ids = torch.tensor([[*prompt, *words("ok")["input_ids"], end]])  # without the line break behind the turn
    expected = own.score(own.base_model(ids).last_hidden_state[0, -1]).item()
    assert RewardModel.from_pretrained(tmp_path).score([SAID], ["ok"]).item() == pytest.approx(expected, abs=1e-4)


def test_an_encoder_with_a_template_reads_what_it_renders(tmp_path):
    tokens = ("[PAD]", "[CLS]", "[SEP]", "<|im_start|>", "<|im_end|>")
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    words = tiny_markup.tokenizer(*tokens, single="[CLS] $A [SEP]", template=tiny_markup.CHATML, **names)
    words.save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = BertConfig(
        vocab_size=tiny_markup.VOCABULARY, pad_token_id=words.pad_token_id, num_labels=1, initializer_range=1.0, **sizes
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    found = RewardModel.from_pretrained(tmp_path).score(PROMPTS, RESPONSES)
    close(found, by_transformers(tmp_path, conversations(tmp_path)))


def test_a_long_reply_takes_the_room_that_its_prompt_leaves(tmp_path):
    words = tiny_markup.llama_3()
    classifier(words, "other").save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    model = RewardModel.from_pretrained(tmp_path)
    long = "x" * 150  # of 200 positions
    turns = [*SAID, {"role": "assistant", "content": long}]
    ids = words.apply_chat_template(turns)["input_ids"]
    assert model.score([SAID], [long]).item() == pytest.approx(by_transformers(tmp_path, [ids])[0], abs=1e-4)
    encoded = model.members[0].encode([SAID], ["x" * 300])
    assert (encoded.truncated_prompts, encoded.truncated_responses) == (0, 1)
    assert encoded.actions.shape[1] + encoded.context.input_ids.shape[1] == 200

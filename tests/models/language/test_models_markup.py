"""Where token ids come from: compared with what tokenizers and transformers produce for the same texts and turns."""

import resource
import signal

import pytest
import tiny_markup
import tiny_models
import torch
from tiny_markup import ENDS, FAMILIES
from transformers import AutoTokenizer, GenerationConfig

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language import markup
from rlhf_lightning.models.language.checkpoints import load_tokenizer
from rlhf_lightning.models.language.markup import (
    PLAIN_CHAT_TEMPLATE,
    answered_ids,
    plain_chat_template,
    prompt_ids,
    stop_ids,
    turn_end,
)
from rlhf_lightning.models.language.policy import LanguagePolicy
from rlhf_lightning.models.language.text import encode_prompts, encode_responses
from rlhf_lightning.models.reward.networks import DecoderNetwork
from rlhf_lightning.rollout.decode import EagerDecoder

TURN = [{"role": "user", "content": "say hello"}]
TRANSCRIPT = "Human: say hello\n\nAssistant:"
BERT = {"single": "[CLS] $A [SEP]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def loaded(words, path):
    """The tokenizer as it is read from a checkpoint."""
    words.save_pretrained(path)
    return load_tokenizer(str(path))


def rendered(words, turns, **options):
    return words.apply_chat_template(turns, tokenize=True, **options)["input_ids"]


# -- the beginning -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("single", [None, "<s> $A", "<s> $A </s>", "$A </s>"])
def test_a_conversation_without_template_begins_with_bos_where_the_tokenizer_adds_one(single, tmp_path):
    words = loaded(tiny_markup.llama(single), tmp_path)
    expected = words(TRANSCRIPT)["input_ids"]
    expected = expected[:-1] if single and single.endswith("</s>") else expected
    assert prompt_ids(TURN, words) == expected
    assert (expected[0] == words.bos_token_id) == (single is not None and single.startswith("<s>"))
    assert rendered(words, TURN, add_generation_prompt=True) == expected  # by whoever reads the exported template


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_is_what_its_own_template_renders(family, tmp_path):
    words = loaded(FAMILIES[family](), tmp_path)
    turns = [*TURN, {"role": "assistant", "content": "hello"}, *TURN]
    assert prompt_ids(turns, words) == rendered(words, turns, add_generation_prompt=True)


def test_every_stage_reads_the_same_beginning(tmp_path):
    words = loaded(tiny_markup.llama(), tmp_path / "words")
    expected = [words.bos_token_id, *TRANSCRIPT.encode()]
    config = {"vocab_size": tiny_markup.VOCABULARY, "max_position_embeddings": 96}
    network = DecoderNetwork(tiny_models.classifier("llama", **config), words)
    contexts = [
        encode_prompts([TURN], words, max_tokens=64)[0],
        encode_responses([TURN], ["x"], words, stop_id=257, context_length=64, max_response_tokens=9).context,
        network.encode([TURN], ["x"]).context,
    ]
    text = [words.decode(context.input_ids[0]) for context in contexts]
    assert text == [words.decode([words.bos_token_id, *words(TRANSCRIPT)["input_ids"][1:]])] * 3
    assert all(len(context.input_ids[0]) == len(expected) for context in contexts)
    policy = LanguagePolicy(tiny_models.model("llama", **config), words)
    policy.save(tmp_path / "export")
    again = AutoTokenizer.from_pretrained(tmp_path / "export")
    assert rendered(again, TURN, add_generation_prompt=True) == contexts[0].input_ids[0].tolist()


@pytest.mark.parametrize("prompt", ["say hello to me", TURN])
def test_a_prompt_that_is_cut_keeps_bos(prompt, tmp_path):
    words = loaded(tiny_markup.llama(), tmp_path)
    whole = prompt_ids(prompt, words)
    context, cut = encode_prompts([prompt, "a"], words, max_tokens=5)
    assert (context.input_ids[0].tolist(), cut) == ([whole[0], *whole[-4:]], 1)
    found = encode_responses([prompt], ["ok"], words, stop_id=257, context_length=9, max_response_tokens=4)
    assert found.context.input_ids[0].tolist() == [whole[0], *whole[-5:]]
    assert encode_prompts([prompt], words, max_tokens=1)[0].input_ids.tolist() == [whole[-1:]]


def test_a_prompt_that_is_cut_keeps_the_bos_of_its_template():
    words = tiny_markup.llama_3()
    whole = rendered(words, TURN, add_generation_prompt=True)
    context, _ = encode_prompts([TURN], words, max_tokens=8)
    assert context.input_ids[0].tolist() == [words.bos_token_id, *whole[-7:]]


# -- the end of a prompt -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("single", ["<s> $A </s>", "$A </s>", "<s> $A </s> </s>"])
def test_a_decoders_prompt_does_not_end_in_an_eos_that_it_does_not_contain(single):
    words = tiny_markup.llama(single)
    bare = words("say hello", add_special_tokens=False)["input_ids"]
    assert prompt_ids("say hello", words) == [words.bos_token_id] * single.startswith("<s>") + bare
    assert prompt_ids("say hello", words, encoder=True) == words("say hello")["input_ids"]


def test_an_encoder_reads_a_conversation_between_its_own_tokens(tmp_path):
    words = loaded(tiny_markup.tokenizer("[CLS]", "[SEP]", **BERT), tmp_path / "bert")
    assert words.chat_template == PLAIN_CHAT_TEMPLATE
    assert prompt_ids(TURN, words, encoder=True) == words(TRANSCRIPT)["input_ids"]
    roberta = tiny_markup.llama("<s> $A </s>", cls_token="<s>", sep_token="</s>")
    roberta.chat_template = plain_chat_template(roberta)
    assert prompt_ids(TURN, roberta, encoder=True) == roberta(TRANSCRIPT)["input_ids"]


# -- the end of a turn ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_turn_ends_with_the_first_special_token_behind_its_content(family):
    words = FAMILIES[family]()
    assert turn_end(words) == words.convert_tokens_to_ids(ENDS[family])
    model = tiny_models.model("llama", vocab_size=tiny_markup.VOCABULARY, eos_token_id=None)
    model.generation_config.eos_token_id = None
    assert stop_ids(model, words) == list(dict.fromkeys([turn_end(words), words.eos_token_id]))


def test_a_template_that_does_not_end_turns_leaves_eos():
    assert turn_end(tiny_models.tokenizer()) is None
    assert turn_end(tiny_models.tokenizer(template=None)) is None
    assert turn_end(tiny_models.tokenizer(template="{{ raise_exception('no') }}")) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_given_response_is_closed_like_an_earlier_turn(family):
    words = FAMILIES[family]()
    model = tiny_models.model("llama", vocab_size=tiny_markup.VOCABULARY, eos_token_id=words.eos_token_id)
    policy = LanguagePolicy(model, words)
    options = {"stop_id": policy.stop_ids[0], "context_length": 200, "max_response_tokens": 20}
    found = encode_responses([TURN, "say hello"], ["ok", "ok"], words, **options)
    *_, to_turn = found.actions[0][found.action_mask[0]].tolist()
    *_, to_text = found.actions[1][found.action_mask[1]].tolist()
    earlier = rendered(words, [*TURN, {"role": "assistant", "content": "ok"}, *TURN])
    behind = earlier[len(prompt_ids(TURN, words)) :]
    special = [token_id for token_id in behind if token_id in words.all_special_ids]
    assert (to_turn, to_text) == (special[0], words.eos_token_id)


def test_sampling_stops_at_the_end_of_a_turn_in_transformers_too(tmp_path):
    words = tiny_markup.chatml()
    end = words.convert_tokens_to_ids("<|im_end|>")
    model = tiny_models.model("llama", scale=1.0, vocab_size=tiny_markup.VOCABULARY, max_position_embeddings=128)
    model.generation_config.eos_token_id = words.eos_token_id
    policy = LanguagePolicy(model, words)
    context, _ = encode_prompts([TURN], words, max_tokens=60)
    many = torch.arange(64)
    rollout = EagerDecoder().generate(policy, context, keys=tiny_models.keys(*many), rows=many, max_new_tokens=48)
    ended = rollout.action_mask & (rollout.actions == end)
    assert ended.any()
    assert torch.equal(ended & rollout.terminated, ended)
    policy.save(tmp_path)
    settings = GenerationConfig.from_pretrained(tmp_path)
    assert settings.eos_token_id == [words.eos_token_id, end]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answered_conversation_is_what_the_template_renders(family):
    words = FAMILIES[family]()
    before, reply = answered_ids(TURN, "ok", words, prompt_alone=prompt_ids(TURN, words))
    assert before + reply == rendered(words, [*TURN, {"role": "assistant", "content": "ok"}])
    assert before == prompt_ids(TURN, words)


# -- templates that are no templates --------------------------------------------------------------------------------

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{{ '' }}{% endfor %}{% endfor %}"
DOUBLED = (
    "{% set text = namespace(all='a') %}{% for n in range(40) %}{% set text.all = text.all ~ text.all %}{% endfor %}x"
)


@pytest.mark.parametrize(
    ("template", "line"),
    [
        (LOOPS, r"chat template takes more than 0\.3 seconds; expected one that ends"),
        (DOUBLED, r"chat template takes more than 1 GB of memory; expected one that is modest"),
        ("{{ 'a' * 100000000000 }}", r"chat template takes more than 1 GB of memory"),
        ("{{ 'a' * 2000000 }}", r"makes 2,000,000 characters out of 9; expected a few for each turn"),
    ],
    ids=["loops", "doubled", "multiplied", "long"],
)
def test_a_template_that_does_not_end_or_grows_is_one_line(template, line, monkeypatch):
    monkeypatch.setattr(markup, "MOST_SECONDS", 0.3 if template == LOOPS else 10.0)
    words = tiny_markup.llama()
    words.chat_template = template
    before = signal.getsignal(signal.SIGVTALRM), resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(UserError, match=line):
        prompt_ids(TURN, words)
    assert (signal.getsignal(signal.SIGVTALRM), resource.getrlimit(resource.RLIMIT_AS)) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)

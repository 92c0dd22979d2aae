"""The word-level tokenizer."""

from itertools import permutations

import pytest
from transformers import AutoTokenizer

from rlhf_lightning.tasks.assistant import Assistant
from rlhf_lightning.tasks.assistant.world import ATTRIBUTES, Request
from rlhf_lightning.tasks.word_tokenizer import SPECIAL_TOKENS

TASK = Assistant(demonstrations=3000)
TOKENIZER = TASK.tokenizer()
MESSAGES = [{"role": "user", "content": "tell me the colour of the lamp"}]


def rendered(tokenizer, messages, **options):
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_chat_template_gives_role_tokens_and_words():
    text = rendered(TOKENIZER, MESSAGES, add_generation_prompt=True)
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    words = ["<user>", "tell", "me", "the", "colour", "of", "the", "lamp", "<assistant>"]
    assert TOKENIZER.convert_ids_to_tokens(ids) == words


def test_chat_template_of_a_whole_conversation_continues_the_generation_prompt():
    answer = {"role": "assistant", "content": "the lamp is red ."}
    prompt = rendered(TOKENIZER, MESSAGES, add_generation_prompt=True)
    assert rendered(TOKENIZER, [*MESSAGES, answer]) == prompt + " the lamp is red . <eos>"
    system = {"role": "system", "content": "you can help"}
    assert rendered(TOKENIZER, [system, *MESSAGES]).startswith("<system> you can help <user> tell")


@pytest.mark.parametrize("entities", [16, 24])
def test_vocabulary_is_exactly_the_words_in_use(entities):
    task = Assistant(entities)
    world, grammar = task.world, task.demonstrator.grammar
    used = set()
    for order in permutations(ATTRIBUTES, 2):
        for entity in world.entities:
            used |= {word for pair in grammar(Request(entity, order)).bigrams for word in pair}
    for hazard in world.hazards:
        used |= {word for pair in grammar(hazard).bigrams for word in pair}
    used |= {w for split in ("train", "heldout") for p in task.prompts(split) for w in p[0]["content"].split()}
    assert task.tokenizer().get_vocab().keys() - SPECIAL_TOKENS == used
    assert 90 <= len(task.tokenizer()) <= 155


def test_no_demonstration_has_an_unknown_word():
    texts = [d.response for d in TASK.demonstrations("train")]
    texts += [p[0]["content"] for p in (*TASK.prompts("train"), *TASK.prompts("heldout"))]
    rows = TOKENIZER(texts, add_special_tokens=False)["input_ids"]
    assert not any(TOKENIZER.unk_token_id in row for row in rows)
    assert [len(row) for row in rows] == [len(text.split()) for text in texts]


def test_decode_inverts_encode(reloaded):
    for tokenizer in (TOKENIZER, reloaded):
        for demonstration in TASK.demonstrations("heldout")[:200]:
            ids = tokenizer(demonstration.response, add_special_tokens=False)["input_ids"]
            padded = [*ids, tokenizer.eos_token_id, tokenizer.pad_token_id]
            assert tokenizer.decode(padded, skip_special_tokens=True) == demonstration.response


def test_saved_tokenizer_is_the_same(reloaded):
    assert reloaded.get_vocab() == TOKENIZER.get_vocab()
    assert reloaded.chat_template == TOKENIZER.chat_template
    assert reloaded.padding_side == "left"
    for kind in ("pad", "bos", "eos", "unk"):
        assert getattr(reloaded, f"{kind}_token_id") == getattr(TOKENIZER, f"{kind}_token_id")
    text = rendered(reloaded, MESSAGES, add_generation_prompt=True)
    assert text == rendered(TOKENIZER, MESSAGES, add_generation_prompt=True)
    assert (
        reloaded(text, add_special_tokens=False)["input_ids"] == TOKENIZER(text, add_special_tokens=False)["input_ids"]
    )


def test_special_tokens_are_distinct_and_come_first():
    assert TOKENIZER.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(7))
    assert set(TOKENIZER.all_special_tokens) == set(SPECIAL_TOKENS)


def test_tokenizer_adds_no_token_type_ids():
    assert set(TOKENIZER("the lamp")) == {"input_ids", "attention_mask"}


def test_unknown_words_become_unk():
    assert TOKENIZER("the zebra", add_special_tokens=False)["input_ids"][1] == TOKENIZER.unk_token_id

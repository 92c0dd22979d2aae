import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lightning.tasks.text import TextTask
from rlhf_lightning.tasks.text.bpe import SMALLEST, SPECIAL_TOKENS, train_bpe

TEXTS = [
    f"The {adjective} {noun} runs, and the {noun} stops." for adjective in ("red", "old") for noun in ("fox", "dog")
]
CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": " The fox?\n\n"},
    {"role": "assistant", "content": "It runs 🦊."},
    {"role": "user", "content": "Why?"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TEXTS * 5, 280)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@settings(max_examples=300, deadline=None)
@given(
    st.text(st.characters(codec="utf-8")).filter(lambda text: "<|" not in text)
    | st.text("👩🏽‍🚀é\u0301\u200d \n\r\t\0'sÄß漢字🏳️‍🌈 The fox.")
)
def test_bpe_round_trip(tokenizer, text):
    assert tokenizer.decode(ids(tokenizer, text), skip_special_tokens=True) == text
    assert tokenizer.decode([*ids(tokenizer, text), tokenizer.eos_token_id], skip_special_tokens=True) == text


@pytest.mark.parametrize(
    "text", ["", " ", "  a  b ", "don 't , do n't .", "\n\n\n", "a\r\nb", "👩🏽‍🚀", "\ufeffx", "ｆｕｌｌ"]
)
def test_bpe_round_trip_of_hard_texts(tokenizer, text):
    assert tokenizer.decode(ids(tokenizer, text), skip_special_tokens=True) == text


def test_vocabulary_holds_special_tokens_then_bytes_then_merges(tokenizer):
    assert len(tokenizer) == 280
    assert tokenizer.convert_ids_to_tokens(list(range(len(SPECIAL_TOKENS)))) == list(SPECIAL_TOKENS)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert set(tokenizer.all_special_tokens) == set(SPECIAL_TOKENS)
    assert len(train_bpe(["ab"], 4096)) == SMALLEST
    assert len(ids(tokenizer, "The fox runs")) < len("The fox runs")


def test_chat_template(tokenizer):
    prompt = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert prompt == (
        "<|bos|><|system|>Be kind.<|user|> The fox?\n\n<|assistant|>It runs 🦊.<|eos|><|user|>Why?<|assistant|>"
    )
    answer = [*CHAT, {"role": "assistant", "content": "Because."}]
    assert tokenizer.apply_chat_template(answer, tokenize=False) == prompt + "Because.<|eos|>"
    special = [i for i in ids(tokenizer, prompt) if i < len(SPECIAL_TOKENS)]
    assert tokenizer.convert_ids_to_tokens(special) == [
        "<|bos|>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|eos|>",
        "<|user|>",
        "<|assistant|>",
    ]


def test_response_tokens_do_not_depend_on_the_prompt(tokenizer):
    prompt = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert ids(tokenizer, prompt + " The dog.") == ids(tokenizer, prompt) + ids(tokenizer, " The dog.")


def test_save_and_load(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "padding_side", "chat_template"):
        assert getattr(loaded, name) == getattr(tokenizer, name)
    assert set(loaded.all_special_ids) == set(tokenizer.all_special_ids)
    prompt = loaded.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert ids(loaded, prompt) == ids(tokenizer, prompt)
    hard = "é 🦊\n don 't  "
    assert loaded.decode([*ids(loaded, hard), loaded.eos_token_id], skip_special_tokens=True) == hard


def test_training_is_deterministic_across_processes():
    code = (
        "import json, sys; from rlhf_lightning.tasks.text.bpe import train_bpe; "
        "print(json.dumps(train_bpe(json.load(sys.stdin), 500).backend_tokenizer.to_str()))"
    )
    texts = [f"{word} {i * i}" for i in range(300) for word in ("alpha", "beta", "gamma")]
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], input=json.dumps(texts), capture_output=True, text=True, check=True
        )
        for _ in range(2)
    ]
    here = train_bpe(texts, 500).backend_tokenizer.to_str()
    assert [json.loads(run.stdout) for run in runs] == [here, here]


def test_task_trains_on_its_training_split_once(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"prompt": f"question {i} {'zq' * 8}", "chosen": "kind", "rejected": "rude"} for i in range(20)]
    heldout = [{"prompt": f"{'xj' * 8} {i}", "chosen": "xjxj", "rejected": "xj"} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in heldout))
    task = TextTask(str(path), heldout_path=str(tmp_path / "b.jsonl"), vocabulary=300)
    tokenizer = task.tokenizer()
    assert task.tokenizer() is tokenizer
    vocabulary = tokenizer.get_vocab()
    assert {"kind", "rude", "zq"} <= vocabulary.keys()
    assert "xj" not in vocabulary
    assert len(tokenizer) <= 300

import pytest
import tiny_models
import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.markup import PLAIN_CHAT_TEMPLATE, prompt_ids
from rlhf_lightning.models.language.text import decode_responses, encode_prompts, encode_responses, plain_text
from rlhf_lightning.tasks.bandit import Bandit

WORDS = tiny_models.tokenizer()
TURN = [{"role": "user", "content": "the cat sees"}]


def rows(ids, mask):
    return [row[m].tolist() for row, m in zip(ids, mask, strict=True)]


def encoded(prompts, responses, *, context_length=32, longest=16):
    return encode_responses(
        prompts, responses, WORDS, stop_id=1, context_length=context_length, max_response_tokens=longest
    )


def test_prompt_ids_of_a_text_are_its_tokens_and_of_a_conversation_the_templates():
    assert prompt_ids("the cat sees", WORDS) == [13, 8, 11]
    assert prompt_ids(TURN, WORDS) == [3, 13, 8, 11, 4]
    assert prompt_ids([*TURN, {"role": "assistant", "content": "red"}, *TURN], WORDS) == [
        *(3, 13, 8, 11),
        *(4, 5),
        *(3, 13, 8, 11, 4),
    ]


def test_words_that_a_tokenizer_cannot_encode_are_refused_in_one_line():
    with pytest.raises(UserError, match=r"no token for some of 'xylophone', and none for unknown words"):
        prompt_ids("xylophone", Bandit().tokenizer())


@pytest.mark.parametrize("prompt", ["", "   "])
def test_prompt_without_tokens_is_refused(prompt):
    with pytest.raises(UserError, match=f"the prompt '{prompt}' has no tokens"):
        encode_prompts(["the", prompt], WORDS, max_tokens=8)


def test_prompt_that_the_template_refuses_is_named():
    words = tiny_models.tokenizer(template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UserError, match=r"cannot render the prompt .*the cat sees.*: roles must alternate"):
        prompt_ids(TURN, words)
    with pytest.raises(UserError, match="cannot render the prompt"):
        prompt_ids(TURN, tiny_models.tokenizer(template=None))


def test_encode_prompts_pads_on_the_left_and_keeps_the_last_tokens():
    context, shortened = encode_prompts(["the cat", "a", "the dog likes a red cow"], WORDS, max_tokens=4)
    assert rows(context.input_ids, context.attention_mask) == [[13, 8], [14], [12, 14, 5, 10]]
    assert context.attention_mask.tolist() == [[False, False, True, True], [False] * 3 + [True], [True] * 4]
    assert shortened == 1


def test_encode_prompts_counts_only_what_is_cut():
    assert encode_prompts(["the cat", "a"], WORDS, max_tokens=2)[1] == 0
    assert encode_prompts(["the cat", "a red cow", "a red dog"], WORDS, max_tokens=2)[1] == 2


@pytest.mark.parametrize("room", [0, -5])
def test_encode_prompts_without_room_is_refused(room):
    with pytest.raises(UserError, match=f"no room for a prompt: {room} tokens"):
        encode_prompts(["the"], WORDS, max_tokens=room)


def test_encode_responses_closes_responses_with_the_stop_token():
    found = encoded(
        ["the cat", "a"],
        [
            "red",
            "",
        ],
    )
    assert rows(found.actions, found.action_mask) == [[5, 1], [1]]
    assert (found.truncated_prompts, found.truncated_responses) == (0, 0)


def test_encode_responses_cuts_the_end_of_long_responses_and_counts_them():
    found = encoded(["the", "the", "the"], ["red blue green", "red blue", "red"], longest=3)
    assert rows(found.actions, found.action_mask) == [[5, 6, 7], [5, 6, 1], [5, 1]]
    assert found.truncated_responses == 1


def test_encode_responses_gives_each_prompt_what_its_own_response_leaves():
    long = "the cat sees a dog likes a cow"
    found = encoded([long, long], ["red", "red blue green red"], context_length=9, longest=6)
    kept = rows(found.context.input_ids, found.context.attention_mask)
    assert [len(row) for row in kept] == [7, 4]
    assert kept[1] == kept[0][-4:]
    assert found.truncated_prompts == 2
    alone = encoded([long], ["red"], context_length=9, longest=6)
    assert rows(alone.context.input_ids, alone.context.attention_mask) == kept[:1]


def test_encode_responses_of_nothing_is_empty():
    found = encoded([], [])
    assert len(found.context) == len(found.actions) == 0


def test_encode_responses_moves_as_a_whole():
    found = encoded(["the"], ["red"]).to("cpu")
    assert (found.actions.device.type, found.context.input_ids.device.type) == ("cpu", "cpu")


def test_decode_responses_leaves_out_special_tokens_and_padding():
    actions = torch.tensor([[5, 8, 1, 9], [13, 0, 6, 10], [1, 5, 5, 5]])
    mask = torch.tensor([[True, True, True, False], [True] * 4, [True, False, False, False]])
    assert decode_responses(actions, mask, WORDS) == ["red cat", "the blue cow", ""]


def test_text_survives_encoding_and_decoding():
    texts = ["the red cat sees a dog", "cow", ""]
    found = encoded(["a"] * 3, texts)
    assert decode_responses(found.actions, found.action_mask, WORDS) == texts


def test_plain_template_writes_a_transcript():
    words = tiny_models.tokenizer(template=PLAIN_CHAT_TEMPLATE)
    turns = [*TURN, {"role": "assistant", "content": "red"}, {"role": "system", "content": "x"}]
    assert words.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == (
        "Human: the cat sees\n\nAssistant: red\n\nSystem: x\n\nAssistant:"
    )


def test_plain_text_of_a_single_turn_is_its_content():
    assert plain_text("the cat") == "the cat"
    assert plain_text(TURN) == "the cat sees"
    assert plain_text([*TURN, {"role": "assistant", "content": "red"}]) == "user: the cat sees\nassistant: red"

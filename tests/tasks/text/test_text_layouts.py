import json

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.text import TextTask
from rlhf_lightning.tasks.text.feedback import check_responses
from rlhf_lightning.tasks.text.layouts import detect, parse
from rlhf_lightning.tasks.text.records import BadPairError, Layout, LayoutError
from rlhf_lightning.types import LabelledResponse, PreferencePair, Rating

USER = {"role": "user", "content": "Hi?"}
SYSTEM = {"role": "system", "content": "Be kind."}


def reply(text):
    return {"role": "assistant", "content": text}


LAYOUTS = {
    "text pair": (
        {"prompt": "Hi", "chosen": " yes", "rejected": " no"},
        (Layout.PAIR, "Hi", (" yes", " no")),
    ),
    "chat prompt with text": (
        {"prompt": [SYSTEM, USER], "chosen": "yes", "rejected": "no"},
        (Layout.PAIR, [SYSTEM, USER], ("yes", "no")),
    ),
    "chat in all three, assistant turns only": (
        {"prompt": [USER], "chosen": [reply("yes")], "rejected": [reply("no")]},
        (Layout.PAIR, [USER], ("yes", "no")),
    ),
    "chat in all three, whole conversations": (
        {"prompt": [USER], "chosen": [USER, reply("yes")], "rejected": [USER, reply("no")]},
        (Layout.PAIR, [USER], ("yes", "no")),
    ),
    "text prompt with assistant turns": (
        {"prompt": "Hi?", "chosen": [reply("yes")], "rejected": [reply("no")]},
        (Layout.PAIR, [USER], ("yes", "no")),
    ),
    "text prompt with whole conversations": (
        {"prompt": "Hi?", "chosen": [SYSTEM, USER, reply("yes")], "rejected": [SYSTEM, USER, reply("no")]},
        (Layout.PAIR, [SYSTEM, USER], ("yes", "no")),
    ),
    "implicit prompt": (
        {"chosen": [USER, reply("a"), USER, reply("yes")], "rejected": [USER, reply("a"), USER, reply("no")]},
        (Layout.CHAT_PAIR, [USER, reply("a"), USER], ("yes", "no")),
    ),
    "null prompt counts as absent": (
        {"prompt": None, "chosen": [USER, reply("yes")], "rejected": [USER, reply("no")]},
        (Layout.CHAT_PAIR, [USER], ("yes", "no")),
    ),
    "transcript": (
        {
            "chosen": "\n\nHuman: Hi?\n\nAssistant: a\n\nb\n\nHuman: Hi?\n\nAssistant: yes ",
            "rejected": "\n\nHuman: Hi?\n\nAssistant: a\n\nb\n\nHuman: Hi?\n\nAssistant: no",
        },
        (Layout.TRANSCRIPT_PAIR, [USER, reply("a\n\nb"), USER], ("yes", "no")),
    ),
    "transcript with two turns of one speaker": (
        {
            "chosen": "Human: Hi?\n\nAssistant: a\n\nAssistant: b\n\nHuman: Hi?\n\nAssistant: yes",
            "rejected": "Human: Hi?\n\nAssistant: a\n\nAssistant: b\n\nHuman: Hi?\n\nAssistant: no",
        },
        (Layout.TRANSCRIPT_PAIR, [USER, reply("a\n\nb"), USER], ("yes", "no")),
    ),
    "chat demonstration": (
        {"messages": [SYSTEM, USER, reply("yes")], "prompt": "ignored", "prompt_id": 3},
        (Layout.CHAT_DEMONSTRATION, [SYSTEM, USER], ("yes",)),
    ),
    "response": ({"prompt": "Hi", "response": "yes"}, (Layout.DEMONSTRATION, "Hi", ("yes",))),
    "completion": ({"prompt": "Hi", "completion": "yes"}, (Layout.DEMONSTRATION, "Hi", ("yes",))),
    "chat completion": (
        {"prompt": [USER], "completion": [reply("yes")]},
        (Layout.DEMONSTRATION, [USER], ("yes",)),
    ),
    "prompt": ({"prompt": "Hi"}, (Layout.PROMPT, "Hi", ())),
    "prompt as messages": ({"prompt": [USER]}, (Layout.PROMPT, [USER], ())),
    "messages with the response beside them": (
        {"messages": [SYSTEM, USER, reply("a"), USER], "response": "yes"},
        (Layout.ANSWERED_CHAT, [SYSTEM, USER, reply("a"), USER], ("yes",)),
    ),
    "messages with the reply beside them as a turn": (
        {"messages": [USER], "completion": [reply("yes")]},
        (Layout.ANSWERED_CHAT, [USER], ("yes",)),
    ),
    "messages ending with a user turn": (
        {"messages": [USER, reply("a"), USER]},
        (Layout.CHAT_PROMPT, [USER, reply("a"), USER], ()),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_parse_layouts(name):
    fields, expected = LAYOUTS[name]
    record = parse(fields)
    assert (record.layout, record.prompt, record.responses) == expected
    assert detect(fields) is record.layout


JUDGED = [
    ({"label": False}, [LabelledResponse([USER], "no", False)]),
    ({"rating": -2}, [Rating([USER], "no", {"rating": -2.0})]),
    ({"rating": None, "ratings": {"kind": 1}}, [Rating([USER], "no", {"kind": 1.0})]),
    ({"label": 0, "rating": 2}, [Rating([USER], "no", {"rating": 2.0}), LabelledResponse([USER], "no", False)]),
]


@pytest.mark.parametrize(("judgement", "feedback"), JUDGED)
@pytest.mark.parametrize(
    "texts",
    [
        {"messages": [USER, reply("no")]},
        {"messages": [USER], "response": "no"},
        {"prompt": [USER], "response": [reply("no")]},
        {"prompt": [USER], "completion": "no"},
    ],
)
def test_a_judged_response_is_no_demonstration_however_it_is_given(texts, judgement, feedback):
    record = parse({**texts, **judgement})
    assert list(record.feedback) == feedback
    assert (record.prompt, record.responses) == ([USER], ("no",))
    kinds = {LabelledResponse: "labels", Rating: "ratings"}
    assert detect({**texts, **judgement}).provides == {"prompts", "groups", *(kinds[type(one)] for one in feedback)}


def test_the_same_response_twice_is_one():
    turns = [USER, reply("yes")]
    assert parse({"messages": turns, "prompt": "Hi?", "completion": "yes"}).responses == ("yes",)


def test_parse_messages_ignores_what_columnar_files_add():
    message = {"role": "user", "content": "Hi?", "tool_calls": None, "name": "Ada"}
    assert parse({"messages": [message]}).prompt == [USER]
    empty = {"tool_calls": [], "function_call": {"name": None, "arguments": ""}, "weight": 1, "reasoning_content": ""}
    assert parse({"messages": [{**message, **empty}], "tools": [], "system": ""}).prompt == [USER]


def test_parse_annotator_and_margin():
    pair = {"prompt": "Hi", "chosen": "yes", "rejected": "no"}
    record = parse({**pair, "annotator": 7, "margin": 2})
    assert record.feedback == (PreferencePair("Hi", "yes", "no", "7", 2.0),)
    record = parse({**pair, "annotator": None, "margin": None})
    assert record.feedback == (PreferencePair("Hi", "yes", "no"),)


@pytest.mark.parametrize(
    ("prompt", "provided"),
    [
        ({}, {"prompts", "groups"}),
        ({"response": "yes"}, {"prompts", "groups", "demonstrations"}),
        ({"response": "yes", "rating": 3}, {"prompts", "groups", "ratings"}),
        ({"completion": "yes", "label": True}, {"prompts", "groups", "labels"}),
        (
            {"chosen": "yes", "rejected": "no"},
            {"prompts", "groups", "demonstrations", "preferences", "rankings", "labels"},
        ),
    ],
)
def test_layout_provides(prompt, provided):
    assert detect({"prompt": "Hi", **prompt}).provides == provided


TURNS = [USER, reply("yes")]
WRONG = {
    "no known key": ({"question": "?"}, "no key 'prompt' (its keys: question); expected prompt/chosen/rejected"),
    "no keys": ({}, "its keys: none"),
    "no rejected": ({"prompt": "Hi", "chosen": "yes"}, "no key 'rejected'"),
    "no chosen": ({"rejected": "no"}, "no key 'chosen'"),
    "prompt is a number": ({"prompt": 3}, "'prompt' is a number; expected text or a list of messages"),
    "prompt is empty": ({"prompt": " \n"}, "empty prompt; expected text"),
    "prompt is an empty list": ({"prompt": []}, "'prompt' is an empty list; expected a list of messages"),
    "user turn is empty": ({"messages": [{"role": "user", "content": ""}]}, "empty prompt"),
    "no question": ({"messages": [reply("yes")]}, "empty prompt"),
    "system turn alone": ({"messages": [SYSTEM]}, "the prompt ends with the turn of the system; expected a user turn"),
    "reply to a reply": (
        {"messages": [USER, reply("a"), reply("b")]},
        "the prompt ends with the turn of the assistant; expected a user turn",
    ),
    "response is empty": ({"prompt": "Hi", "response": " "}, "empty response; expected text"),
    "response is an object": ({"prompt": "Hi", "response": {}}, "'response' is an object; expected text"),
    "response is a boolean": ({"prompt": "Hi", "completion": True}, "'completion' is a boolean"),
    "messages is text": ({"messages": "Hi"}, "'messages' is text; expected a list of messages"),
    "message is text": ({"messages": ["Hi"]}, "'messages' turn 1 is text; expected an object"),
    "unknown role": (
        {"messages": [USER, {"role": "gpt", "content": "a"}]},
        "'messages' turn 2 has the unknown role 'gpt'; expected system, user, assistant",
    ),
    "no role": ({"messages": [{"content": "a"}]}, "'messages' turn 1 has no 'role'"),
    "no content": ({"messages": [USER, {"role": "assistant"}]}, "'messages' turn 2 has no 'content'"),
    "content is a list": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
        "'messages turn 1' is a list; expected text",
    ),
    "late system turn": ({"messages": [USER, SYSTEM]}, "'messages' turn 2 is a system turn"),
    "chosen ends with a user turn": ({"chosen": TURNS[:1], "rejected": TURNS}, "'chosen' ends with a user turn"),
    "one side is text": ({"chosen": TURNS, "rejected": "no"}, "'rejected' is text; expected a list of messages"),
    "no transcript": ({"chosen": "yes", "rejected": "no"}, "'chosen' does not start with 'Human:'"),
    "transcript starts with the assistant": (
        {"chosen": "Assistant: a\n\nHuman: b\n\nAssistant: c", "rejected": ""},
        "'chosen' does not start with 'Human:'",
    ),
    "annotator is a list": (
        {"prompt": "Hi", "chosen": "yes", "rejected": "no", "annotator": ["a"]},
        "'annotator' is a list; expected a name",
    ),
    "margin is text": (
        {"prompt": "Hi", "chosen": "yes", "rejected": "no", "margin": "1"},
        "'margin' is text; expected a number",
    ),
    "margin is infinite": (
        {"prompt": "Hi", "chosen": "yes", "rejected": "no", "margin": float("inf")},
        "'margin' is inf; expected a finite number",
    ),
    "margin is beyond a float": (
        {"prompt": "Hi", "chosen": "yes", "rejected": "no", "margin": 10**400},
        "'margin' is inf; expected a finite number",
    ),
    "tool calls": (
        {"messages": [USER, {**reply("yes"), "tool_calls": [{"id": 1}]}]},
        "'messages' turn 2 has 'tool_calls', which is not read; expected everything as text",
    ),
    "reasoning beside the content": (
        {"prompt": "Hi", "chosen": [{**reply("yes"), "reasoning_content": "so"}], "rejected": "no"},
        "'chosen' turn 1 has 'reasoning_content', which is not read",
    ),
    "a turn that is not to be learned": (
        {"messages": [USER, {**reply("yes"), "weight": 0}]},
        "'messages' turn 2 has 'weight', which is not read",
    ),
    "tools": ({"messages": TURNS, "tools": [{"name": "add"}]}, "the record has 'tools', which is not read"),
    "a system prompt beside the prompt": ({"prompt": "Hi", "system": "Be kind."}, "the record has 'system'"),
    "label of a pair": (
        {"prompt": "Hi", "chosen": "yes", "rejected": "no", "label": 0},
        "'label' beside prompt/chosen/rejected, which does not read it; expected one kind of judgement",
    ),
    "rating of a pair": ({"chosen": TURNS, "rejected": TURNS, "rating": 1}, "'rating' beside chosen/rejected convers"),
    "ratings of a ranking": (
        {"prompt": "Hi", "responses": ["a", "b"], "ranking": [0, 1], "ratings": [1, 2]},
        "'ratings' beside prompt/responses/ranking",
    ),
    "margin of a demonstration": ({"messages": TURNS, "margin": -1}, "'margin' beside messages ending with an ass"),
    "response and completion": (
        {"prompt": "Hi", "response": "yes", "completion": "no"},
        "both 'response' and 'completion'; expected one response",
    ),
    "messages and another response": ({"messages": TURNS, "response": "no"}, "another response beside 'messages'"),
    "half a surrogate pair": ({"prompt": "a\ud800"}, "half a surrogate pair at character 2"),
    "completion of another prompt": (
        {"prompt": "other", "completion": TURNS},
        "prompts differ; expected the conversation in 'completion' to begin with that in 'prompt'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_parse_wrong_record_says_what_was_expected(name):
    fields, message = WRONG[name]
    with pytest.raises(LayoutError) as caught:
        check_responses(parse(fields))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, BadPairError)


@pytest.mark.parametrize("name", WRONG)
def test_task_names_the_line_of_a_wrong_record(name, tmp_path):
    fields, message = WRONG[name]
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(fields) + "\n")
    with pytest.raises(UserError) as caught:
        TextTask(str(path)).prompts("train")
    assert str(caught.value).startswith(f"{path}:1: ")
    assert message in str(caught.value)


def test_parse_may_accept_an_empty_response():
    assert parse({"prompt": "Hi", "response": ""}).responses == ("",)


def transcript(*turns):
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {text}" for i, text in enumerate(turns))


BAD_PAIRS = {
    "identical responses": {"prompt": "Hi", "chosen": "yes", "rejected": "yes "},
    "empty response": {"prompt": "Hi", "chosen": " ", "rejected": "yes"},
    "empty prompt": {"prompt": "", "chosen": "no", "rejected": "yes"},
    "prompts differ": {
        "chosen": transcript("Hi?", "yes"),
        "rejected": transcript("Ho?", "no"),
    },
    "no reply at the end": {
        "chosen": transcript("Hi?", "yes", "what?"),
        "rejected": transcript("Hi?", "yes", "what?"),
    },
    "no user turn before the reply": {
        "chosen": transcript("Hi?", "a") + "\n\nAssistant: b",
        "rejected": transcript("Hi?", "a") + "\n\nAssistant: c",
    },
}
MORE_BAD_PAIRS = [
    ("prompts differ", {"chosen": [USER, reply("yes")], "rejected": [SYSTEM, USER, reply("no")]}),
    ("prompts differ", {"prompt": "Ho?", "chosen": [USER, reply("yes")], "rejected": [USER, reply("no")]}),
    ("prompts differ", {"prompt": [SYSTEM], "chosen": [USER, reply("yes")], "rejected": [reply("no")]}),
    ("prompts differ", {"prompt": "Hi?", "chosen": [reply("yes")], "rejected": [SYSTEM, USER, reply("no")]}),
    ("empty prompt", {"chosen": [reply("yes")], "rejected": [reply("no")]}),
    ("empty prompt", {"chosen": transcript("", "yes"), "rejected": transcript("", "no")}),
]


@pytest.mark.parametrize(("reason", "fields"), [*BAD_PAIRS.items(), *MORE_BAD_PAIRS])
def test_bad_pair_reason(reason, fields):
    with pytest.raises(BadPairError) as caught:
        check_responses(parse(fields))
    assert caught.value.reason == reason
    assert "; expected " in str(caught.value)

"""Reading the values of a record with their types checked: text, messages, conversations, names and numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from rlhf_lightning.tasks.text.records import BadPairError, Fields, LayoutError
from rlhf_lightning.types import Message, Prompt

ROLES = ("system", "user", "assistant")
UNREAD = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "refusal", "weight", "train")
"""Keys of a message that change what a model would read or learn of it, and are not read here."""
_TURN = re.compile(r"\n\n(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def text(value: Any, key: str, expected: str) -> str:
    """A text that can be encoded."""
    if not isinstance(value, str):
        raise LayoutError(f"{key!r} is {kind(value)}; expected {expected}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise LayoutError(
            f"{key!r} holds half a surrogate pair at character {error.start + 1}; expected text"
        ) from error
    return value


def messages(value: Any, key: str) -> list[Message]:
    """The turns of a conversation, reduced to role and content."""
    if not isinstance(value, list) or not value:
        raise LayoutError(f"{key!r} is {kind(value)}; expected a list of messages with role and content")
    turns = []
    for turn, message in enumerate(value, start=1):
        if not isinstance(message, dict):
            raise LayoutError(f"{key!r} turn {turn} is {kind(message)}; expected an object with role and content")
        for name in ("role", "content"):
            if message.get(name) is None:
                raise LayoutError(f"{key!r} turn {turn} has no {name!r}; expected role and content")
        role = message["role"]
        if role not in ROLES:
            raise LayoutError(f"{key!r} turn {turn} has the unknown role {role!r}; expected {', '.join(ROLES)}")
        if role == "system" and turn > 1:
            raise LayoutError(f"{key!r} turn {turn} is a system turn; expected it as the first turn only")
        refuse_unread(message, UNREAD, f"{key!r} turn {turn}")
        turns.append({"role": role, "content": text(message["content"], f"{key} turn {turn}", "text")})
    return turns


def refuse_unread(fields: Fields, keys: Sequence[str], where: str) -> None:
    """Refuse what stands under keys that are not read, rather than train on what is left.

    Raises:
        LayoutError: one of them says something.
    """
    for key in keys:
        if fields.get(key) != 1 and not _says_nothing(fields.get(key)):  # every turn has a weight of 1
            raise LayoutError(
                f"{where} has {key!r}, which is not read; expected everything as text in prompts and turns"
            )


def _says_nothing(value: Any) -> bool:
    """Whether a value is empty, as columnar files fill with."""
    if isinstance(value, dict):
        return all(map(_says_nothing, value.values()))
    if isinstance(value, list):
        return all(map(_says_nothing, value))
    return value in (None, "")


def prompt_of(fields: Fields) -> Prompt:
    """The value of ``prompt``: text or a conversation."""
    value = fields["prompt"]
    return messages(value, "prompt") if isinstance(value, list) else text(value, "prompt", "text or a list of messages")


def is_empty(prompt: Prompt) -> bool:
    """Whether the prompt, or its last turn, has no text."""
    question = prompt if isinstance(prompt, str) else prompt[-1]["content"] if prompt else ""
    return not question.strip()


def joined(prompt: Prompt, fields: Fields, keys: Sequence[str]) -> tuple[Prompt, tuple[str, ...]]:
    """A prompt and its responses, each given as text, as one assistant turn or as the whole conversation."""
    responses, conversations = [], []
    for key in keys:
        if not isinstance(fields[key], list):
            responses.append(text(fields[key], key, "text or a list of messages"))
            continue
        before, reply = split_conversation(fields[key], key)
        responses.append(reply)
        conversations.append(before)
        if isinstance(prompt, str):
            questions = [message["content"] for message in before if message["role"] == "user"]
            agrees = not before or prompt in questions
        else:
            agrees = before in ([], prompt)
        if not agrees:
            raise BadPairError("prompts differ", f"the conversation in {key!r} to begin with that in 'prompt'")
    if conversations and isinstance(prompt, str):
        if any(before != conversations[0] for before in conversations):
            raise BadPairError("prompts differ", f"{' and '.join(keys)} to differ in their last turn alone")
        prompt = conversations[0] or [{"role": "user", "content": prompt}]
    return prompt, tuple(responses)


def prompt_and_response(fields: Fields) -> tuple[Prompt, tuple[str, ...]]:
    """A prompt and the single response to it: by keys of their own, or the last turn of ``messages``."""
    if fields.get("messages") is None:
        return joined(prompt_of(fields), fields, (_response_key(fields),))
    turns = messages(fields["messages"], "messages")
    if turns[-1]["role"] != "assistant" and fields.get(_response_key(fields)) is not None:
        return joined(turns, fields, (_response_key(fields),))
    prompt, reply = split_conversation(fields["messages"], "messages")
    if any(fields.get(key) not in (None, reply) for key in ("response", "completion")):
        raise LayoutError("another response beside 'messages'; expected one response in a record")
    return prompt, (reply,)


def split_conversation(value: Any, key: str) -> tuple[list[Message], str]:
    """A conversation without its last turn, and the content of the last turn, which is the assistant's."""
    *before, last = messages(value, key)
    if last["role"] != "assistant":
        raise LayoutError(f"{key!r} ends with a {last['role']} turn; expected an assistant turn")
    return before, last["content"]


def split_transcript(value: Any, key: str) -> tuple[list[Message], str]:
    """`split_conversation` for ``Human:`` and ``Assistant:`` turns in one text."""
    transcript = text(value, key, "a transcript of 'Human:' and 'Assistant:' turns")
    start, *parts = _TURN.split("\n\n" + transcript.lstrip())
    if start.strip() or not parts or parts[0] != "Human":
        raise LayoutError(f"{key!r} does not start with 'Human:'; expected a transcript, or a key 'prompt' beside it")
    if parts[-2] != "Assistant":
        raise BadPairError("no reply at the end", f"{key!r} to end with an 'Assistant:' turn")
    turns: list[Message] = []
    for speaker, spoken in zip(parts[:-2:2], parts[1:-2:2], strict=True):
        role, content = _SPEAKERS[speaker], spoken.strip()
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] = f"{turns[-1]['content']}\n\n{content}".strip()
        else:
            turns.append({"role": role, "content": content})
    return turns, parts[-1].strip()


def name_of(fields: Fields, key: str) -> str | None:
    """The name under this key, which may be written as a whole number; None where there is none."""
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise LayoutError(f"{key!r} is {kind(value)}; expected a name or a whole number")
    return None if value is None else str(value)


def number(value: Any, key: str, expected: str = "a number") -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LayoutError(f"{key!r} is {kind(value)}; expected {expected}")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise LayoutError(f"{key!r} is {result}; expected a finite number")
    return result


def _response_key(fields: Fields) -> str:
    """The key of a single response: ``response`` or ``completion``."""
    if None not in (fields.get("response"), fields.get("completion")):
        raise LayoutError("both 'response' and 'completion'; expected one response in a record")
    return "response" if fields.get("response") is not None else "completion"


def truth(value: Any, key: str) -> bool:
    """A truth value, which may be written as 1 or 0."""
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        shown = repr(value) if isinstance(value, str | int | float) else kind(value)
        raise LayoutError(f"{key!r} is {shown:.40}; expected true or false (or 1 or 0)")
    return bool(value)


def kind(value: Any) -> str:
    """The type of a value, in words."""
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    names = {str: "text", dict: "an object", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null" if value is None else f"a {type(value).__name__}")

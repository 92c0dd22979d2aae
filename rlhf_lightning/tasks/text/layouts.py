"""What a record means: its layout, read off its keys, and the prompt and responses in it.

    chosen, rejected           conversations with the prompt in them, or transcripts of ``Human:``/``Assistant:`` turns
    prompt, chosen, rejected   text, or chat messages in any of the three
    messages                   a demonstration if the last turn is the assistant's, else a prompt
    prompt, response           a demonstration (``completion`` names the response too)
    prompt                     a prompt

The first line that fits decides, further keys are ignored, and ``null`` counts as absent (columnar files fill with it).
In a transcript the response is what follows the last ``Assistant:``; before it, a turn that follows a turn of the same
speaker is joined to it by a blank line, and the white space around each turn is dropped. All other text stays as it is.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

from rlhf_lightning.types import Message, Prompt

Fields: TypeAlias = dict[str, Any]

ROLES = ("system", "user", "assistant")
EXPECTED = "prompt/chosen/rejected, chosen/rejected, messages, prompt/response, prompt/completion or prompt"
_TURN = re.compile(r"\n\n(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


class LayoutError(Exception):
    """A record that is not in a known layout; the message says what was expected."""


class BadPairError(LayoutError):
    """A well-formed preference that nothing can be learned from.

    Args:
        reason: what is wrong, without particulars (counts are kept by it).
    """

    def __init__(self, reason: str, expected: str) -> None:
        super().__init__(f"{reason}; expected {expected}")
        self.reason = reason


class Layout(Enum):
    """The layouts, by the words that messages use for them."""

    PROMPT = "prompt"
    CHAT_PROMPT = "messages ending with a user turn"
    DEMONSTRATION = "prompt/response"
    CHAT_DEMONSTRATION = "messages ending with an assistant turn"
    PAIR = "prompt/chosen/rejected"
    CHAT_PAIR = "chosen/rejected conversations"
    TRANSCRIPT_PAIR = "chosen/rejected transcripts"

    @property
    def provides(self) -> frozenset[str]:
        """What a task can offer from such records."""
        if self in (Layout.PROMPT, Layout.CHAT_PROMPT):
            return frozenset({"prompts", "groups"})
        if self in (Layout.DEMONSTRATION, Layout.CHAT_DEMONSTRATION):
            return frozenset({"prompts", "groups", "demonstrations"})
        return frozenset({"prompts", "groups", "demonstrations", "preferences"})


@dataclass(frozen=True)
class Record:
    """One record, understood.

    Args:
        responses: none, the one to imitate, or the chosen and the rejected one.
    """

    layout: Layout
    prompt: Prompt
    responses: tuple[str, ...] = ()
    annotator: str | None = None
    margin: float | None = None


def detect(fields: Fields) -> Layout:
    """The layout of a record.

    Raises:
        LayoutError: its keys fit none.
    """
    present = {key: value for key, value in fields.items() if value is not None}
    if "chosen" in present or "rejected" in present:
        for key in ("chosen", "rejected"):
            if key not in present:
                raise LayoutError(f"no key {key!r}; expected chosen and rejected")
        if "prompt" in present:
            return Layout.PAIR
        return Layout.CHAT_PAIR if isinstance(present["chosen"], list) else Layout.TRANSCRIPT_PAIR
    if "messages" in present:
        ends_with_reply = _messages(present["messages"], "messages")[-1]["role"] == "assistant"
        return Layout.CHAT_DEMONSTRATION if ends_with_reply else Layout.CHAT_PROMPT
    if "prompt" not in present:
        keys = ", ".join(map(str, present)) or "none"
        raise LayoutError(f"no key 'prompt' (its keys: {keys}); expected {EXPECTED}")
    return Layout.DEMONSTRATION if "response" in present or "completion" in present else Layout.PROMPT


def parse(fields: Fields, *, empty_response: bool = False) -> Record:
    """The prompt and the responses of a record.

    Args:
        empty_response: whether a response (not of a pair) may be empty.

    Raises:
        LayoutError: a key is missing, a value has the wrong type, or a prompt or response is empty.
        BadPairError: the same for what a preference says; `check_pair` looks at the two responses.
    """
    layout = detect(fields)
    if layout in (Layout.PAIR, Layout.CHAT_PAIR, Layout.TRANSCRIPT_PAIR):
        return _pair(layout, fields)
    responses: tuple[str, ...] = ()
    if layout is Layout.PROMPT:
        prompt = _prompt(fields["prompt"])
    elif layout is Layout.CHAT_PROMPT:
        prompt = _messages(fields["messages"], "messages")
    elif layout is Layout.CHAT_DEMONSTRATION:
        *prompt, reply = _messages(fields["messages"], "messages")
        responses = (reply["content"],)
    else:
        key = "response" if fields.get("response") is not None else "completion"
        try:
            prompt, responses = _joined(_prompt(fields["prompt"]), fields, (key,))
        except BadPairError as error:  # of a single response it is no preference that could be dropped
            raise LayoutError(str(error)) from error
    if not isinstance(prompt, str) and prompt and prompt[-1]["role"] != "user":
        raise LayoutError(f"the prompt ends with the turn of the {prompt[-1]['role']}; expected a user turn")
    if _is_empty(prompt):
        raise LayoutError("empty prompt; expected text, or messages ending with a user turn that is not empty")
    if not empty_response and any(not text.strip() for text in responses):
        raise LayoutError("empty response; expected text")
    return Record(layout, prompt, responses)


def check_pair(record: Record) -> None:
    """Raise `BadPairError` if a preference's responses are empty or, but for white space, identical."""
    chosen, rejected = (text.strip() for text in record.responses)
    if not chosen or not rejected:
        raise BadPairError("empty response", "text in chosen and rejected")
    if chosen == rejected:
        raise BadPairError("identical responses", "chosen and rejected to differ")


def _pair(layout: Layout, fields: Fields) -> Record:
    if layout is Layout.PAIR:
        prompt, responses = _joined(_prompt(fields["prompt"]), fields, ("chosen", "rejected"))
    else:
        split = _split_conversation if layout is Layout.CHAT_PAIR else _split_transcript
        (prompt, chosen), (other, rejected) = (split(fields[key], key) for key in ("chosen", "rejected"))
        if prompt != other:
            raise BadPairError("prompts differ", "chosen and rejected to differ in their last turn alone")
        responses = (chosen, rejected)
    if not isinstance(prompt, str) and prompt and prompt[-1]["role"] != "user":
        raise BadPairError("no user turn before the reply", "a prompt that ends with a user turn")
    if _is_empty(prompt):
        raise BadPairError("empty prompt", "a prompt with text")
    return Record(layout, prompt, responses, _annotator(fields), _margin(fields))


def _joined(prompt: Prompt, fields: Fields, keys: tuple[str, ...]) -> tuple[Prompt, tuple[str, ...]]:
    """A prompt with its responses, each of which may be text, one assistant turn or the whole conversation."""
    responses, conversations = [], []
    for key in keys:
        if not isinstance(fields[key], list):
            responses.append(_text(fields[key], key, "text or a list of messages"))
            continue
        before, reply = _split_conversation(fields[key], key)
        responses.append(reply)
        conversations.append(before)
        if isinstance(prompt, str):
            asked = [message["content"] for message in before if message["role"] == "user"]
            agrees = not before or prompt in asked
        else:
            agrees = before in ([], prompt)
        if not agrees:
            raise BadPairError("prompts differ", f"the conversation in {key!r} to begin with that in 'prompt'")
    if conversations and isinstance(prompt, str):
        if any(before != conversations[0] for before in conversations):
            raise BadPairError("prompts differ", f"{' and '.join(keys)} to differ in their last turn alone")
        prompt = conversations[0] or [{"role": "user", "content": prompt}]
    return prompt, tuple(responses)


def _split_conversation(value: Any, key: str) -> tuple[list[Message], str]:
    *before, last = _messages(value, key)
    if last["role"] != "assistant":
        raise LayoutError(f"{key!r} ends with a {last['role']} turn; expected an assistant turn")
    return before, last["content"]


def _split_transcript(value: Any, key: str) -> tuple[list[Message], str]:
    text = _text(value, key, "a transcript of 'Human:' and 'Assistant:' turns")
    start, *parts = _TURN.split("\n\n" + text.lstrip())
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


def _is_empty(prompt: Prompt) -> bool:
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"] if prompt else ""
    return not text.strip()


def _prompt(value: Any) -> Prompt:
    if isinstance(value, list):
        return _messages(value, "prompt")
    return _text(value, "prompt", "text or a list of messages")


def _messages(value: Any, key: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise LayoutError(f"{key!r} is {_kind(value)}; expected a list of messages with role and content")
    messages = []
    for turn, message in enumerate(value, start=1):
        if not isinstance(message, dict):
            raise LayoutError(f"{key!r} turn {turn} is {_kind(message)}; expected an object with role and content")
        for name in ("role", "content"):
            if message.get(name) is None:
                raise LayoutError(f"{key!r} turn {turn} has no {name!r}; expected role and content")
        role = message["role"]
        if role not in ROLES:
            raise LayoutError(f"{key!r} turn {turn} has the unknown role {role!r}; expected {', '.join(ROLES)}")
        if role == "system" and turn > 1:
            raise LayoutError(f"{key!r} turn {turn} is a system turn; expected it as the first turn only")
        messages.append({"role": role, "content": _text(message["content"], f"{key} turn {turn}", "text")})
    return messages


def _text(value: Any, key: str, expected: str) -> str:
    if not isinstance(value, str):
        raise LayoutError(f"{key!r} is {_kind(value)}; expected {expected}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise LayoutError(
            f"{key!r} holds half a surrogate pair at character {error.start + 1}; expected text"
        ) from error
    return value


def _annotator(fields: Fields) -> str | None:
    value = fields.get("annotator")
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise LayoutError(f"'annotator' is {_kind(value)}; expected a name or a whole number")
    return None if value is None else str(value)


def _margin(fields: Fields) -> float | None:
    value = fields.get("margin")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LayoutError(f"'margin' is {_kind(value)}; expected a number")
    try:
        margin = float(value)
    except OverflowError:
        margin = math.inf
    if not math.isfinite(margin):
        raise LayoutError(f"'margin' is {margin}; expected a finite number")
    return margin


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    names = {str: "text", dict: "an object", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null" if value is None else f"a {type(value).__name__}")

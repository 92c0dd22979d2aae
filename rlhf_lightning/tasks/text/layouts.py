"""What a record means: its layout, read off its keys, and the prompt and responses in it.

    chosen, rejected            conversations with the prompt in them, or transcripts of ``Human:``/``Assistant:`` turns
    prompt, chosen, rejected    text, or chat messages in any of the three
    prompt, responses, ranking  two or more responses and their numbers from 0, best first; or ``ranks`` (1 is best)
    prompt, responses, ratings  for each response a number, or an object of numbers by objective
    messages                    a demonstration if the last turn is the assistant's, else a prompt
    prompt, response, rating    a number; or ``ratings``, an object of numbers by objective
    prompt, response            a demonstration (``completion`` names the response too)
    prompt                      a prompt

The first line that fits decides, further keys are ignored, and ``null`` counts as absent (columnar files fill with it).
`feedback` says more of the lines that compare or rate responses, which may also name their ``annotator``.
In a transcript the response is what follows the last ``Assistant:``; before it, a turn that follows a turn of the same
speaker is joined to it by a blank line, and the white space around each turn is dropped. All other text stays as it is.
"""

from __future__ import annotations

from rlhf_lightning.tasks.text.feedback import parse_feedback
from rlhf_lightning.tasks.text.records import BadPairError, Fields, Layout, LayoutError, Record
from rlhf_lightning.tasks.text.values import is_empty, joined, messages, prompt_of
from rlhf_lightning.types import Prompt

EXPECTED = (
    "prompt/chosen/rejected, chosen/rejected, prompt/responses/ranking, prompt/response/rating, messages, "
    "prompt/response, prompt/completion or prompt"
)


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
    if {"prompt", "responses"} <= present.keys():
        if "ranking" in present or "ranks" in present:
            return Layout.RANKING
        if "ratings" in present:
            return Layout.RATINGS
    if "messages" in present:
        ends_with_reply = messages(present["messages"], "messages")[-1]["role"] == "assistant"
        return Layout.CHAT_DEMONSTRATION if ends_with_reply else Layout.CHAT_PROMPT
    if "prompt" not in present:
        keys = ", ".join(map(str, present)) or "none"
        raise LayoutError(f"no key 'prompt' (its keys: {keys}); expected {EXPECTED}")
    if "response" in present and ("rating" in present or "ratings" in present):
        return Layout.RATING
    return Layout.DEMONSTRATION if "response" in present or "completion" in present else Layout.PROMPT


def parse(fields: Fields, *, empty_response: bool = False) -> Record:
    """The prompt and the responses of a record.

    Args:
        empty_response: whether a response to imitate may be empty.

    Raises:
        LayoutError: a key is missing, a value has the wrong type, or a prompt or response is empty.
        BadPairError: the same for feedback; `feedback.check_responses` looks at the responses.
    """
    layout = detect(fields)
    if layout.is_feedback:
        return parse_feedback(layout, fields)
    prompt, responses = _prompt_and_response(layout, fields)
    if not isinstance(prompt, str) and prompt and prompt[-1]["role"] != "user":
        raise LayoutError(f"the prompt ends with the turn of the {prompt[-1]['role']}; expected a user turn")
    if is_empty(prompt):
        raise LayoutError("empty prompt; expected text, or messages ending with a user turn that is not empty")
    if not empty_response and any(not text.strip() for text in responses):
        raise LayoutError("empty response; expected text")
    return Record(layout, prompt, responses)


def _prompt_and_response(layout: Layout, fields: Fields) -> tuple[Prompt, tuple[str, ...]]:
    if layout is Layout.PROMPT:
        return prompt_of(fields), ()
    if layout is Layout.CHAT_PROMPT:
        return messages(fields["messages"], "messages"), ()
    if layout is Layout.CHAT_DEMONSTRATION:
        *prompt, reply = messages(fields["messages"], "messages")
        return prompt, (reply["content"],)
    key = "response" if fields.get("response") is not None else "completion"
    try:
        return joined(prompt_of(fields), fields, (key,))
    except BadPairError as error:  # of a single response it is no preference that could be dropped
        raise LayoutError(str(error)) from error

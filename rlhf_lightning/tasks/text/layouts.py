"""The layouts of records: how one is detected from its keys, and the prompt and responses in it.

    chosen, rejected            conversations with the prompt in them, or transcripts of ``Human:``/``Assistant:`` turns
    prompt, chosen, rejected    text, or chat messages in any of the three
    prompt, responses, ranking  two or more responses and their indices, best first; or ``ranks`` (1 is best)
    prompt, responses, ratings  for each response a number, or an object of numbers by objective
    messages, response          a demonstration, where the last turn is not the assistant's
    messages                    a demonstration if the last turn is the assistant's, else a prompt
    prompt, response, rating    a number; or ``ratings``, an object of numbers by objective
    prompt, completion, label   true or 1 if the response is desirable, false or 0 if it is not
    prompt, response            a demonstration
    prompt                      a prompt

The first line that fits decides, and ``null`` counts as absent (columnar files fill with it). A single response is
given as ``response``, as ``completion`` or as the last turn of ``messages``, with or without a judgement of it.
Other keys are ignored, but for those that would say something else of the responses, or change what is read: a
judgement that the line does not have, ``tools`` and its kin, and parts of turns such as ``tool_calls`` are refused.
`feedback` explains the lines that judge responses; they may also name their ``annotator`` and ``objective``.
In a transcript the response is what follows the last ``Assistant:``; before it, consecutive turns of one speaker are
joined by a blank line, and the white space around each turn is dropped. All other text is kept unchanged.
"""

from __future__ import annotations

from rlhf_lightning.tasks.text.feedback import parse_feedback
from rlhf_lightning.tasks.text.records import BadPairError, Fields, Layout, LayoutError, TextRecord
from rlhf_lightning.tasks.text.values import is_empty, messages, prompt_and_response, prompt_of, refuse_unread
from rlhf_lightning.types import Prompt

EXPECTED = (
    "prompt/chosen/rejected, chosen/rejected, prompt/responses/ranking, prompt/response/rating, "
    "prompt/completion/label, messages, messages/response, prompt/response, prompt/completion or prompt"
)

_PAIRS = (Layout.PAIR, Layout.CHAT_PAIR, Layout.TRANSCRIPT_PAIR)
_JUDGEMENTS = {
    "label": (Layout.LABEL, Layout.RATED_LABEL),
    "rating": (Layout.RATING, Layout.RATED_LABEL),
    "ratings": (Layout.RATING, Layout.RATED_LABEL, Layout.RATINGS),
    "ranking": (Layout.RANKING,),
    "ranks": (Layout.RANKING,),
    "margin": _PAIRS,
}
"""Keys that say how good responses are, and the layouts that read them."""

_UNREAD = ("tools", "functions", "documents", "images", "videos", "audios", "system", "chat_template_kwargs")
"""Keys of a record that change what a model would read, and are not read here."""


def detect(fields: Fields) -> Layout:
    """The layout of a record.

    Raises:
        LayoutError: its keys fit no layout.
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
        if messages(present["messages"], "messages")[-1]["role"] == "assistant":
            return _of_one_response(present, Layout.CHAT_DEMONSTRATION)
        if "response" in present or "completion" in present:
            return _of_one_response(present, Layout.ANSWERED_CHAT)
        return Layout.CHAT_PROMPT
    if "prompt" not in present:
        keys = ", ".join(map(str, present)) or "none"
        raise LayoutError(f"no key 'prompt' (its keys: {keys}); expected {EXPECTED}")
    if "response" in present or "completion" in present:
        return _of_one_response(present, Layout.DEMONSTRATION)
    return Layout.PROMPT


def _of_one_response(present: Fields, unjudged: Layout) -> Layout:
    if "rating" in present or "ratings" in present:
        return Layout.RATED_LABEL if "label" in present else Layout.RATING
    return Layout.LABEL if "label" in present else unjudged


def parse(fields: Fields) -> TextRecord:
    """The prompt and the responses of a record; `feedback.check_responses` checks whether these have text.

    Raises:
        LayoutError: a key is missing or one that means something is not read, a value has the wrong type, or the
            prompt is empty.
        BadPairError: the prompt or a ranking cannot be used, in feedback, which can be dropped.
    """
    layout = detect(fields)
    refuse_unread(fields, _UNREAD, "the record")
    if layout not in (Layout.PROMPT, Layout.CHAT_PROMPT):
        _refuse_other_judgements(layout, fields)
    if layout.is_feedback:
        return parse_feedback(layout, fields)
    prompt, responses = _prompt_and_response(layout, fields)
    if not isinstance(prompt, str) and prompt and prompt[-1]["role"] != "user":
        raise LayoutError(f"the prompt ends with the turn of the {prompt[-1]['role']}; expected a user turn")
    if is_empty(prompt):
        raise LayoutError("empty prompt; expected text, or messages ending with a user turn that is not empty")
    return TextRecord(layout, prompt, responses)


def _refuse_other_judgements(layout: Layout, fields: Fields) -> None:
    for key, readers in _JUDGEMENTS.items():
        if fields.get(key) is not None and layout not in readers:
            raise LayoutError(f"{key!r} beside {layout.title}, which does not read it; expected one kind of judgement")


def _prompt_and_response(layout: Layout, fields: Fields) -> tuple[Prompt, tuple[str, ...]]:
    if layout is Layout.PROMPT:
        return prompt_of(fields), ()
    if layout is Layout.CHAT_PROMPT:
        return messages(fields["messages"], "messages"), ()
    try:
        return prompt_and_response(fields)
    except BadPairError as error:  # a demonstration is never dropped
        raise LayoutError(str(error)) from error

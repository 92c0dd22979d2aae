"""Parsing records that judge responses: pairs, rankings, ratings and labels.

A response is text or an assistant turn. ``annotator`` names who judged. ``objective`` names the quality that was
judged, also for a rating that is a plain number. ``margin`` is by how much the chosen response of a pair is better.

A ranking is a strict order of all its responses. ``ranking`` holds each of the indices 0 to K − 1 once; ``ranks``
holds one number per response, of which only the order counts, lowest best. Ties and repeated, missing or unknown
indices are not repaired: such a record is refused, or dropped and counted, like a pair of empty or identical responses.

Ratings are finite numbers on any scale. In an object of ratings, ``null`` means not rated. A response may have both a
rating and a label.
"""

from __future__ import annotations

from typing import Any

from rlhf_lightning.tasks.text.records import BadPairError, Fields, Layout, LayoutError, TextRecord
from rlhf_lightning.tasks.text.values import (
    is_empty,
    joined,
    kind,
    name_of,
    number,
    prompt_and_response,
    prompt_of,
    split_conversation,
    split_transcript,
    truth,
)
from rlhf_lightning.types import OVERALL, Feedback, LabelledResponse, PreferencePair, Prompt, Ranking, Rating


def parse_feedback(layout: Layout, fields: Fields) -> TextRecord:
    """The prompt, the responses and the feedback in a record.

    Raises:
        LayoutError: a value has the wrong type, or a rating is not a finite number.
        BadPairError: the prompt is empty, or a ranking is not a strict order of its responses.
    """
    if layout in (Layout.CHAT_PAIR, Layout.TRANSCRIPT_PAIR):
        prompt, responses = _two_conversations(layout, fields)
    else:
        prompt, responses = _prompt_and_responses(layout, fields)
    if not isinstance(prompt, str) and prompt and prompt[-1]["role"] != "user":
        raise BadPairError("no user turn before the reply", "a prompt that ends with a user turn")
    if is_empty(prompt):
        raise BadPairError("empty prompt", "a prompt with text")
    if layout is Layout.RANKING:
        responses = tuple(responses[number] for number in _order(fields, len(responses)))
    return TextRecord(layout, prompt, responses, _feedback(layout, fields, prompt, responses))


def _feedback(layout: Layout, fields: Fields, prompt: Prompt, responses: tuple[str, ...]) -> tuple[Feedback, ...]:
    annotator, objective = name_of(fields, "annotator"), name_of(fields, "objective")
    if layout is Layout.RANKING:
        return (Ranking(prompt, responses, annotator, objective),)
    if layout.is_comparison:
        margin = None if fields.get("margin") is None else number(fields["margin"], "margin")
        chosen, rejected = responses
        return (PreferencePair(prompt, chosen, rejected, annotator, margin, objective),)
    said: list[Feedback] = []
    if "ratings" in layout.provides:
        rated = zip(responses, _ratings(layout, fields, len(responses), objective or OVERALL), strict=True)
        said += [Rating(prompt, response, values, annotator) for response, values in rated]
    if "labels" in layout.provides:
        label = truth(fields["label"], "label")
        said += [LabelledResponse(prompt, response, label, annotator, objective) for response in responses]
    return tuple(said)


def check_responses(record: TextRecord) -> None:
    """Refuse an empty response, and compared responses that differ at most in white space.

    Raises:
        LayoutError: the response of a demonstration is empty.
        BadPairError: feedback has such responses.
    """
    texts = [text.strip() for text in record.responses]
    of_pair = record.layout is not Layout.RANKING
    if not all(texts) and not record.layout.is_feedback:
        raise LayoutError("empty response; expected text")
    if not all(texts):
        where = "chosen and rejected" if of_pair and record.layout.is_comparison else "every response"
        raise BadPairError("empty response", f"text in {where}")
    if record.layout.is_comparison and len(set(texts)) < len(texts):
        raise BadPairError("identical responses", f"{'chosen and rejected' if of_pair else 'all responses'} to differ")


def _two_conversations(layout: Layout, fields: Fields) -> tuple[Prompt, tuple[str, ...]]:
    split = split_conversation if layout is Layout.CHAT_PAIR else split_transcript
    (prompt, chosen), (other, rejected) = (split(fields[key], key) for key in ("chosen", "rejected"))
    if prompt != other:
        raise BadPairError("prompts differ", "chosen and rejected to differ in their last turn alone")
    return prompt, (chosen, rejected)


def _prompt_and_responses(layout: Layout, fields: Fields) -> tuple[Prompt, tuple[str, ...]]:
    if layout in (Layout.RATING, Layout.LABEL, Layout.RATED_LABEL):
        return prompt_and_response(fields)
    prompt = prompt_of(fields)
    if layout is Layout.PAIR:
        return joined(prompt, fields, ("chosen", "rejected"))
    responses = fields["responses"]
    if not isinstance(responses, list) or not responses:
        raise LayoutError(f"'responses' is {kind(responses)}; expected a list of texts")
    if len(responses) < 2 and layout is Layout.RANKING:
        raise BadPairError("fewer than two responses", "at least two to rank")
    named = {f"responses {i}": [turn] if isinstance(turn, dict) else turn for i, turn in enumerate(responses)}
    return joined(prompt, named, list(named))


def _order(fields: Fields, count: int) -> list[int]:
    """Indices of the responses, best first."""
    ranking, ranks = fields.get("ranking"), fields.get("ranks")
    if ranking is not None and ranks is not None:
        raise LayoutError("both 'ranking' and 'ranks'; expected one of them")
    if ranks is not None:
        numbers = [number(rank, "ranks", "a list of numbers") for rank in _list(ranks, "ranks")]
        if len(numbers) != count:
            raise BadPairError(f"{_more(len(numbers), count)} ranks than responses", "one rank for each response")
        if len(set(numbers)) < count:
            raise BadPairError("tied ranks", "a different rank for each response")
        return sorted(range(count), key=numbers.__getitem__)
    order = _list(ranking, "ranking")
    for index in order:
        if isinstance(index, bool) or not isinstance(index, int):
            raise LayoutError(f"'ranking' holds {kind(index)}; expected whole numbers from 0 to {count - 1}")
        if not 0 <= index < count:
            raise BadPairError("a ranking with an index of no response", f"numbers from 0 to {count - 1}, got {index}")
    if len(set(order)) < len(order):
        raise BadPairError("a ranking that repeats an index", f"each of the numbers 0 to {count - 1} once")
    if len(order) < count:
        raise BadPairError("a ranking that leaves out a response", f"each of the numbers 0 to {count - 1} once")
    return order


def _ratings(layout: Layout, fields: Fields, count: int, name: str) -> tuple[dict[str, float], ...]:
    """The ratings of each response by objective; a plain number gets the name ``name``."""
    if layout is Layout.RATINGS:
        values = _list(fields["ratings"], "ratings")
        if len(values) != count:
            raise LayoutError(f"{_more(len(values), count)} ratings than responses; expected one for each response")
        return tuple(_by_objective(value, f"ratings {index}", name) for index, value in enumerate(values))
    ratings = {}
    if fields.get("rating") is not None:
        ratings[name] = number(fields["rating"], "rating")
    if fields.get("ratings") is not None:
        if not isinstance(fields["ratings"], dict):
            raise LayoutError(f"'ratings' is {kind(fields['ratings'])}; expected an object of objectives and numbers")
        ratings |= _by_objective(fields["ratings"], "ratings", name)
    return (ratings,)


def _by_objective(value: Any, key: str, name: str) -> dict[str, float]:
    if not isinstance(value, dict):
        return {name: number(value, key, "a number, or an object of objectives and numbers")}
    ratings = {
        objective: number(given, f"{key} {objective}") for objective, given in value.items() if given is not None
    }
    if not ratings:
        raise LayoutError(f"{key!r} holds no number; expected at least one objective with its rating")
    return ratings


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise LayoutError(f"{key!r} is {kind(value)}; expected a list with one number per response")
    return value


def _more(count: int, expected: int) -> str:
    return "more" if count > expected else "fewer"

"""Records that compare or rate responses: pairs, rankings and ratings.

A response is text or an assistant turn. ``annotator`` names who judged. ``objective`` names in which respect; beside
a plain number it names what was rated. ``margin`` says by how much the chosen response of a pair is better.

A ranking is a strict order of all its responses. ``ranking`` holds each of the numbers 0 to K − 1 once; ``ranks``
holds one number per response, the lowest is the best, and only their order counts. Ties, repeated or missing numbers
and numbers of no response are never guessed at: such a record is refused, or dropped and counted, as a pair is whose
responses are empty or identical.

Ratings are finite numbers on any scale. In an object of them, ``null`` counts as not rated.
"""

from __future__ import annotations

from typing import Any

from rlhf_lightning.tasks.text.records import BadPairError, Fields, Layout, LayoutError, Record
from rlhf_lightning.tasks.text.values import (
    is_empty,
    joined,
    kind,
    name_of,
    number,
    prompt_of,
    split_conversation,
    split_transcript,
)
from rlhf_lightning.types import OVERALL, Prompt


def parse_feedback(layout: Layout, fields: Fields) -> Record:
    """The prompt, the responses and what was said of them.

    Raises:
        LayoutError: a value has the wrong type, or a rating is not a finite number.
        BadPairError: there is no question, or a ranking is no strict order of its responses.
    """
    if layout in (Layout.CHAT_PAIR, Layout.TRANSCRIPT_PAIR):
        prompt, responses = _two_conversations(layout, fields)
    else:
        prompt, responses = _prompt_and_responses(layout, fields)
    if not isinstance(prompt, str) and prompt and prompt[-1]["role"] != "user":
        raise BadPairError("no user turn before the reply", "a prompt that ends with a user turn")
    if is_empty(prompt):
        raise BadPairError("empty prompt", "a prompt with text")
    annotator, objective = name_of(fields, "annotator"), name_of(fields, "objective")
    if layout in (Layout.RATING, Layout.RATINGS):
        ratings = _ratings(layout, fields, len(responses), objective or OVERALL)
        return Record(layout, prompt, responses, annotator, ratings=ratings)
    if layout is Layout.RANKING:
        responses = tuple(responses[number] for number in _order(fields, len(responses)))
        return Record(layout, prompt, responses, annotator, objective=objective)
    margin = None if fields.get("margin") is None else number(fields["margin"], "margin")
    return Record(layout, prompt, responses, annotator, margin, objective)


def check_responses(record: Record) -> None:
    """Raise `BadPairError` if a response is empty, or if two that were compared are the same but for white space."""
    texts = [text.strip() for text in record.responses]
    of_pair = record.layout is not Layout.RANKING
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
    prompt = prompt_of(fields)
    if layout is Layout.PAIR:
        return joined(prompt, fields, ("chosen", "rejected"))
    given = fields["responses"] if layout in (Layout.RANKING, Layout.RATINGS) else [fields["response"]]
    if not isinstance(given, list) or not given:
        raise LayoutError(f"'responses' is {kind(given)}; expected a list of texts")
    if len(given) < 2 and layout is Layout.RANKING:
        raise BadPairError("fewer than two responses", "at least two to rank")
    names = ["response"] if layout is Layout.RATING else [f"responses {i}" for i in range(len(given))]
    turns = {name: [one] if isinstance(one, dict) else one for name, one in zip(names, given, strict=True)}
    return joined(prompt, turns, names)


def _order(fields: Fields, count: int) -> list[int]:
    """Numbers of the responses, best first."""
    ranking, ranks = fields.get("ranking"), fields.get("ranks")
    if ranking is not None and ranks is not None:
        raise LayoutError("both 'ranking' and 'ranks'; expected one of them")
    if ranks is not None:
        places = [number(rank, "ranks", "a list of numbers") for rank in _list(ranks, "ranks")]
        if len(places) != count:
            raise BadPairError(f"{_more(len(places), count)} ranks than responses", "one rank for each response")
        if len(set(places)) < count:
            raise BadPairError("tied ranks", "a different rank for each response")
        return sorted(range(count), key=places.__getitem__)
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
    """What each response was rated, by objective; a plain number under ``name``."""
    if layout is Layout.RATINGS:
        given = _list(fields["ratings"], "ratings")
        if len(given) != count:
            raise LayoutError(f"{_more(len(given), count)} ratings than responses; expected one for each response")
        return tuple(_by_objective(one, f"ratings {place}", name) for place, one in enumerate(given))
    found = {}
    if fields.get("rating") is not None:
        found[name] = number(fields["rating"], "rating")
    if fields.get("ratings") is not None:
        if not isinstance(fields["ratings"], dict):
            raise LayoutError(f"'ratings' is {kind(fields['ratings'])}; expected an object of objectives and numbers")
        found |= _by_objective(fields["ratings"], "ratings", name)
    return (found,)


def _by_objective(value: Any, key: str, name: str) -> dict[str, float]:
    if not isinstance(value, dict):
        return {name: number(value, key, "a number, or an object of objectives and numbers")}
    found = {objective: number(one, f"{key} {objective}") for objective, one in value.items() if one is not None}
    if not found:
        raise LayoutError(f"{key!r} holds no number; expected at least one objective with its rating")
    return found


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise LayoutError(f"{key!r} is {kind(value)}; expected a list with one number per response")
    return value


def _more(count: int, than: int) -> str:
    return "more" if count > than else "fewer"

"""A parsed record of a data file, and the errors of one that cannot be parsed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

from rlhf_lightning.types import Feedback, Prompt

Fields: TypeAlias = dict[str, Any]


class LayoutError(Exception):
    """A record in no known layout; the message says what was expected."""


class BadPairError(LayoutError):
    """Well-formed feedback that cannot be used: a bad pair, ranking, rating or label.

    Args:
        reason: what is wrong, without details, so that dropped records can be counted by reason.
    """

    def __init__(self, reason: str, expected: str) -> None:
        super().__init__(f"{reason}; expected {expected}")
        self.reason = reason


_COMPARISON = ("demonstrations", "preferences", "rankings", "labels")


class Layout(Enum):
    """The layouts: the name of each in messages, and what a task with such records provides beside prompts.

    A rated or labelled response is not a demonstration.
    """

    PROMPT = ("prompt",)
    CHAT_PROMPT = ("messages ending with a user turn",)
    DEMONSTRATION = ("prompt/response", "demonstrations")
    CHAT_DEMONSTRATION = ("messages ending with an assistant turn", "demonstrations")
    ANSWERED_CHAT = ("messages/response", "demonstrations")
    PAIR = ("prompt/chosen/rejected", *_COMPARISON)
    CHAT_PAIR = ("chosen/rejected conversations", *_COMPARISON)
    TRANSCRIPT_PAIR = ("chosen/rejected transcripts", *_COMPARISON)
    RANKING = ("prompt/responses/ranking", *_COMPARISON)
    RATING = ("prompt/response/rating", "ratings")
    RATINGS = ("prompt/responses/ratings", "ratings")
    LABEL = ("prompt/completion/label", "labels")
    RATED_LABEL = ("prompt/response/rating/label", "ratings", "labels")

    def __init__(self, title: str, *provides: str) -> None:
        self.title = title
        self.provides = frozenset({"prompts", "groups", *provides})

    @property
    def is_comparison(self) -> bool:
        """Whether such a record orders responses by preference."""
        return "rankings" in self.provides

    @property
    def is_feedback(self) -> bool:
        """Whether such a record says how good responses are."""
        return not self.provides.isdisjoint({"rankings", "ratings", "labels"})


@dataclass(frozen=True)
class TextRecord:
    """One record, with its values checked.

    Args:
        responses: none, the one to imitate, or all that were judged, in a comparison best first.
        feedback: the judgement of the responses; of several rated responses, one rating for each.
    """

    layout: Layout
    prompt: Prompt
    responses: tuple[str, ...] = ()
    feedback: tuple[Feedback, ...] = ()

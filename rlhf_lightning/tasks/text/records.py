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


class Layout(Enum):
    """The layouts; each value is its name in messages."""

    PROMPT = "prompt"
    CHAT_PROMPT = "messages ending with a user turn"
    DEMONSTRATION = "prompt/response"
    CHAT_DEMONSTRATION = "messages ending with an assistant turn"
    PAIR = "prompt/chosen/rejected"
    CHAT_PAIR = "chosen/rejected conversations"
    TRANSCRIPT_PAIR = "chosen/rejected transcripts"
    RANKING = "prompt/responses/ranking"
    RATING = "prompt/response/rating"
    RATINGS = "prompt/responses/ratings"
    LABEL = "prompt/completion/label"

    @property
    def is_feedback(self) -> bool:
        """Whether such a record says how good responses are."""
        return self.is_comparison or self in (Layout.RATING, Layout.RATINGS, Layout.LABEL)

    @property
    def is_comparison(self) -> bool:
        """Whether such a record orders responses by preference."""
        return self in (Layout.PAIR, Layout.CHAT_PAIR, Layout.TRANSCRIPT_PAIR, Layout.RANKING)

    @property
    def provides(self) -> frozenset[str]:
        """What a task with such records provides; a rated or labelled response is not a demonstration."""
        provided = {"prompts", "groups"}
        if self in (Layout.DEMONSTRATION, Layout.CHAT_DEMONSTRATION):
            provided |= {"demonstrations"}
        elif self in (Layout.RATING, Layout.RATINGS):
            provided |= {"ratings"}
        elif self is Layout.LABEL:
            provided |= {"labels"}
        elif self.is_comparison:
            provided |= {"demonstrations", "preferences", "rankings", "labels"}
        return frozenset(provided)


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

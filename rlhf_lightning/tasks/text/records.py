"""A record of a data file once it is understood, and what can be wrong with one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

from rlhf_lightning.types import Prompt

Fields: TypeAlias = dict[str, Any]


class LayoutError(Exception):
    """A record that is not in a known layout; the message says what was expected."""


class BadPairError(LayoutError):
    """Well-formed feedback that nothing can be learned from: a bad pair, ranking or rated response.

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
    RANKING = "prompt/responses/ranking"
    RATING = "prompt/response/rating"
    RATINGS = "prompt/responses/ratings"

    @property
    def is_feedback(self) -> bool:
        """Whether such a record says how good responses are."""
        return self.is_comparison or self in (Layout.RATING, Layout.RATINGS)

    @property
    def is_comparison(self) -> bool:
        """Whether such a record puts responses in order."""
        return self in (Layout.PAIR, Layout.CHAT_PAIR, Layout.TRANSCRIPT_PAIR, Layout.RANKING)

    @property
    def provides(self) -> frozenset[str]:
        """What a task can offer from such records; a rated response is not one to imitate."""
        if self in (Layout.PROMPT, Layout.CHAT_PROMPT):
            return frozenset({"prompts", "groups"})
        if self in (Layout.DEMONSTRATION, Layout.CHAT_DEMONSTRATION):
            return frozenset({"prompts", "groups", "demonstrations"})
        if self in (Layout.RATING, Layout.RATINGS):
            return frozenset({"prompts", "groups", "ratings"})
        return frozenset({"prompts", "groups", "demonstrations", "preferences", "rankings"})


@dataclass(frozen=True)
class Record:
    """One record, understood.

    Args:
        responses: none, the one to imitate, those that were rated, or those that were compared, best first.
        objective: in which respect they were compared.
        ratings: of each of the responses, by objective.
    """

    layout: Layout
    prompt: Prompt
    responses: tuple[str, ...] = ()
    annotator: str | None = None
    margin: float | None = None
    objective: str | None = None
    ratings: tuple[dict[str, float], ...] = ()

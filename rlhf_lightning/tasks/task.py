"""What every task offers to the rest of the suite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from rlhf_lightning.errors import UserError
from rlhf_lightning.types import Demonstration, PreferencePair, Prompt, Ranking, Rating

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhf_lightning.rewards.source import RewardSource

Split: TypeAlias = Literal["train", "heldout"]

Probes: TypeAlias = dict[str, list[tuple[Prompt, str, str]]]
"""By respect, such as ``length``: a prompt, a response, and the response changed in that respect only."""


class Task:
    """Prompts, and whatever else the task has: demonstrations, preferences, a gold reward.

    A subclass names in ``provides`` what it has and overrides the matching methods; algorithms name in
    ``requires`` what they need, and a mismatch ends in one line before anything is built.
    """

    provides: ClassVar[frozenset[str]] = frozenset()

    def require(self, needed: frozenset[str], by: str) -> None:
        """Raise `UserError` unless the task provides everything in ``needed``."""
        missing = sorted(needed - self.provides)
        if missing:
            raise UserError(
                f"{by} needs {' and '.join(missing)}, which task {type(self).__name__} does not provide "
                f"(it provides {', '.join(sorted(self.provides)) or 'nothing'})"
            )

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Prompts to answer, in a fixed order."""
        self.require(frozenset({"prompts"}), "prompts()")
        raise NotImplementedError

    def demonstrations(self, split: Split) -> Sequence[Demonstration]:
        """Responses to imitate, in a fixed order."""
        self.require(frozenset({"demonstrations"}), "demonstrations()")
        raise NotImplementedError

    def preferences(self, split: Split) -> Sequence[PreferencePair]:
        """Preference pairs that the task itself comes with, in a fixed order."""
        self.require(frozenset({"preferences"}), "preferences()")
        raise NotImplementedError

    def rankings(self, split: Split) -> Sequence[Ranking]:
        """Rankings that the task itself comes with, in a fixed order."""
        self.require(frozenset({"rankings"}), "rankings()")
        raise NotImplementedError

    def ratings(self, split: Split) -> Sequence[Rating]:
        """Rated responses that the task itself comes with, in a fixed order."""
        self.require(frozenset({"ratings"}), "ratings()")
        raise NotImplementedError

    def panel(self, index: int, count: int) -> list[str]:
        """Who judges number ``index``: ``count`` annotators, all different; the first is who judges it alone."""
        self.require(frozenset({"annotators"}), "panel()")
        raise NotImplementedError

    def annotate(
        self,
        prompt: Prompt,
        first: str,
        second: str,
        index: int,
        *,
        objective: str | None = None,
        annotator: str | None = None,
    ) -> PreferencePair:
        """The judgement number ``index`` of two responses: the same each time.

        Args:
            objective: in which respect; None for all in all.
            annotator: who judges; None for the first of the `panel`.
        """
        self.require(frozenset({"annotators"}), "annotate()")
        raise NotImplementedError

    def rank(
        self,
        prompt: Prompt,
        responses: Sequence[str],
        index: int,
        *,
        objective: str | None = None,
        annotator: str | None = None,
    ) -> Ranking:
        """The judgement number ``index`` of several responses; see `annotate`."""
        self.require(frozenset({"annotators"}), "rank()")
        raise NotImplementedError

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of a model that is built from scratch for this task."""
        raise NotImplementedError

    def interface(self) -> Any:
        """What a network built for this task reads and writes: the tokenizer, or an environment's spaces."""
        return self.tokenizer()

    def gold(self) -> RewardSource | None:
        """The known true reward, where there is one."""
        return None

    def demonstration_entropy(self, demonstrations: Sequence[Demonstration]) -> float | None:
        """Exact entropy of the demonstrations given their prompts, in nats, where it is known."""
        return None

    def ceiling(self, train: Sequence[PreferencePair], heldout: Sequence[PreferencePair]) -> float | None:
        """Accuracy on the held-out pairs that a model which knows the true reward reaches, where that is known."""
        return None

    def probes(self, limit: int) -> Probes:
        """Responses to at most ``limit`` held-out prompts, changed in one respect only; none where there are none."""
        return {}

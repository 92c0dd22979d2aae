"""What every task offers to the rest of the suite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from rlhf_lightning.errors import UserError
from rlhf_lightning.types import Demonstration, PreferencePair, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhf_lightning.rewards.source import RewardSource

Split: TypeAlias = Literal["train", "heldout"]


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

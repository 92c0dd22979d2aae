"""What every task offers to the rest of the suite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, TypeVar

from rlhf_lightning.errors import UserError
from rlhf_lightning.records.constructed import Constructed
from rlhf_lightning.tasks.feedback import as_pairs
from rlhf_lightning.types import Demonstration, LabelledResponse, PreferencePair, Prompt, Ranking, Rating

if TYPE_CHECKING:
    from gymnasium.vector import SyncVectorEnv
    from transformers import PreTrainedTokenizerBase

    from rlhf_lightning.rewards.source import RewardSource

T = TypeVar("T")
Item = TypeVar("Item")

Split: TypeAlias = Literal["train", "heldout"]

Probes: TypeAlias = dict[str, list[tuple[Prompt, str, str]]]
"""By property, such as ``length``: a prompt, a response, and the response with only this property changed."""


class Task(Constructed):
    """Prompts or environments, and whatever else the task has: demonstrations, feedback, a gold reward.

    A subclass names in ``provides`` what it has and overrides the matching methods; algorithms name in
    ``requires`` what they need, and a mismatch ends in one line before anything is built.
    """

    provides: ClassVar[frozenset[str]] = frozenset()
    max_episode_steps: int
    """Time limit of an episode, for tasks that provide environments."""

    def require(self, needed: frozenset[str], by: str) -> None:
        """Raise `UserError` unless the task provides everything in ``needed``."""
        missing = sorted(needed - self.provides)
        if missing:
            raise UserError(
                f"{by} needs {' and '.join(missing)}, which task {type(self).__name__} does not provide "
                f"(it provides {', '.join(sorted(self.provides)) or 'nothing'})"
            )

    def _not_provided(self, name: str, method: str | None = None) -> Exception:
        """The error for a call of a method that the subclass does not override."""
        self.require(frozenset({name}), f"{method or name}()")
        return NotImplementedError(f"{type(self).__name__} provides {name} without overriding {method or name}()")

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Prompts to answer, in a fixed order."""
        raise self._not_provided("prompts")

    def demonstrations(self, split: Split) -> Sequence[Demonstration]:
        """Responses to imitate, in a fixed order."""
        raise self._not_provided("demonstrations")

    def preferences(self, split: Split) -> Sequence[PreferencePair]:
        """Preference pairs that the task itself comes with, in a fixed order."""
        raise self._not_provided("preferences")

    def rankings(self, split: Split) -> Sequence[Ranking]:
        """Rankings that the task itself comes with, in a fixed order."""
        raise self._not_provided("rankings")

    def ratings(self, split: Split) -> Sequence[Rating]:
        """Rated responses that the task itself comes with, in a fixed order."""
        raise self._not_provided("ratings")

    def labels(self, split: Split) -> Sequence[LabelledResponse]:
        """Desirable and undesirable responses that the task itself comes with, in a fixed order."""
        raise self._not_provided("labels")

    def environments(self, count: int) -> SyncVectorEnv:
        """Copies of the environment that are stepped together and do not reset themselves."""
        raise self._not_provided("environments")

    def panel(self, index: int, count: int) -> list[str]:
        """The ``count`` different annotators for comparison ``index``; the first one judges if only one is needed."""
        raise self._not_provided("annotators", "panel")

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
        """Compare two responses: `rank` of the two.

        Args:
            index: number of the comparison; the same number and arguments always give the same judgement.
            objective: in which respect; None for an overall judgement.
            annotator: who judges; None for the first of the `panel`.
        """
        self.require(frozenset({"annotators"}), "annotate()")
        (pair,) = as_pairs(self.rank(prompt, (first, second), index, objective=objective, annotator=annotator))
        return pair

    def rank(
        self,
        prompt: Prompt,
        responses: Sequence[str],
        index: int,
        *,
        objective: str | None = None,
        annotator: str | None = None,
    ) -> Ranking:
        """Rank several responses; the arguments are those of `annotate`."""
        raise self._not_provided("annotators", "rank")

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of a model that is built from scratch for this task."""
        raise NotImplementedError

    def interface(self) -> Any:
        """What a network for this task reads and writes: the tokenizer, or an environment's spaces."""
        return self.tokenizer()

    def gold(self) -> RewardSource | None:
        """The known true reward, where there is one."""
        return None

    def demonstration_entropy(self, demonstrations: Sequence[Demonstration]) -> float | None:
        """Exact entropy of the demonstrations given their prompts, in nats, where it is known."""
        return None

    def ceiling(self, train: Sequence[PreferencePair], heldout: Sequence[PreferencePair]) -> float | None:
        """Accuracy on the held-out pairs of a model that knows the true reward, where this accuracy is known."""
        return None

    def probes(self, limit: int) -> Probes:
        """Responses to at most ``limit`` held-out prompts, each with one property changed; empty if there are none."""
        return {}


def once_per_split(method: Callable[[T, Split], Sequence[Item]]) -> Callable[[T, Split], Sequence[Item]]:
    """A method that generates the items of a split; they are generated once, and kept in the object."""

    @wraps(method)
    def kept(self: T, split: Split) -> Sequence[Item]:
        results = self.__dict__.setdefault(f"_kept_{method.__name__}", {})
        if split not in results:
            results[split] = method(self, split)
        return results[split]

    return kept


def is_heldout(split: str, task: str) -> bool:
    """Whether the split is the held-out one; `UserError`, which names the task, where there is no such split."""
    if split not in ("train", "heldout"):
        raise UserError(f"the splits of the {task} task are 'train' and 'heldout', got {split!r}")
    return split == "heldout"


def as_prompt(text: str) -> Prompt:
    """The conversation in which the user says ``text``."""
    return [{"role": "user", "content": text}]


def last_user_message(prompt: Prompt, reader: str) -> str:
    """The last user message, or the text of a prompt that is not a conversation.

    Args:
        reader: who reads it, for the message, such as "the arithmetic task verifies".

    Raises:
        UserError: no message is from the user.
    """
    if isinstance(prompt, str):
        return prompt
    for message in reversed(prompt):
        if message.get("role") == "user":
            return str(message.get("content"))
    raise UserError(f"the prompt {prompt!r} has no user message; {reader} by the last one")

"""The embedded default task: a shop's assistant, with a true reward and simulated annotators."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.assistant.annotators import Annotators
from rlhf_lightning.tasks.assistant.ceiling import component_ceiling
from rlhf_lightning.tasks.assistant.demonstrations import Demonstrator
from rlhf_lightning.tasks.assistant.gold import GoldReward, check_weights
from rlhf_lightning.tasks.assistant.judge import Judge
from rlhf_lightning.tasks.assistant.probes import assistant_probes
from rlhf_lightning.tasks.assistant.prompts import PromptBook
from rlhf_lightning.tasks.assistant.tokenizer import build_tokenizer
from rlhf_lightning.tasks.assistant.world import World
from rlhf_lightning.tasks.task import Probes, Split, Task
from rlhf_lightning.types import Demonstration, PreferencePair, Prompt, Ranking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HELDOUT_DEMONSTRATIONS = 1024


class Assistant(Task):
    """A shop's assistant answers questions about products and refuses hazardous ones.

    Everything is generated, nothing is downloaded, and the same arguments give the same task in every
    process. Nothing is built before it is asked for.

    Args:
        entities: number of products, 16 to 24.
        demonstrations: number of training demonstrations.
        annotators: number of simulated annotators.
        seed: the facts, the held-out combinations, the demonstrations, the annotators and their choices.
        gold_weights: weights of gold components that differ from 1.
    """

    provides: ClassVar[frozenset[str]] = frozenset(
        {"prompts", "demonstrations", "gold", "reference", "groups", "annotators"}
    )

    def __init__(
        self,
        entities: int = 20,
        demonstrations: int = 20000,
        annotators: int = 5,
        seed: int = 0,
        gold_weights: Mapping[str, float] | None = None,
    ) -> None:
        if demonstrations < 1:
            raise UserError(f"the assistant task needs at least one demonstration, got {demonstrations}")
        if annotators < 1:
            raise UserError(f"the assistant task needs at least one annotator, got {annotators}")
        self.seed = seed
        self.world = World(entities, seed)
        self.book = PromptBook(self.world, seed)
        self.demonstrator = Demonstrator(self.world)
        self._gold_weights = check_weights(gold_weights)
        self._demonstration_count = demonstrations
        self._annotator_count = annotators

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Prompts in a fixed order, a fifth of them hazards; 256 of them are held out."""
        return self.book.heldout if _is_heldout(split) else self.book.train

    def demonstrations(self, split: Split) -> Sequence[Demonstration]:
        """Imperfect responses to the prompts of the split, in a fixed order."""
        return self._heldout_demonstrations if _is_heldout(split) else self._train_demonstrations

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The word-level tokenizer of the task's vocabulary."""
        return build_tokenizer(self.world)

    def gold(self) -> GoldReward:
        """The true reward."""
        return GoldReward(self.book, self._judge, self._gold_weights)

    def demonstration_entropy(self, demonstrations: Sequence[Demonstration]) -> float:
        """Exact entropy of the responses given the demonstrations' prompts, summed over them, in nats."""
        return math.fsum(self.demonstrator.entropy(self.book.parse(d.prompt)) for d in demonstrations)

    def demonstration_log_probability(self, prompt: Prompt, response: str) -> float:
        """Exact log-probability of a response in nats; −∞ where no demonstration is like it."""
        return self.demonstrator.log_probability(self.book.parse(prompt), response)

    @cached_property
    def annotators(self) -> Annotators:
        """The people who compare responses."""
        return Annotators(self.book, self._judge, self.seed, self._annotator_count)

    def panel(self, index: int, count: int) -> list[str]:
        """The annotators who judge number ``index``; the first is who judges it alone."""
        return self.annotators.panel(index, count)

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
        """The judgement number ``index`` of two responses, which is `rank` of the two."""
        ranking = self.rank(prompt, (first, second), index, objective=objective, annotator=annotator)
        return PreferencePair(prompt, *ranking.responses, annotator=ranking.annotator, objective=objective)

    def rank(
        self,
        prompt: Prompt,
        responses: Sequence[str],
        index: int,
        *,
        objective: str | None = None,
        annotator: str | None = None,
    ) -> Ranking:
        """The judgement number ``index`` of several responses: the same each time.

        Args:
            objective: one of the gold components, in respect of which they are judged.
            annotator: who judges; None for the first of the `panel`.
        """
        order, judge = self.annotators.rank(prompt, responses, index, objective, annotator)
        return Ranking(prompt, tuple(responses[number] for number in order), judge, objective)

    def ceiling(self, train: Sequence[PreferencePair], heldout: Sequence[PreferencePair]) -> float:
        """Accuracy on the held-out pairs of a Bradley–Terry model fitted on the gold components."""
        return component_ceiling(self.book, self._judge, train, heldout)

    def probes(self, limit: int) -> Probes:
        """Demonstrations of the held-out prompts, longer or more polite with all else alike."""
        return assistant_probes(self.book, self.demonstrator, self.book.heldout[:limit], self.seed)

    @cached_property
    def _judge(self) -> Judge:
        return Judge(self.world)

    @cached_property
    def _train_demonstrations(self) -> Sequence[Demonstration]:
        rng = random.Random(f"assistant/demonstrations/train/{self.seed}")
        return tuple(self._demonstrate(rng.choice(self.book.train), rng) for _ in range(self._demonstration_count))

    @cached_property
    def _heldout_demonstrations(self) -> Sequence[Demonstration]:
        rng = random.Random(f"assistant/demonstrations/heldout/{self.seed}")
        prompts = self.book.heldout
        return tuple(self._demonstrate(prompts[i % len(prompts)], rng) for i in range(HELDOUT_DEMONSTRATIONS))

    def _demonstrate(self, prompt: Prompt, rng: random.Random) -> Demonstration:
        return Demonstration(prompt, self.demonstrator.sample(self.book.parse(prompt), rng))


def _is_heldout(split: str) -> bool:
    if split not in ("train", "heldout"):
        raise UserError(f"the splits of the assistant task are 'train' and 'heldout', got {split!r}")
    return split == "heldout"

"""The embedded default task: a shop's assistant, with a true reward and simulated annotators."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain, cycle, islice
from typing import TYPE_CHECKING, ClassVar

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.assistant.annotators import AnnotatorPool
from rlhf_lightning.tasks.assistant.ceiling import component_ceiling
from rlhf_lightning.tasks.assistant.demonstrations import Demonstrator, possible_bigrams
from rlhf_lightning.tasks.assistant.gold import GoldReward, check_weights
from rlhf_lightning.tasks.assistant.probes import assistant_probes
from rlhf_lightning.tasks.assistant.prompts import PromptBook
from rlhf_lightning.tasks.assistant.world import World
from rlhf_lightning.tasks.feedback import as_labels
from rlhf_lightning.tasks.task import Probes, Split, Task, once_per_split
from rlhf_lightning.tasks.word_tokenizer import build_word_tokenizer
from rlhf_lightning.types import Demonstration, LabelledResponse, PreferencePair, Prompt, Ranking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HELDOUT_DEMONSTRATIONS = 1024


class Assistant(Task):
    """A shop's assistant answers questions about products and refuses hazardous ones.

    Everything is generated when it is first needed, nothing is downloaded, and the same arguments give the same task in
    every process.

    Args:
        entities: number of products, 16 to 24.
        demonstrations: number of training demonstrations.
        annotators: number of simulated annotators.
        seed: decides the facts, the held-out prompts, the demonstrations, the annotators and their choices.
        gold_weights: weights of gold components that differ from 1.
    """

    provides: ClassVar[frozenset[str]] = frozenset(
        {"prompts", "demonstrations", "labels", "gold", "reference", "groups", "annotators"}
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
        return self.book.prompts(split)

    @once_per_split
    def demonstrations(self, split: Split) -> Sequence[Demonstration]:
        """Imperfect responses to the prompts of the split, in a fixed order."""
        prompts, rng = self.prompts(split), random.Random(f"assistant/demonstrations/{split}/{self.seed}")
        if split == "train":
            return tuple(self._demonstrate(rng.choice(prompts), rng) for _ in range(self._demonstration_count))
        return tuple(self._demonstrate(prompt, rng) for prompt in islice(cycle(prompts), HELDOUT_DEMONSTRATIONS))

    def labels(self, split: Split) -> Sequence[LabelledResponse]:
        """Two labels of most demonstrations' prompts, in a fixed order, as an annotator's choice between two responses.

        Each demonstration is compared with another response to its prompt, drawn from the same distribution. The
        response that the annotator prefers is desirable, the other one is undesirable: a response is good if it is
        better than what is usually said to this prompt. Prompts for which both responses are the same have no label.
        """
        demonstrations = self.demonstrations(split)
        rng = random.Random(f"assistant/labels/{split}/{self.seed}")
        others = [self._demonstrate(demonstration.prompt, rng).response for demonstration in demonstrations]
        first_index = self._demonstration_count if split == "heldout" else 0
        return tuple(
            label
            for index, (demonstration, other) in enumerate(zip(demonstrations, others, strict=True), first_index)
            if demonstration.response != other
            for label in as_labels(self.annotate(demonstration.prompt, demonstration.response, other, index))
        )

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """A word-level tokenizer: one token for every word of every prompt and every response."""
        words = {*chain(*possible_bigrams(self.world)), *" ".join(self.book.queries).split()}
        return build_word_tokenizer(sorted(words))

    def gold(self) -> GoldReward:
        """The true reward."""
        return self._gold

    @cached_property
    def _gold(self) -> GoldReward:
        return GoldReward(self.book, self._gold_weights)

    def demonstration_entropy(self, demonstrations: Sequence[Demonstration]) -> float:
        """Exact entropy of the responses given the demonstrations' prompts, summed over them, in nats."""
        return math.fsum(self.demonstrator.entropy(self.book.parse(d.prompt)) for d in demonstrations)

    @cached_property
    def annotators(self) -> AnnotatorPool:
        """The simulated people who compare responses."""
        return AnnotatorPool(self._gold, self.seed, self._annotator_count)

    def panel(self, index: int, count: int) -> list[str]:
        """The ``count`` different annotators for comparison ``index``; the first one judges if only one is needed."""
        return self.annotators.panel(index, count)

    def rank(
        self,
        prompt: Prompt,
        responses: Sequence[str],
        index: int,
        *,
        objective: str | None = None,
        annotator: str | None = None,
    ) -> Ranking:
        """Rank several responses; the arguments are those of `AnnotatorPool.rank`."""
        order, judge = self.annotators.rank(prompt, responses, index, objective, annotator)
        return Ranking(prompt, tuple(responses[number] for number in order), judge, objective)

    def ceiling(self, train: Sequence[PreferencePair], heldout: Sequence[PreferencePair]) -> float:
        """Held-out accuracy of a Bradley–Terry model of the gold components, fitted to the training pairs."""
        return component_ceiling(self._gold, train, heldout)

    def probes(self, limit: int) -> Probes:
        """Responses to the held-out prompts, each made longer or more polite and otherwise left unchanged."""
        return assistant_probes(self.book, self.demonstrator, self.prompts("heldout")[:limit], self.seed)

    def _demonstrate(self, prompt: Prompt, rng: random.Random) -> Demonstration:
        return Demonstration(prompt, self.demonstrator.sample(self.book.parse(prompt), rng))

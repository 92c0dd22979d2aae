"""Simulated people who compare two responses: noisy, of different opinions, and biased.

An annotator's utility is her own weighting of the gold components plus a liking for length and for politeness
words, which gold does not have. She prefers the first of two responses with probability
λ/2 + (1 − λ) σ((u₁ − u₂)/τ): Bradley–Terry with temperature τ, and a coin flip at the lapse rate λ.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.assistant.judge import COMPONENTS, Judge, polite_count
from rlhf_lightning.tasks.assistant.prompts import PromptBook
from rlhf_lightning.tasks.assistant.world import words_of
from rlhf_lightning.types import Prompt

WEIGHT_SPREAD = 0.3
"""Standard deviation of the logarithm of an annotator's weights."""
TEMPERATURE = (0.15, 0.30)
LAPSE_RATE = (0.03, 0.13)
LENGTH_BIAS = (0.01, 0.03)
"""Utility of every word."""
POLITE_BIAS = (0.0, 0.06)
"""Utility of every politeness word."""


@dataclass(frozen=True)
class Annotator:
    """One person's taste and care; `weights` are in the order of the gold components."""

    name: str
    weights: tuple[float, ...]
    temperature: float
    lapse_rate: float
    length_bias: float
    polite_bias: float


class Annotators:
    """A pool of annotators, one of whom judges each pair.

    Args:
        book: reads the prompts.
        judge: computes the gold components.
        seed: who the annotators are, and every choice they make.
        count: how many there are.
    """

    def __init__(self, book: PromptBook, judge: Judge, seed: int = 0, count: int = 5) -> None:
        if count < 1:
            raise UserError(f"the assistant task needs at least one annotator, got {count}")
        self.book = book
        self.judge = judge
        self.seed = seed
        self.people = {person.name: person for person in (_draw(seed, i) for i in range(count))}
        self.names = tuple(self.people)

    def utility(self, annotator: str, prompt: Prompt, response: str) -> float:
        """How much an annotator likes a response."""
        person = self.people[annotator]
        words = words_of(response)
        components = self.judge.components(self.book.parse(prompt), response)
        taste = math.fsum(w * c for w, c in zip(person.weights, components, strict=True))
        return taste + person.length_bias * len(words) + person.polite_bias * polite_count(words)

    def choice_probability(self, annotator: str, prompt: Prompt, first: str, second: str) -> float:
        """Probability with which an annotator prefers the first response to the second."""
        person = self.people[annotator]
        gap = self.utility(annotator, prompt, first) - self.utility(annotator, prompt, second)
        certain = 0.5 * (1 + math.tanh(gap / person.temperature / 2))
        return person.lapse_rate / 2 + (1 - person.lapse_rate) * certain

    def prefer(self, prompt: Prompt, first: str, second: str, index: int) -> tuple[int, str]:
        """Who judges pair number ``index``, and whether she prefers the first (0) or the second (1)."""
        rng = random.Random(f"assistant/choice/{self.seed}/{index}")
        annotator = rng.choice(self.names)
        return int(rng.random() >= self.choice_probability(annotator, prompt, first, second)), annotator


def _draw(seed: int, number: int) -> Annotator:
    rng = random.Random(f"assistant/annotator/{seed}/{number}")
    return Annotator(
        name=f"annotator_{number}",
        weights=tuple(rng.lognormvariate(0.0, WEIGHT_SPREAD) for _ in COMPONENTS),
        temperature=rng.uniform(*TEMPERATURE),
        lapse_rate=rng.uniform(*LAPSE_RATE),
        length_bias=rng.uniform(*LENGTH_BIAS),
        polite_bias=rng.uniform(*POLITE_BIAS),
    )

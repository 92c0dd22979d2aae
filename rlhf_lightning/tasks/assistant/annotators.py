"""Simulated people who compare responses: noisy, of different opinions, and biased.

An annotator's utility is her own weighting of the gold components plus a liking for length and for politeness
words, which gold does not have. Asked about one objective, she looks at that component alone, with her weight; only
for helpfulness does she take length and politeness too, and equal components leave the choice to chance.

She ranks by choosing the best of what is left, again and again, with probability λ/K + (1 − λ) softmax(u/τ) for K
responses: Plackett–Luce with temperature τ, and any response at all at the lapse rate λ (Plackett 1975, "The Analysis
of Permutations"; Luce 1959). For two responses it is λ/2 + (1 − λ) σ((u₁ − u₂)/τ), Bradley and Terry 1952.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

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
    """A pool of annotators; what is judged has a number, on which who judges it and how she errs depend.

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

    def utility(self, annotator: str, prompt: Prompt, response: str, objective: str | None = None) -> float:
        """How much an annotator likes a response, in one respect or all in all."""
        person = self.people[annotator]
        words = words_of(response)
        components = self.judge.components(self.book.parse(prompt), response)
        liked = zip(COMPONENTS, person.weights, components, strict=True)
        taste = math.fsum(weight * component for name, weight, component in liked if objective in (None, name))
        if objective not in (None, "helpful"):
            return taste
        return taste + person.length_bias * len(words) + person.polite_bias * polite_count(words)

    def choice_probability(
        self, annotator: str, prompt: Prompt, first: str, second: str, objective: str | None = None
    ) -> float:
        """Probability with which an annotator prefers the first response to the second."""
        utilities = [self.utility(annotator, prompt, text, objective) for text in (first, second)]
        return self._choice_probabilities(annotator, utilities)[0]

    def panel(self, index: int, count: int) -> list[str]:
        """Who judges number ``index``: ``count`` of the annotators, all different.

        Raises:
            UserError: there are not that many.
        """
        if count > len(self.names):
            raise UserError(
                f"{count} annotations need as many annotators, but there are {len(self.names)} "
                "(task.init_args.annotators)"
            )
        rng = random.Random(f"assistant/choice/{self.seed}/{index}")
        first = rng.choice(self.names)
        return [first, *rng.sample([name for name in self.names if name != first], count - 1)]

    def rank(
        self,
        prompt: Prompt,
        responses: Sequence[str],
        index: int,
        objective: str | None = None,
        annotator: str | None = None,
    ) -> tuple[list[int], str]:
        """The responses' numbers, best first, and who judged number ``index``.

        Args:
            objective: in which respect she judges, one of the gold components; None for all in all.
            annotator: who judges; None for the first of the panel.

        Raises:
            UserError: there is no such objective or annotator.
        """
        self._check_known(objective, annotator)
        rng = random.Random(f"assistant/choice/{self.seed}/{index}")
        first = rng.choice(self.names)
        judge = annotator or first
        if objective is not None or judge != first:  # the same person errs anew at each question
            rng = random.Random(f"assistant/choice/{self.seed}/{index}/{judge}/{objective}")
        utilities = [self.utility(judge, prompt, response, objective) for response in responses]
        order, left = [], list(range(len(responses)))
        while len(left) > 1:
            probabilities = self._choice_probabilities(judge, [utilities[number] for number in left])
            order.append(left.pop(_drawn(probabilities, rng.random())))
        return order + left, judge

    def _choice_probabilities(self, annotator: str, utilities: Sequence[float]) -> list[float]:
        """Of each response to be chosen as the best."""
        person = self.people[annotator]
        best = max(utilities)
        odds = [math.exp((utility - best) / person.temperature) for utility in utilities]
        total = math.fsum(odds)
        return [person.lapse_rate / len(odds) + (1 - person.lapse_rate) * one / total for one in odds]

    def _check_known(self, objective: str | None, annotator: str | None) -> None:
        for what, name, known in (("objective", objective, COMPONENTS), ("annotator", annotator, self.names)):
            if name is not None and name not in known:
                raise UserError(f"the assistant task has no {what} {name!r}; expected one of {', '.join(known)}")


def _drawn(probabilities: Sequence[float], uniform: float) -> int:
    """The first number whose cumulative probability exceeds a draw from [0, 1)."""
    for number, total in enumerate(accumulate(probabilities)):
        if uniform < total:
            return number
    return len(probabilities) - 1  # the probabilities may add up to a little less than 1


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

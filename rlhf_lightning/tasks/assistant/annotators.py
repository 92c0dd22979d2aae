"""Simulated annotators who compare responses: they make mistakes, disagree with each other and are biased.

An annotator's utility is an individual weighting of the gold components plus a preference for length and for politeness
words, which the gold reward does not have. Asked about one objective, an annotator uses that component alone, with the
individual weight; length and politeness count only for helpfulness. Equal utilities leave the choice to chance.

A ranking repeatedly chooses the best of the K responses that are left, with probability λ/K + (1 − λ) softmax(u/τ):
Plackett–Luce with temperature τ, and a uniformly random choice at the lapse rate λ (Plackett 1975, "The Analysis of
Permutations"; Luce 1959). For two responses this is λ/2 + (1 − λ) σ((u₁ − u₂)/τ), Bradley and Terry 1952.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.assistant.gold import COMPONENTS, GoldReward, polite_count
from rlhf_lightning.tasks.assistant.world import words_of
from rlhf_lightning.types import Prompt

WEIGHT_SPREAD = 0.3
"""Standard deviation of the logarithm of an annotator's weights."""
TEMPERATURE = (0.15, 0.30)
"""Range that τ is drawn from."""
LAPSE_RATE = (0.03, 0.13)
"""Range that λ is drawn from."""
LENGTH_BIAS = (0.01, 0.03)
"""Range of the utility of each word."""
POLITE_BIAS = (0.0, 0.06)
"""Range of the utility of each politeness word."""


@dataclass(frozen=True)
class Annotator:
    """Preferences and reliability of one annotator; ``weights`` are in the order of the gold components."""

    name: str
    weights: tuple[float, ...]
    temperature: float
    lapse_rate: float
    length_bias: float
    polite_bias: float


class AnnotatorPool:
    """A pool of annotators. The number of a comparison decides who judges it, and the judge's random mistakes.

    Args:
        gold: computes the gold components.
        seed: decides the annotators and all their choices.
        count: number of annotators.
    """

    def __init__(self, gold: GoldReward, seed: int = 0, count: int = 5) -> None:
        self.gold = gold
        self.seed = seed
        self.by_name = {annotator.name: annotator for annotator in (_draw(seed, i) for i in range(count))}
        self.names = tuple(self.by_name)

    def utility(self, annotator: str, prompt: Prompt, response: str, objective: str | None = None) -> float:
        """How much an annotator likes a response, in one objective or overall."""
        person = self.by_name[annotator]
        words = words_of(response)
        weighted = zip(COMPONENTS, person.weights, self.gold.components(prompt, response), strict=True)
        utility = math.fsum(weight * component for name, weight, component in weighted if objective in (None, name))
        if objective not in (None, "helpful"):
            return utility
        return utility + person.length_bias * len(words) + person.polite_bias * polite_count(words)

    def panel(self, index: int, count: int) -> list[str]:
        """The ``count`` different annotators for comparison ``index``.

        Raises:
            UserError: there are fewer annotators than that.
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
        """The indices of the responses, best first, and who judged.

        Args:
            index: number of the comparison.
            objective: the gold component that is judged; None for an overall judgement.
            annotator: who judges; None for the first of the panel.

        Raises:
            UserError: there is no such objective or annotator.
        """
        for argument, name, known in (("objective", objective, COMPONENTS), ("annotator", annotator, self.names)):
            if name is not None and name not in known:
                raise UserError(f"the assistant task has no {argument} {name!r}; expected one of {', '.join(known)}")
        rng = random.Random(f"assistant/choice/{self.seed}/{index}")
        first = rng.choice(self.names)
        judge = annotator or first
        if objective is not None or judge != first:  # a new question, so new mistakes
            rng = random.Random(f"assistant/choice/{self.seed}/{index}/{judge}/{objective}")
        utilities = [self.utility(judge, prompt, response, objective) for response in responses]
        order, remaining = [], list(range(len(responses)))
        while len(remaining) > 1:
            probabilities = self.choice_probabilities(judge, [utilities[number] for number in remaining])
            (best,) = rng.choices(remaining, probabilities)
            remaining.remove(best)
            order.append(best)
        return order + remaining, judge

    def choice_probabilities(self, annotator: str, utilities: Sequence[float]) -> list[float]:
        """The probability of each response to be chosen as the best, from the annotator's utilities."""
        person = self.by_name[annotator]
        best = max(utilities)
        odds = [math.exp((utility - best) / person.temperature) for utility in utilities]
        total = math.fsum(odds)
        return [person.lapse_rate / len(odds) + (1 - person.lapse_rate) * value / total for value in odds]


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

"""A finite probabilistic grammar: texts drawn by independent choices, with exact entropy and bigrams.

A `Node` is a fixed text, a sequence of nodes, or a weighted choice between nodes.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property, reduce
from itertools import accumulate, pairwise, product
from typing import TypeAlias

Words: TypeAlias = tuple[str, ...]
Neighbours: TypeAlias = frozenset[tuple[str | None, str | None]]
"""Pairs of words that can follow each other; None stands for the beginning and for the end of the text."""


def joined(first: Neighbours, second: Neighbours) -> Neighbours:
    """The neighbours in one text followed by another."""
    last = {left for left, right in first if right is None}
    following = {right for left, right in second if left is None}
    within_first = frozenset(pair for pair in first if pair[1] is not None)
    within_second = frozenset(pair for pair in second if pair[0] is not None)
    return within_first | within_second | frozenset(product(last, following))


class Node(ABC):
    """A random text."""

    def sample(self, rng: random.Random) -> Words:
        """Draw a text."""
        words: list[str] = []
        self.write(words, rng)
        return tuple(words)

    @abstractmethod
    def write(self, words: list[str], rng: random.Random) -> None:
        """Draw a text, and append its words."""

    @property
    @abstractmethod
    def entropy(self) -> float:
        """Entropy of the derivation in nats; that of the text where no text has two derivations."""

    @property
    @abstractmethod
    def neighbours(self) -> Neighbours:
        """All words that can follow each other, begin the text or end it."""

    @property
    def bigrams(self) -> frozenset[tuple[str, str]]:
        """All pairs of words that can follow each other."""
        return frozenset((left, right) for left, right in self.neighbours if left is not None and right is not None)


class Text(Node):
    """Always the same words, separated by single spaces."""

    def __init__(self, text: str) -> None:
        self.words = tuple(text.split())

    def write(self, words: list[str], rng: random.Random) -> None:
        """Append the words."""
        words += self.words

    entropy = 0.0

    @cached_property
    def neighbours(self) -> Neighbours:
        """The words themselves."""
        return frozenset(pairwise((None, *self.words, None)))


class Chain(Node):
    """A sequence of texts that are drawn independently."""

    def __init__(self, *parts: Node) -> None:
        self.parts = parts

    def write(self, words: list[str], rng: random.Random) -> None:
        """Draw each part."""
        for part in self.parts:
            part.write(words, rng)

    @cached_property
    def entropy(self) -> float:
        """The sum over the parts."""
        return math.fsum(part.entropy for part in self.parts)

    @cached_property
    def neighbours(self) -> Neighbours:
        """Those in the parts, and those where the parts meet."""
        return reduce(joined, (part.neighbours for part in self.parts))


class Choice(Node):
    """One of several texts.

    Args:
        options: the texts.
        weights: their weights, normalized here.
    """

    def __init__(self, options: Sequence[Node], weights: Sequence[float]) -> None:
        total = math.fsum(weights)
        self.options = tuple(options)
        self.weights = tuple(weight / total for weight in weights)
        self._cumulative = tuple(accumulate(self.weights))

    @classmethod
    def of(cls, weighted: Mapping[str, float]) -> Choice:
        """A choice between fixed texts."""
        return cls([Text(text) for text in weighted], list(weighted.values()))

    @classmethod
    def uniform(cls, options: Sequence[Node]) -> Choice:
        """A choice between equally likely texts."""
        return cls(options, [1.0] * len(options))

    def write(self, words: list[str], rng: random.Random) -> None:
        """Draw an option, and from it."""
        (chosen,) = rng.choices(self.options, cum_weights=self._cumulative)
        chosen.write(words, rng)

    @cached_property
    def entropy(self) -> float:
        """The entropy of the choice plus the mean entropy of the options."""
        return math.fsum(
            weight * (option.entropy - math.log(weight))
            for option, weight in zip(self.options, self.weights, strict=True)
            if weight > 0
        )

    @cached_property
    def neighbours(self) -> Neighbours:
        """Those in any option."""
        return frozenset().union(*(option.neighbours for option in self.options))

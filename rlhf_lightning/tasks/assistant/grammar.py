"""A finite probabilistic grammar: texts drawn by independent choices, with exact entropy and bigrams.

A `Node` is a fixed text, a sequence of nodes, or a weighted choice between nodes.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property, reduce
from itertools import pairwise, product
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

    @abstractmethod
    def sample(self, rng: random.Random) -> Words:
        """Draw a text."""

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

    def sample(self, rng: random.Random) -> Words:
        """The words."""
        return self.words

    entropy = 0.0

    @cached_property
    def neighbours(self) -> Neighbours:
        """The words themselves."""
        return frozenset(pairwise((None, *self.words, None)))


class Chain(Node):
    """A sequence of texts that are drawn independently."""

    def __init__(self, *parts: Node) -> None:
        self.parts = parts

    def sample(self, rng: random.Random) -> Words:
        """A sample of each part, joined."""
        return tuple(word for part in self.parts for word in part.sample(rng))

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

    @classmethod
    def of(cls, weighted: Mapping[str, float]) -> Choice:
        """A choice between fixed texts."""
        return cls([Text(text) for text in weighted], list(weighted.values()))

    @classmethod
    def uniform(cls, options: Sequence[Node]) -> Choice:
        """A choice between equally likely texts."""
        return cls(options, [1.0] * len(options))

    def sample(self, rng: random.Random) -> Words:
        """A sample of one option."""
        (chosen,) = rng.choices(self.options, self.weights)
        return chosen.sample(rng)

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

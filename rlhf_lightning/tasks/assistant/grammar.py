"""A finite probabilistic grammar: texts drawn by independent choices, with exact entropy and bigrams.

A `Node` is a fixed text, a sequence of nodes, or a weighted choice between nodes.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import accumulate, pairwise, product

Words = tuple[str, ...]


@dataclass(frozen=True)
class Edges:
    """The possible first and last words and pairs of neighbours of a text, and whether it can be empty."""

    first: frozenset[str]
    last: frozenset[str]
    bigrams: frozenset[tuple[str, str]]
    empty: bool

    def then(self, other: Edges) -> Edges:
        """The edges of one text followed by another."""
        return Edges(
            first=self.first | (other.first if self.empty else frozenset()),
            last=other.last | (self.last if other.empty else frozenset()),
            bigrams=self.bigrams | other.bigrams | frozenset(product(self.last, other.first)),
            empty=self.empty and other.empty,
        )

    @staticmethod
    def either(edges: Sequence[Edges]) -> Edges:
        """The edges of one of several texts."""
        return Edges(
            first=frozenset().union(*(e.first for e in edges)),
            last=frozenset().union(*(e.last for e in edges)),
            bigrams=frozenset().union(*(e.bigrams for e in edges)),
            empty=any(e.empty for e in edges),
        )


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
    def edges(self) -> Edges:
        """The possible first and last words and pairs of neighbours."""


class Text(Node):
    """Always the same words, separated by single spaces."""

    def __init__(self, text: str) -> None:
        self.words = tuple(text.split())

    def sample(self, rng: random.Random) -> Words:
        """The words."""
        return self.words

    @property
    def entropy(self) -> float:
        """0: nothing is random."""
        return 0.0

    @cached_property
    def edges(self) -> Edges:
        """The edges of the words themselves."""
        pairs = pairwise(self.words)
        return Edges(frozenset(self.words[:1]), frozenset(self.words[-1:]), frozenset(pairs), not self.words)


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
    def edges(self) -> Edges:
        """The edges of the parts, and the pairs of words where they meet."""
        return reduce(Edges.then, (part.edges for part in self.parts))


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

    def sample(self, rng: random.Random) -> Words:
        """A sample of one option."""
        chosen = bisect(self._cumulative, rng.random(), 0, len(self.options) - 1)
        return self.options[chosen].sample(rng)

    @cached_property
    def entropy(self) -> float:
        """The entropy of the choice plus the mean entropy of the options."""
        return math.fsum(
            weight * (option.entropy - math.log(weight))
            for option, weight in zip(self.options, self.weights, strict=True)
            if weight > 0
        )

    @cached_property
    def edges(self) -> Edges:
        """The edges of all options."""
        return Edges.either([option.edges for option in self.options])

"""Exact probabilities of the texts of a grammar, an oracle for its samples, its entropy and its bigrams."""

import math
from itertools import product

from rlhf_lightning.tasks.assistant.grammar import Choice, Text


def texts_of(node):
    """Every derivation of a text with its probability."""
    if isinstance(node, Text):
        return [(node.words, 1.0)]
    if isinstance(node, Choice):
        options = zip(node.options, node.weights, strict=True)
        return [(words, weight * p) for option, weight in options for words, p in texts_of(option)]
    return [
        (tuple(word for words, _ in parts for word in words), math.prod(p for _, p in parts))
        for parts in product(*map(texts_of, node.parts))
    ]


def ends_of(node, words, start):
    """Probability of the words from ``start`` up to each position where a text of the node can end."""
    if isinstance(node, Text):
        end = start + len(node.words)
        return {end: 1.0} if words[start:end] == node.words else {}
    if isinstance(node, Choice):
        options = zip(node.options, node.weights, strict=True)
        return added(
            (end, weight * p) for option, weight in options for end, p in ends_of(option, words, start).items()
        )
    reached = {start: 1.0}
    for part in node.parts:
        reached = added(
            (end, weight * p)
            for position, weight in reached.items()
            for end, p in ends_of(part, words, position).items()
        )
    return reached


def added(pairs):
    """Sums of the values by key."""
    sums = {}
    for key, value in pairs:
        sums[key] = sums.get(key, 0.0) + value
    return sums


def probability(node, words):
    """Probability of a text, summed over its derivations."""
    return ends_of(node, words, 0).get(len(words), 0.0)


def log_probability(demonstrator, query, response):
    """Log-probability of a demonstrated response in nats; −∞ if it is impossible."""
    p = probability(demonstrator.grammar(query), tuple(response.split(" ")))
    return math.log(p) if p else -math.inf

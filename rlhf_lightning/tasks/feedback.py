"""Feedback of one kind read as another: rankings as pairs, pairs as rankings of two, pairs as labels."""

from __future__ import annotations

from itertools import combinations

from rlhf_lightning.types import Feedback, LabelledResponse, PreferencePair, Ranking


def as_pairs(feedback: Feedback) -> list[PreferencePair]:
    """A pair, or all pairs of a ranking; other feedback compares nothing."""
    if isinstance(feedback, PreferencePair):
        return [feedback]
    if not isinstance(feedback, Ranking):
        return []
    return [
        PreferencePair(feedback.prompt, better, worse, annotator=feedback.annotator, objective=feedback.objective)
        for better, worse in combinations(feedback.responses, 2)
    ]


def as_rankings(feedback: Feedback) -> list[Ranking]:
    """A ranking, or a pair as a ranking of two, which has no margin; other feedback ranks nothing."""
    if isinstance(feedback, Ranking):
        return [feedback]
    return [Ranking(pair.prompt, pair.responses, pair.annotator, pair.objective) for pair in as_pairs(feedback)]


def as_labels(feedback: Feedback) -> list[LabelledResponse]:
    """A label, or two of each pair: the chosen response is desirable, the rejected one is undesirable.

    Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", sec. 4.2, read pairs in this
    way. In a ranking of K responses, the one at place k is desirable K − k times and undesirable k − 1 times.
    """
    if isinstance(feedback, LabelledResponse):
        return [feedback]
    return [
        LabelledResponse(pair.prompt, response, label, pair.annotator, pair.objective, compared_with=other)
        for pair in as_pairs(feedback)
        for response, other, label in ((pair.chosen, pair.rejected, True), (pair.rejected, pair.chosen, False))
    ]

"""Agreement between annotators, corrected for agreement by chance.

An item is two responses to one prompt, judged in one objective or overall. A ranking judges each of its pairs. The
label of an item is which of the two, in the order of their texts, was preferred. Judgements without an annotator are
ignored, and of several judgements of an item by one annotator the first counts. Ratings and labels of single responses
give no items.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import combinations
from typing import Any, TypeAlias

import torch
from torchmetrics.functional.classification import binary_cohen_kappa
from torchmetrics.functional.nominal import fleiss_kappa

from rlhf_lightning.tasks.feedback import as_pairs
from rlhf_lightning.tasks.text.splits import prompt_key
from rlhf_lightning.types import Feedback

Item: TypeAlias = tuple[str, str, str, str | None]
"""The key of the prompt, the two responses in the order of their texts, and the objective."""
Labels: TypeAlias = dict[str, int]
"""By annotator: 0 if the first response of an item was preferred, 1 if the second one was."""


def annotator_agreement(feedback: Iterable[Feedback]) -> dict[str, Any] | None:
    """Fleiss' kappa of all annotators and Cohen's kappa of each two; None if no item was judged twice.

    Fleiss 1971 needs equally many judgements of each item: ``fleiss_kappa`` is computed from the ``items`` items with
    ``raters`` annotators, the most frequent number above 1 (the larger one of a tie). Cohen 1960: ``cohen_kappa`` has a
    row for each two annotators, with the ``count`` of items that both judged. A kappa is None if all labels are the
    same: chance alone would then give full agreement.
    """
    judged = {item: labels for item, labels in _labels(feedback).items() if len(labels) > 1}
    if not judged:
        return None
    sizes = Counter(len(labels) for labels in judged.values())
    raters = max(sizes, key=lambda size: (sizes[size], size))
    names = sorted({name for labels in judged.values() for name in labels})
    return {
        "fleiss_kappa": _fleiss([labels for labels in judged.values() if len(labels) == raters], raters),
        "raters": raters,
        "items": sizes[raters],
        "cohen_kappa": [
            {"first": first, "second": second, "kappa": _cohen(common), "count": len(common)}
            for first, second in combinations(names, 2)
            if (common := [(by[first], by[second]) for by in judged.values() if first in by and second in by])
        ],
    }


def _labels(feedback: Iterable[Feedback]) -> dict[Item, Labels]:
    """The labels of each item."""
    items: dict[Item, Labels] = {}
    for pair in (pair for example in feedback for pair in as_pairs(example)):
        if pair.annotator is not None:
            first, second = sorted(pair.responses)
            labels = items.setdefault((prompt_key(pair.prompt), first, second, pair.objective), {})
            labels.setdefault(pair.annotator, int(pair.chosen == second))
    return items


def _fleiss(judged: list[Labels], raters: int) -> float | None:
    for_second = torch.tensor([sum(labels.values()) for labels in judged])
    counts = torch.stack([raters - for_second, for_second], dim=1)
    return fleiss_kappa(counts).item() if (counts.sum(0) > 0).all() else None


def _cohen(common: list[tuple[int, int]]) -> float | None:
    first, second = torch.tensor(common).T
    both = torch.cat([first, second])
    return binary_cohen_kappa(first, second).item() if both.min() < both.max() else None

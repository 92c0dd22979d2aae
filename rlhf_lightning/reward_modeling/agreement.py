"""How far annotators agree, beyond what chance alone would give.

What is judged is an item: two responses to one prompt, in one respect. A ranking judges each of its pairs. The label
of an item is which of the two, in the order of their texts, was preferred. What nobody put a name to is left out, and
of several judgements of an item by one annotator the first counts. Ratings prefer nothing, and give no items.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import combinations
from typing import Any, TypeAlias

import torch
from torchmetrics.functional.classification import binary_cohen_kappa
from torchmetrics.functional.nominal import fleiss_kappa

from rlhf_lightning.tasks.text.splits import prompt_key
from rlhf_lightning.types import Feedback, Rating

Item: TypeAlias = tuple[str, str, str, str | None]
"""Prompt, the two responses in the order of their texts, objective."""
Labels: TypeAlias = dict[str, int]
"""By annotator: 0 where the first response of an item was preferred, 1 where the second."""


def annotator_agreement(feedback: Iterable[Feedback]) -> dict[str, Any] | None:
    """Fleiss' kappa of all annotators and Cohen's kappa of every two; None where nothing was judged twice.

    Fleiss 1971 asks for equally many judgements of each item: ``fleiss_kappa`` is of the items that were judged by
    ``raters`` people, the number that most items judged more than once have (the larger one of two), and ``items``
    says how many these are. Cohen 1960: ``cohen_kappa`` has a row for every two annotators with items in common, with
    their ``count``. A kappa is None where all labels are the same: chance alone would then give full agreement.
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
            if (common := [(one[first], one[second]) for one in judged.values() if first in one and second in one])
        ],
    }


def _labels(feedback: Iterable[Feedback]) -> dict[Item, Labels]:
    """Who preferred what, by item."""
    found: dict[Item, Labels] = {}
    for one in feedback:
        if isinstance(one, Rating) or one.annotator is None:
            continue
        key = prompt_key(one.prompt)
        for better, worse in combinations(one.responses, 2):
            first, second = sorted((better, worse))
            labels = found.setdefault((key, first, second, one.objective), {})
            labels.setdefault(one.annotator, int(better == second))
    return found


def _fleiss(judged: list[Labels], raters: int) -> float | None:
    for_second = torch.tensor([sum(labels.values()) for labels in judged])
    counts = torch.stack([raters - for_second, for_second], dim=1)
    return fleiss_kappa(counts).item() if (counts.sum(0) > 0).all() else None


def _cohen(common: list[tuple[int, int]]) -> float | None:
    first, second = torch.tensor(common).T
    both = torch.cat([first, second])
    return binary_cohen_kappa(first, second).item() if both.min() < both.max() else None

"""From the columns of a reward network to the scores that feedback is about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.types import OVERALL, Feedback, Prompt, Rating

ColumnWeights: TypeAlias = Callable[[str | None, str | None], Float[Tensor, " C"]]
"""What each column counts in a judgement, from the objective and the annotator of the judgement."""


def flat_texts(examples: Sequence[Feedback]) -> tuple[list[Prompt], list[str]]:
    """Prompts and responses of all examples, one after the other."""
    texts = [(example.prompt, response) for example in examples for response in example.responses]
    return [prompt for prompt, _ in texts], [response for _, response in texts]


def judged_scores(
    columns: Float[Tensor, "N C"], examples: Sequence[Feedback], column_weights: ColumnWeights
) -> tuple[Float[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """What each example judges: its responses in its own objective, by its own annotator; and which there are.

    Args:
        columns: of all responses of all examples, one after the other.
        column_weights: what each column counts in a judgement.
    """
    kinds: dict[tuple[str | None, str | None], int] = {}
    places: list[list[int]] = []
    which: list[list[int]] = []
    start = 0
    for example in examples:
        objectives = _objectives(example)
        same = isinstance(example, Rating)  # one response, judged in several respects
        places.append([start if same else start + k for k in range(len(objectives))])
        which.append([kinds.setdefault((objective, example.annotator), len(kinds)) for objective in objectives])
        start += len(example.responses)
    table = torch.stack([column_weights(*kind) for kind in kinds]).to(columns)
    rows, mask = _padded(places, columns.device)
    weights = table[_padded(which, columns.device)[0]]
    return torch.where(mask, (columns[rows] * weights).sum(-1), 0), mask


def _objectives(example: Feedback) -> list[str | None]:
    """In which respect each score is judged; None for all in all."""
    if isinstance(example, Rating):
        return [None if name == OVERALL else name for name in example.ratings]
    return [example.objective] * len(example.responses)


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Lists of different lengths as a table, filled with 0, and where they are."""
    width = max(map(len, rows), default=1)
    filled = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return filled, torch.arange(width, device=device) < lengths[:, None]

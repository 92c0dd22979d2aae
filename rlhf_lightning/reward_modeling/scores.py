"""From the outputs of a reward network to the scores that feedback judges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.types import OVERALL, Feedback, Prompt, Rating

ColumnWeights: TypeAlias = Callable[[str | None, str | None], Float[Tensor, " C"]]
"""Weight of each output (column) in a judgement, from its objective and its annotator."""


def flat_texts(examples: Sequence[Feedback]) -> tuple[list[Prompt], list[str]]:
    """The prompt and the text of each response of all examples, in order."""
    texts = [(example.prompt, response) for example in examples for response in example.responses]
    return [prompt for prompt, _ in texts], [response for _, response in texts]


def judged_scores(
    columns: Float[Tensor, "N C"], examples: Sequence[Feedback], column_weights: ColumnWeights
) -> tuple[Float[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """The scores that each example judges, in its own objective and by its own annotator, and a mask.

    Args:
        columns: outputs for the responses of all examples, in order.
        column_weights: weight of each output in a judgement.

    Returns:
        The scores of each example's responses, or for a rating its score in each rated objective; and a mask that is
        False where an example has fewer than K.
    """
    kinds: dict[tuple[str | None, str | None], int] = {}
    response_rows: list[list[int]] = []
    kind_rows: list[list[int]] = []
    start = 0
    for example in examples:
        objectives = _objectives(example)
        single = isinstance(example, Rating)  # one response, judged in several objectives
        response_rows.append([start if single else start + k for k in range(len(objectives))])
        kind_rows.append([kinds.setdefault((objective, example.annotator), len(kinds)) for objective in objectives])
        start += len(example.responses)
    table = torch.stack([column_weights(*kind) for kind in kinds]).to(columns)
    rows, mask = _padded(response_rows, columns.device)
    weights = table[_padded(kind_rows, columns.device)[0]]
    return torch.where(mask, (columns[rows] * weights).sum(-1), 0), mask


def _objectives(example: Feedback) -> list[str | None]:
    """The objective of each score; None for an overall judgement."""
    if isinstance(example, Rating):
        return [None if name == OVERALL else name for name in example.ratings]
    return [example.objective] * len(example.responses)


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Lists of different lengths as a table filled with 0, and a mask of their entries."""
    width = max(map(len, rows), default=1)
    filled = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return filled, torch.arange(width, device=device) < lengths[:, None]

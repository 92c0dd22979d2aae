"""From the outputs of a reward network to the scores that feedback judges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

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
    response_rows: list[Tensor] = []
    kind_rows: list[Tensor] = []
    start = 0
    for example in examples:
        objectives = _objectives(example)
        rows = torch.arange(start, start + len(objectives))
        # of a rating, the one response is judged in several objectives
        response_rows.append(torch.full_like(rows, start) if isinstance(example, Rating) else rows)
        numbers = [kinds.setdefault((objective, example.annotator), len(kinds)) for objective in objectives]
        kind_rows.append(torch.tensor(numbers, dtype=torch.long))
        start += len(example.responses)
    present = [torch.ones_like(rows, dtype=torch.bool) for rows in response_rows]
    rows, judged_as, mask = (
        pad_sequence(lists, batch_first=True).to(columns.device) for lists in (response_rows, kind_rows, present)
    )
    weights = torch.stack([column_weights(*kind) for kind in kinds]).to(columns)[judged_as]
    return torch.where(mask, (columns[rows] * weights).sum(-1), 0), mask


def _objectives(example: Feedback) -> list[str | None]:
    """The objective of each score; None for an overall judgement."""
    if isinstance(example, Rating):
        return [None if name == OVERALL else name for name in example.ratings]
    return [example.objective] * len(example.responses)

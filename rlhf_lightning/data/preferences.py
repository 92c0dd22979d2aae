"""Preference pairs, rankings and ratings, for reward models and for policies that learn from pairs."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.data.feedback import FeedbackDataModule
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.types import PreferencePair, Ranking, Rating

_PAIRS = "python -m rlhf_lightning pairs --config TASK.yaml --policy runs/NAME/export"


class PreferenceDataModule(FeedbackDataModule[PreferencePair]):
    """Pairs of responses with the preferred one named.

    Args:
        pairs: file of prompt, chosen and rejected, as the ``pairs`` command writes it, or of rankings, each of which
            gives all its pairs; None takes the pairs that the task comes with.
        options: see `FeedbackDataModule`.
    """

    kind = "preferences"
    unit = "preference pairs"
    option = "pairs"
    advice = f"make a file of them: {_PAIRS} --out pairs.jsonl"

    def __init__(self, task: Task, pairs: str | None = None, **options: Any) -> None:
        super().__init__(task, pairs, **options)


class RankingDataModule(FeedbackDataModule[Ranking]):
    """Two or more responses to a prompt in the order of preference.

    Args:
        rankings: file of prompt, responses and ranking (or ranks), as the ``pairs`` command writes it with
            ``--samples`` above 2, or of pairs, which are rankings of two; None takes those of the task.
        options: see `FeedbackDataModule`.
    """

    kind = "rankings"
    unit = "rankings"
    option = "rankings"
    advice = f"make a file of them: {_PAIRS} --samples 4 --out rankings.jsonl"

    def __init__(self, task: Task, rankings: str | None = None, **options: Any) -> None:
        super().__init__(task, rankings, **options)


class RatingDataModule(FeedbackDataModule[Rating]):
    """Responses with what they were rated.

    Args:
        ratings: file of prompt, response and rating (or ratings by objective), or of prompt, responses and ratings;
            None takes those of the task.
        options: see `FeedbackDataModule`.
    """

    kind = "ratings"
    unit = "ratings"
    option = "ratings"
    advice = "give a file of prompt, response and rating"

    def __init__(self, task: Task, ratings: str | None = None, **options: Any) -> None:
        super().__init__(task, ratings, **options)

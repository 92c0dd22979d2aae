"""Preference pairs, rankings, ratings and labels, for reward models and for policies that learn from feedback."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.data.feedback import FeedbackDataModule
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.types import LabelledResponse, PreferencePair, Ranking, Rating

_PAIRS = "python -m rlhf_lightning pairs --config TASK.yaml --policy runs/NAME/export"


class PreferenceDataModule(FeedbackDataModule[PreferencePair]):
    """Pairs of responses, one of which is preferred.

    Args:
        pairs: file of prompt, chosen and rejected, as the ``pairs`` command writes it, or of rankings, each of which
            gives all its pairs; None for the pairs of the task.
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
            ``--samples`` above 2, or of pairs, which are rankings of two; None for the rankings of the task.
        options: see `FeedbackDataModule`.
    """

    kind = "rankings"
    unit = "rankings"
    option = "rankings"
    advice = f"make a file of them: {_PAIRS} --samples 4 --out rankings.jsonl"

    def __init__(self, task: Task, rankings: str | None = None, **options: Any) -> None:
        super().__init__(task, rankings, **options)


class RatingDataModule(FeedbackDataModule[Rating]):
    """Single responses with their ratings.

    Args:
        ratings: file of prompt, response and rating (or ratings by objective), or of prompt, responses and ratings;
            None for the ratings of the task.
        options: see `FeedbackDataModule`.
    """

    kind = "ratings"
    unit = "ratings"
    option = "ratings"
    advice = "give a file of prompt, response and rating"

    def __init__(self, task: Task, ratings: str | None = None, **options: Any) -> None:
        super().__init__(task, ratings, **options)


class LabelDataModule(FeedbackDataModule[LabelledResponse]):
    """Single responses, each labelled desirable or undesirable.

    Args:
        labels: file of prompt, completion and label (true or false), or of pairs, whose chosen responses are
            desirable and whose rejected ones are undesirable; None for the labels of the task.
        options: see `FeedbackDataModule`.
    """

    kind = "labels"
    unit = "labelled responses"
    option = "labels"
    advice = f"give a file of prompt, completion and label, or make a file of pairs: {_PAIRS} --out pairs.jsonl"

    def __init__(self, task: Task, labels: str | None = None, **options: Any) -> None:
        super().__init__(task, labels, **options)

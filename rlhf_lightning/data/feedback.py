"""`FeedbackDataModule`: feedback of one kind, chosen by annotator and objective, with a held-out part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar, Literal, TypeVar

from rlhf_lightning.data.passes import PassDataModule
from rlhf_lightning.errors import UserError, check_limits
from rlhf_lightning.records.constructed import Readable
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.tasks.text.splits import folds as folds_of
from rlhf_lightning.tasks.text.splits import prompt_key
from rlhf_lightning.tasks.text.task import TextTask
from rlhf_lightning.types import Feedback, Rating

Example = TypeVar("Example", bound=Feedback)


class FeedbackDataModule(PassDataModule[Example]):
    """Feedback of one kind, from a file or from the task.

    Folds are for k-fold cross-validation: each of the runs with ``fold`` 0 to ``folds`` − 1 holds out another part of
    all prompts. The folds depend on the prompts alone, so that models of single annotators or objectives, and runs
    with any seed, are evaluated on the same prompts.

    Args:
        path: the file; None for the feedback of the task.
        heldout_fraction: share of the file's prompts that is held out.
        batch_size: examples per step, across all devices; 32 to 128.
        eval_limit: largest number of held-out examples to evaluate on; None for all.
        on_bad_pair: whether an unusable record of the file stops the run or is dropped and counted; see `TextTask`.
        annotators: use only the feedback of these annotators, for a model of their opinions; None for all.
        objectives: use only feedback about these objectives; None for all.
        folds: hold out one of this many parts, instead of a fraction or of the task's own held-out split.
        fold: number of the part that is held out, from 0.
    """

    kind: ClassVar[str]
    """Name of this kind of feedback in ``Task.provides``, and of the method that returns it."""
    option: ClassVar[str]
    """Name of the argument for the file."""
    advice: ClassVar[str]
    """How to get such a file, for messages."""

    def __init__(
        self,
        task: Task,
        path: str | None = None,
        heldout_fraction: float = 0.1,
        batch_size: int = 64,
        eval_limit: int | None = 2048,
        on_bad_pair: Literal["error", "drop"] = "error",
        annotators: list[str] | None = None,
        objectives: list[str] | None = None,
        folds: int | None = None,
        fold: int = 0,
    ) -> None:
        super().__init__(task, batch_size, eval_limit)
        if path is None and self.kind not in task.provides:
            raise UserError(
                f"data.init_args.{self.option} is missing: task {type(task).__name__} has no {self.kind} of its own; "
                f"{self.advice}"
            )
        limits = {
            "folds": (folds is None or folds >= 2, "at least 2", folds),
            "fold": (0 <= fold < (folds or 1), f"from 0 to {(folds or 1) - 1} (folds is {folds})", fold),
        }
        check_limits("data.init_args", limits)
        self.source = task
        if path is not None:
            self.source = TextTask(path, heldout_fraction=heldout_fraction, on_bad_pair=on_bad_pair)
        self.annotators = annotators
        self.objectives = objectives
        self.folds = folds
        self.fold = fold

    def reads(self) -> Iterable[Readable]:
        """The file of the feedback."""
        return () if self.source is self.task else self.source.reads()

    def load(self) -> tuple[Sequence[Example], Sequence[Example]]:
        """The two splits, which share no prompt."""
        read = getattr(self.source, self.kind)
        train, heldout = read("train"), read("heldout")
        if self.folds is not None:
            train, heldout = self._folded([*train, *heldout], self.folds)
        everything = [*train, *heldout]
        if self.annotators is not None:
            self._check_known("annotators", self.annotators, names_of_annotators(everything))
            train, heldout = ([e for e in split if e.annotator in self.annotators] for split in (train, heldout))
        if self.objectives is not None:
            self._check_known("objectives", self.objectives, names_of_objectives(everything))
            train, heldout = (_about(split, self.objectives) for split in (train, heldout))
        return train, heldout

    def _folded(self, examples: list[Example], folds: int) -> tuple[list[Example], list[Example]]:
        fold_of = folds_of((example.prompt for example in examples), folds)
        train: list[Example] = []
        heldout: list[Example] = []
        for example in examples:
            (heldout if fold_of[prompt_key(example.prompt)] == self.fold else train).append(example)
        return train, heldout

    def _check_known(self, argument: str, wanted: list[str], known: list[str]) -> None:
        unknown = [name for name in wanted if name not in known]
        if unknown or not wanted:
            given = ", ".join(map(repr, unknown)) or "nobody" * (argument == "annotators") or "nothing"
            expected = f"some of {', '.join(known)}" if known else f"null: the {self.kind} name no {argument}"
            raise UserError(f"data.init_args.{argument} names {given}; expected {expected}")


def names_of_objectives(examples: Iterable[Feedback]) -> list[str]:
    """Names of all objectives in the feedback, sorted."""
    return sorted({name for example in examples for name in _objectives_of(example)})


def names_of_annotators(examples: Iterable[Feedback]) -> list[str]:
    """Names of all annotators of the feedback, sorted."""
    return sorted({example.annotator for example in examples if example.annotator is not None})


def _objectives_of(example: Feedback) -> list[str]:
    if isinstance(example, Rating):
        return list(example.ratings)
    return [] if example.objective is None else [example.objective]


def _about(examples: Sequence[Example], names: list[str]) -> list[Example]:
    """The feedback about these objectives; a rating loses its other objectives."""
    chosen: list[Example] = []
    for example in examples:
        if set(_objectives_of(example)) & set(names):
            if isinstance(example, Rating):
                kept = {name: value for name, value in example.ratings.items() if name in names}
                example = replace(example, ratings=kept)
            chosen.append(example)
    return chosen

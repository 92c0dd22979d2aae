"""Feedback to learn from: whose, in which respects, and which part of it is held out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, TypeVar

from rlhf_lightning.data.passes import PassDataModule
from rlhf_lightning.errors import UserError, check_limits
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.tasks.text.splits import folds as folds_of
from rlhf_lightning.tasks.text.splits import prompt_key
from rlhf_lightning.tasks.text.task import TextTask
from rlhf_lightning.types import Feedback, Rating

Example = TypeVar("Example", bound=Feedback)


class FeedbackDataModule(PassDataModule[Example]):
    """Feedback of one kind, from a file or from the task.

    Folds are for k-fold cross-validation: as many runs, ``fold`` 0 to ``folds`` − 1, each of which holds out another
    part of all prompts. Who is in which fold depends on the prompts alone, so that models of single annotators or
    objectives, and runs of any seed, are measured on the same ones.

    Args:
        path: the file; None takes what the task comes with.
        heldout_fraction: share of the file's prompts that is held out.
        batch_size: examples per step, across all devices; 32 to 128.
        eval_limit: most held-out examples that are looked at.
        on_bad_pair: whether a record of the file that nothing can be learned from stops the run, or is dropped and
            counted; see `TextTask`.
        annotators: only what these people said, for a model of their opinions; None for everybody.
        objectives: only what was said in these respects; None for all.
        folds: hold out one of this many parts instead of a fraction, or of what the task holds out.
        fold: which one, from 0.
    """

    kind: ClassVar[str]
    """What a task calls it: the name in ``provides``, and of the method."""
    option: ClassVar[str]
    """The argument that names the file."""
    advice: ClassVar[str]
    """Where such a file comes from."""

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

    @property
    def annotators_found(self) -> list[str]:
        """Names of those whose training data this is, sorted."""
        return _names(self.train, _annotators_of)

    @property
    def objectives_found(self) -> list[str]:
        """Names of the objectives in the training data, sorted; none where all is said of responses as a whole."""
        return names_of_objectives(self.train)

    def load(self) -> tuple[Sequence[Example], Sequence[Example]]:
        """The two splits, which share no prompt."""
        read = getattr(self.source, self.kind)
        train, heldout = read("train"), read("heldout")
        if self.folds is not None:
            train, heldout = self._folded([*train, *heldout], self.folds)
        everything = [*train, *heldout]
        if self.annotators is not None:
            self._check_known("annotators", self.annotators, _names(everything, _annotators_of))
            train, heldout = (_by_annotators(one, self.annotators) for one in (train, heldout))
        if self.objectives is not None:
            self._check_known("objectives", self.objectives, names_of_objectives(everything))
            train, heldout = (_in_objectives(one, self.objectives) for one in (train, heldout))
        return train, heldout

    def _folded(self, examples: list[Example], folds: int) -> tuple[list[Example], list[Example]]:
        fold_of = folds_of((example.prompt for example in examples), folds)
        held = [fold_of[prompt_key(example.prompt)] == self.fold for example in examples]
        train = [example for example, out in zip(examples, held, strict=True) if not out]
        return train, [example for example, out in zip(examples, held, strict=True) if out]

    def _check_known(self, argument: str, wanted: list[str], found: list[str]) -> None:
        unknown = [name for name in wanted if name not in found]
        if unknown or not wanted:
            given = ", ".join(map(repr, unknown)) or "nobody" * (argument == "annotators") or "nothing"
            there = f"some of {', '.join(found)}" if found else f"null: the {self.kind} name no {argument}"
            raise UserError(f"data.init_args.{argument} names {given}; expected {there}")


def names_of_objectives(examples: Iterable[Feedback]) -> list[str]:
    """In which respects there is any judgement, sorted."""
    return _names(examples, _objectives_of)


def _annotators_of(example: Feedback) -> list[str]:
    return [] if example.annotator is None else [example.annotator]


def _objectives_of(example: Feedback) -> list[str]:
    if isinstance(example, Rating):
        return list(example.ratings)
    return [] if example.objective is None else [example.objective]


def _names(examples: Iterable[Any], of: Callable[[Any], list[str]]) -> list[str]:
    return sorted({name for example in examples for name in of(example)})


def _by_annotators(examples: Sequence[Example], names: list[str]) -> list[Example]:
    return [example for example in examples if example.annotator in names]


def _in_objectives(examples: Sequence[Example], names: list[str]) -> list[Example]:
    """What is said in these respects; a rating loses the others."""
    chosen = []
    for example in examples:
        if set(_objectives_of(example)) & set(names):
            if isinstance(example, Rating):
                kept = {name: value for name, value in example.ratings.items() if name in names}
                example = replace(example, ratings=kept)
            chosen.append(example)
    return chosen

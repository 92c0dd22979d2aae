"""Who judges sampled responses: the task's annotators, or its gold reward. Imports torch only when it judges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from rlhf_lightning.errors import UserError

if TYPE_CHECKING:
    from rlhf_lightning.rewards.source import RewardSource
    from rlhf_lightning.tasks.task import Task
    from rlhf_lightning.types import PreferencePair, Prompt, Ranking

LABELS = ("annotators", "gold")
DECIMALS = 5
"""Of gold scores that are compared: a sum's last bits depend on where in a batch it stands."""

Judged: TypeAlias = "PreferencePair | Ranking"
Judge: TypeAlias = "Callable[[list[int], list[Prompt], list[tuple[str, ...]]], list[list[Judged]]]"
"""From numbers, prompts and the responses to each of them to judgements; none where there is nothing to prefer."""


def judge_of(task: Task, labels: str, objectives: Sequence[str], annotations: int) -> Judge:
    """Who prefers.

    Args:
        labels: one of `LABELS`.
        objectives: in which respects, by the names that the gold reward has for them; none for all in all.
        annotations: how many annotators judge the same responses.

    Raises:
        UserError: the task has no such people or rule, or cannot tell these objectives apart.
    """
    task.require(frozenset({"prompts"}), by="pairs")
    gold = task.gold()
    if objectives:
        known = gold.objectives if gold else {}
        unknown = [name for name in objectives if name not in known]
        if unknown:
            there = f"some of {', '.join(known)}" if known else "a task whose gold reward has objectives"
            raise UserError(f"--objectives names {', '.join(map(repr, unknown))}; expected {there}")
    if labels == "annotators":
        task.require(frozenset({"annotators"}), by="pairs")
        if annotations > 1:
            task.panel(0, annotations)  # there are that many
        return _annotators(task, gold, objectives, annotations)
    if gold is None:
        raise UserError(f"--labels gold needs a task with a gold reward, which {type(task).__name__} has not got")
    if annotations > 1:
        raise UserError(f"--annotations is {annotations}, but gold judges once; expected --labels annotators")
    return _gold(gold, objectives)


def _annotators(task: Task, gold: RewardSource | None, objectives: Sequence[str], annotations: int) -> Judge:
    def asked(number: int, prompt: Prompt, texts: tuple[str, ...], respects: Sequence[str | None]) -> list[Judged]:
        people = task.panel(number, annotations) if annotations > 1 else [None]
        return [_ask(task, number, prompt, texts, respect, person) for respect in respects for person in people]

    def judge(numbers: list[int], prompts: list[Prompt], groups: list[tuple[str, ...]]) -> list[list[Judged]]:
        respects: list[list[str | None]] = [[None] for _ in groups]
        if gold is not None and objectives and groups:
            scores = _scores(gold, objectives, prompts, groups)
            respects = [[name for name, given in one.items() if len(set(given)) > 1] for one in scores]
        return [asked(*one) for one in zip(numbers, prompts, groups, respects, strict=True)]

    return judge


def _ask(
    task: Task, number: int, prompt: Prompt, texts: tuple[str, ...], objective: str | None, annotator: str | None
) -> Judged:
    how: dict[str, Any] = {"objective": objective, "annotator": annotator}
    how = {key: value for key, value in how.items() if value is not None}
    return task.annotate(prompt, *texts, number, **how) if len(texts) == 2 else task.rank(prompt, texts, number, **how)


def _gold(gold: RewardSource, objectives: Sequence[str]) -> Judge:
    from rlhf_lightning.types import PreferencePair, Ranking

    def ordered(prompt: Prompt, texts: tuple[str, ...], given: list[float], objective: str | None) -> Judged:
        best_first = tuple(texts[i] for i in sorted(range(len(texts)), key=given.__getitem__, reverse=True))
        if len(texts) == 2:
            return PreferencePair(prompt, *best_first, annotator="gold", objective=objective)
        return Ranking(prompt, best_first, "gold", objective)

    def judge(numbers: list[int], prompts: list[Prompt], groups: list[tuple[str, ...]]) -> list[list[Judged]]:
        scores = _scores(gold, objectives or [None], prompts, groups) if groups else []
        return [
            [ordered(prompt, texts, given, name) for name, given in one.items() if len(set(given)) == len(given)]
            for prompt, texts, one in zip(prompts, groups, scores, strict=True)
        ]

    return judge


def _scores(
    gold: RewardSource, objectives: Sequence[str | None], prompts: list[Prompt], groups: list[tuple[str, ...]]
) -> list[dict[str | None, list[float]]]:
    """What gold says of the responses to each prompt, by objective (None: all in all)."""
    from rlhf_lightning.rewards.source import judged

    size = len(groups[0])
    said = judged(gold, [p for p in prompts for _ in range(size)], [text for texts in groups for text in texts])
    by_name = {name: said.scores if name is None else said.objectives[name] for name in objectives}
    rows = {name: scores.double().round(decimals=DECIMALS).view(-1, size).tolist() for name, scores in by_name.items()}
    return [{name: of[place] for name, of in rows.items()} for place in range(len(groups))]

"""Who judges sampled responses: the task's annotators, or its gold reward. Imports torch only when it judges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from rlhf_lightning.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from rlhf_lightning.tasks.task import Task
    from rlhf_lightning.types import PreferencePair, Prompt, Ranking

LABELS = ("annotators", "gold")
ATTEMPTS = 20
"""Times that responses to a prompt are drawn, at most, until they can be judged."""
DECIMALS = 5
"""To which gold scores are rounded before they are compared: the last bits of a sum depend on the batch around it."""

Comparison: TypeAlias = "PreferencePair | Ranking"


class Judge:
    """Judges groups of responses to the same prompt.

    Args:
        task: whose prompts these are.
        labels: one of `LABELS`.
        objectives: names of the gold reward's objectives, each of which is judged by itself; none for an overall
            judgement.
        annotations: number of annotators that judge the same responses.

    Raises:
        UserError: the task has no such annotators, gold reward or objectives.
    """

    def __init__(self, task: Task, labels: str, objectives: Sequence[str] = (), annotations: int = 1) -> None:
        task.require(frozenset({"prompts"}), by="pairs")
        self.task = task
        self.gold = task.gold()
        self.by_gold = labels == "gold"
        self.objectives = list(dict.fromkeys(objectives))
        self.annotations = annotations
        known = self.gold.objectives if self.gold else {}
        unknown = [name for name in self.objectives if name not in known]
        if unknown:
            expected = f"some of {', '.join(known)}" if known else "a task whose gold reward has objectives"
            raise UserError(f"--objectives names {', '.join(map(repr, unknown))}; expected {expected}")
        if not self.by_gold:
            task.require(frozenset({"annotators"}), by="pairs")
            self._panel(0)  # raises where there are fewer annotators
        elif self.gold is None:
            raise UserError(f"--labels gold needs a task with a gold reward, which {type(task).__name__} has not got")
        elif annotations > 1:
            raise UserError(f"--annotations is {annotations}, but gold judges once; expected --labels annotators")

    @property
    def ties(self) -> str:
        """The responses that cannot be compared, in words."""
        ties = "responses of equal gold reward" if self.by_gold else "an empty response or twice the same"
        return f"{ties}, or responses that are equally {' and '.join(self.objectives)}," if self.objectives else ties

    def judge(
        self, numbers: Sequence[int], prompts: Sequence[Prompt], groups: Sequence[tuple[str, ...]]
    ) -> list[list[Comparison]]:
        """The judgements of each group; none where it cannot be said which response is better.

        Annotators are asked about the objectives in which gold finds any difference, gold about those in which it finds
        no two responses equal.

        Args:
            numbers: of the prompts; they decide which annotators judge, and how these err.
            prompts: one for each group.
            groups: two or more responses to each prompt.
        """
        if self.by_gold:
            rows = self._scores(prompts, groups)
            return [list(_ordered(*group)) for group in zip(prompts, groups, rows, strict=True)]
        differing: Sequence[Sequence[str | None]] = [[None]] * len(groups)
        if self.objectives:
            scores = self._scores(prompts, groups)
            differing = [[name for name, values in row.items() if len(set(values)) > 1] for row in scores]
        return [
            [self._ask(number, prompt, texts, name, who) for name in names for who in self._panel(number)]
            for number, prompt, texts, names in zip(numbers, prompts, groups, differing, strict=True)
        ]

    def _panel(self, number: int) -> Sequence[str | None]:
        return self.task.panel(number, self.annotations) if self.annotations > 1 else [None]

    def _ask(
        self, number: int, prompt: Prompt, texts: tuple[str, ...], objective: str | None, annotator: str | None
    ) -> Comparison:
        options = {"objective": objective, "annotator": annotator}
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        if len(texts) == 2:
            return self.task.annotate(prompt, texts[0], texts[1], number, **given)
        return self.task.rank(prompt, texts, number, **given)

    def _scores(
        self, prompts: Sequence[Prompt], groups: Sequence[tuple[str, ...]]
    ) -> list[dict[str | None, list[float]]]:
        """Gold scores of each group, by objective (None: overall)."""
        from rlhf_lightning.rewards.source import judged

        if self.gold is None or not groups:
            return []
        size = len(groups[0])
        texts = [text for group in groups for text in group]
        judgement = judged(self.gold, [prompt for prompt in prompts for _ in range(size)], texts)
        by_name: dict[str | None, Tensor] = {name: judgement.objectives[name] for name in self.objectives}
        by_name = by_name or {None: judgement.scores}
        rounded = [scores.double().round(decimals=DECIMALS).view(-1, size).tolist() for scores in by_name.values()]
        return [dict(zip(by_name, values, strict=True)) for values in zip(*rounded, strict=True)]


def _ordered(prompt: Prompt, texts: tuple[str, ...], row: dict[str | None, list[float]]) -> Iterator[Comparison]:
    """The responses with the higher score first, by each objective that finds no two of them equal."""
    from rlhf_lightning.tasks.feedback import as_pairs
    from rlhf_lightning.types import Ranking

    for objective, scores in row.items():
        if len(set(scores)) == len(scores):
            best_first = tuple(texts[i] for i in sorted(range(len(texts)), key=scores.__getitem__, reverse=True))
            ranking = Ranking(prompt, best_first, annotator="gold", objective=objective)
            yield as_pairs(ranking)[0] if len(texts) == 2 else ranking

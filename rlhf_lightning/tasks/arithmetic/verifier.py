"""The reward of the arithmetic task: verified by rule from the text alone.

A good response to ``running sums of 3 8 5`` is ``3 11 16``. Words are separated by white space; a full stop or comma
after a word is ignored, and a number must be written in plain digits.

| component | definition |
|---|---|
| right | 1 if the last word is the last running sum, 0 otherwise; the words before it do not matter |
| steps_right | share of the running sums at the right position |
| well_formed | 1 if there are as many words as running sums and every one is a number, 0 otherwise |
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.source import RewardSource
from rlhf_lightning.tasks.arithmetic.problems import Problem, parse
from rlhf_lightning.types import Prompt

_NUMBER = re.compile(r"0|[1-9][0-9]*")


class ArithmeticVerifier(RewardSource):
    """1 for a right answer and 0 for a wrong one, or a weighted mean with the share of right steps.

    Args:
        step_credit: weight of ``steps_right`` in the score; ``right`` has weight 1 − step_credit. With 0, only the
            answer counts.
    """

    def __init__(self, step_credit: float = 0.0) -> None:
        super().__init__()
        if not 0 <= step_credit <= 1:
            raise UserError(f"step_credit is {step_credit}; expected a weight between 0 and 1")
        self.objectives = {"right": 1 - step_credit, "steps_right": step_credit, "well_formed": 0.0}

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, "B O"]:
        """Whether the answer is right, the share of right steps, and whether the response is well formed."""
        rows = [_judge(parse(prompt), response) for prompt, response in zip(prompts, responses, strict=True)]
        return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), len(self.objectives))


def is_right(problem: Problem, response: str) -> bool:
    """Whether the last word is the last running sum."""
    return _words(response)[-1:] == [str(problem.sums()[-1])]


def _words(response: str) -> list[str]:
    return [word for word in (text.rstrip(".,") for text in response.split()) if word]


def _judge(problem: Problem, response: str) -> tuple[float, float, float]:
    expected, words = [str(value) for value in problem.sums()], _words(response)
    steps = sum(word == value for word, value in zip(words, expected, strict=False))
    well_formed = len(words) == len(expected) and all(map(_NUMBER.fullmatch, words))
    return float(is_right(problem, response)), steps / len(expected), float(well_formed)

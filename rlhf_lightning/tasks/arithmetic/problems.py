"""Problems: their text, their answer, and how demonstrations answer them.

Demonstrations answer with every running sum, and are imperfect on purpose. A given share of them has one slip: one sum
(each but the first with equal probability) is one too large or one too small, and the later sums continue from it. A
slip therefore always gives a wrong answer, and no response can be produced in two ways, so the entropy is exact.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass
from itertools import accumulate

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.task import as_prompt, last_user_message
from rlhf_lightning.types import Prompt

ERRORS = (-1, 1)
"""Of the sum at which a demonstration slips."""

QUESTION = re.compile(r"running sums of ([0-9]{1,18}(?: [0-9]{1,18})*)(?: modulo ([1-9][0-9]{0,17}))?")


@dataclass(frozen=True)
class Problem:
    """Numbers whose running sums are asked for.

    Args:
        terms: the numbers, in order.
        modulus: every sum is taken modulo this; None for plain sums.
    """

    terms: tuple[int, ...]
    modulus: int | None = None

    @property
    def text(self) -> str:
        """The question in words."""
        question = f"running sums of {' '.join(map(str, self.terms))}"
        return question if self.modulus is None else f"{question} modulo {self.modulus}"

    @property
    def prompt(self) -> Prompt:
        """The conversation in which the user asks it."""
        return as_prompt(self.text)

    def sums(self, slip: int | None = None, error: int = 0) -> tuple[int, ...]:
        """The running sums, the last of which is the answer.

        Args:
            slip: index of the term that is added wrongly; later sums continue from the wrong sum.
            error: what is added to that term.
        """
        added = accumulate(term + error * (index == slip) for index, term in enumerate(self.terms))
        return tuple(added) if self.modulus is None else tuple(value % self.modulus for value in added)

    def demonstrate(self, slip_share: float, rng: random.Random) -> str:
        """Draw a demonstration, which has a slip with probability ``slip_share``."""
        slips = rng.random() < slip_share
        slip, error = rng.randrange(1, len(self.terms)), rng.choice(ERRORS)
        return " ".join(map(str, self.sums(slip, error) if slips else self.sums()))

    def entropy(self, slip_share: float) -> float:
        """Entropy of a demonstration in nats: whether there is a slip, where, and which."""
        choice = -math.fsum(p * math.log(p) for p in (slip_share, 1 - slip_share) if p > 0)
        return choice + slip_share * math.log(len(ERRORS) * (len(self.terms) - 1))


def parse(prompt: Prompt) -> Problem:
    """The problem in the last user message, or in a prompt that is plain text.

    Raises:
        UserError: it is not a question about running sums.
    """
    match = QUESTION.fullmatch(" ".join(last_user_message(prompt, "the arithmetic task verifies").lower().split()))
    if match is None:
        raise UserError(
            f"the arithmetic task does not know the prompt {prompt!r}; "
            "expected such as 'running sums of 3 8 5' or 'running sums of 3 8 5 modulo 7'"
        )
    terms, modulus = match.groups()
    return Problem(tuple(map(int, terms.split())), None if modulus is None else int(modulus))

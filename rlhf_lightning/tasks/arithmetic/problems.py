"""Problems: their text, their answer, how demonstrations answer them, and which of them are held out.

Demonstrations answer with every running sum, and are imperfect on purpose. A given share of them has one slip: one sum
(each but the first with equal probability) is one too large or one too small, and the later sums continue from it. A
slip therefore always gives a wrong answer, and no response can be produced in two ways, so the entropy is exact.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.task import as_prompt, last_user_message
from rlhf_lightning.tasks.text.splits import HASHES, prompt_hash
from rlhf_lightning.types import Prompt

HELDOUT_SHARE = 0.2
"""Expected share of all problems that training never sees."""
SMALLEST_RANGE = 8
"""Least number of values of a term: even two terms then give 64 problems, enough for some in each split."""

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


@dataclass(frozen=True)
class ProblemSet:
    """All problems of one difficulty, divided into training and held-out ones.

    A hash of its text decides in which split a problem is, so no problem can be drawn in both.

    Args:
        min_terms: smallest number of terms.
        max_terms: largest number of terms; every number between the two is equally likely.
        largest: terms are drawn uniformly from 1 to this.
        modulus: of every sum; None for plain sums.
        seed: decides which problems are drawn, and which are held out.
    """

    min_terms: int
    max_terms: int
    largest: int
    modulus: int | None
    seed: int

    def __post_init__(self) -> None:
        if self.min_terms < 2:
            raise UserError(f"min_terms is {self.min_terms}; expected at least 2, so that there is something to add")
        if self.max_terms < self.min_terms:
            raise UserError(f"max_terms is {self.max_terms}; expected at least min_terms, {self.min_terms}")
        if self.largest < SMALLEST_RANGE:
            raise UserError(f"largest is {self.largest}; expected at least {SMALLEST_RANGE}")
        if self.modulus is not None and self.modulus < 3:
            raise UserError(f"modulus is {self.modulus}; expected at least 3, or null for plain sums")

    @property
    def largest_number(self) -> int:
        """The largest number in any problem or in any demonstration, whose sums may be too large by one."""
        return self.max_terms * self.largest + 1 if self.modulus is None else max(self.largest, self.modulus)

    def is_heldout(self, problem: Problem) -> bool:
        """Whether training never sees the problem."""
        return prompt_hash(problem.text, self.seed) < HELDOUT_SHARE * HASHES

    def draw(self, *, heldout: bool) -> Iterator[Problem]:
        """An endless, reproducible sequence of problems of one split."""
        rng = random.Random(f"arithmetic/problems/{heldout}/{self.seed}")
        while True:
            count = rng.randint(self.min_terms, self.max_terms)
            problem = Problem(tuple(rng.randint(1, self.largest) for _ in range(count)), self.modulus)
            if self.is_heldout(problem) == heldout:
                yield problem

"""Problems: their text, their answer, and which of them are held out."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from rlhf_lightning.errors import UserError
from rlhf_lightning.types import Prompt

HELDOUT_SHARE = 0.2
"""Expected share of all problems that training never sees."""
SMALLEST_RANGE = 8
"""Of a term: even two of them then give 64 problems, enough for some on either side."""

QUESTION = re.compile(r"running sums of ([0-9]{1,18}(?: [0-9]{1,18})*)(?: modulo ([1-9][0-9]{0,17}))?")


@dataclass(frozen=True)
class Problem:
    """Numbers to add up one after the other.

    Args:
        terms: the numbers.
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
        return [{"role": "user", "content": self.text}]

    def sums(self, slip: int | None = None, error: int = 0) -> tuple[int, ...]:
        """The running sums, the last of which is the answer.

        Args:
            slip: place of the term that is added wrongly; later sums go on from there.
            error: by how much.
        """
        added = accumulate(term + error * (place == slip) for place, term in enumerate(self.terms))
        return tuple(added) if self.modulus is None else tuple(value % self.modulus for value in added)


def parse(prompt: Prompt) -> Problem:
    """What the last user message (or the text) asks.

    Raises:
        UserError: it is no question about running sums.
    """
    found = QUESTION.fullmatch(" ".join(_question(prompt).lower().split()))
    if found is None:
        raise UserError(
            f"the arithmetic task does not know the prompt {prompt!r}; "
            "expected such as 'running sums of 3 8 5' or 'running sums of 3 8 5 modulo 7'"
        )
    terms, modulus = found.groups()
    return Problem(tuple(map(int, terms.split())), None if modulus is None else int(modulus))


@dataclass(frozen=True)
class ProblemSet:
    """All problems of one difficulty, divided into training and held-out ones.

    A hash of its text decides on which side a problem is, so that no number of draws mixes the two.

    Args:
        min_terms: fewest numbers of a problem.
        max_terms: most numbers of a problem; every count between the two is equally likely.
        largest: numbers are drawn evenly from 1 to this.
        modulus: of every sum; None for plain sums.
        seed: which problems there are, and which of them are held out.
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
        digest = hashlib.sha256(f"{self.seed}\0{problem.text}".encode()).digest()
        return int.from_bytes(digest[:8]) < HELDOUT_SHARE * 2**64

    def draw(self, *, heldout: bool) -> Iterator[Problem]:
        """Problems of one side without end, always the same ones."""
        rng = random.Random(f"arithmetic/problems/{heldout}/{self.seed}")
        while True:
            count = rng.randint(self.min_terms, self.max_terms)
            problem = Problem(tuple(rng.randint(1, self.largest) for _ in range(count)), self.modulus)
            if self.is_heldout(problem) == heldout:
                yield problem


def _question(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    for message in reversed(prompt):
        if message.get("role") == "user":
            return str(message.get("content"))
    raise UserError(f"the prompt {prompt!r} has no user message; the arithmetic task verifies by the last one")

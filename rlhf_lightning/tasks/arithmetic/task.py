"""Running sums with verified answers: a task with a rule as its reward and an adjustable difficulty."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING, ClassVar

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.arithmetic.problems import Problem, parse
from rlhf_lightning.tasks.arithmetic.verifier import ArithmeticVerifier, is_right
from rlhf_lightning.tasks.task import Split, Task, is_heldout, once_per_split
from rlhf_lightning.tasks.text.splits import HASHES, prompt_hash
from rlhf_lightning.tasks.word_tokenizer import build_word_tokenizer
from rlhf_lightning.types import Demonstration, LabelledResponse, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HELDOUT_SHARE = 0.2
"""Expected share of all problems that training never sees."""
SMALLEST_RANGE = 8
"""Least number of values of a term: even two terms then give 64 problems, enough for some in each split."""
HELDOUT_PROMPTS = 256
HELDOUT_DEMONSTRATIONS = 1024
LARGEST_TOKEN = 9999
"""The task's own tokenizer has one token per number; larger numbers than this need a checkpoint's tokenizer."""


class Arithmetic(Task):
    """Asked for the ``running sums of 3 8 5``, a model writes ``3 11 16``: the last number is the verified answer.

    The sums before it are the visible steps. Demonstrations have slips on purpose: a supervised model that samples is
    right on about ``1 − slip_share`` of the problems at best, and reinforcement learning can gain the rest.

    Everything is generated when it is first needed, nothing is downloaded, and the same arguments give the same task in
    every process. A fifth of all problems, by a hash of their text, is held out.

    Args:
        min_terms: smallest number of terms, at least 2.
        max_terms: largest number of terms; more are harder.
        largest: terms are drawn uniformly from 1 to this, at least 8; larger ones are harder.
        modulus: every sum is taken modulo this, at least 3; null for plain sums.
        slip_share: share of the demonstrations with one slip and therefore a wrong answer.
        problems: number of training problems, each with one demonstration; a short problem can occur more than once.
        seed: decides the problems, which of them are held out, and the slips.
    """

    provides: ClassVar[frozenset[str]] = frozenset(
        {"prompts", "demonstrations", "labels", "gold", "reference", "groups"}
    )

    def __init__(
        self,
        min_terms: int = 3,
        max_terms: int = 5,
        largest: int = 9,
        modulus: int | None = None,
        slip_share: float = 0.5,
        problems: int = 20000,
        seed: int = 0,
    ) -> None:
        if problems < 1:
            raise UserError(f"problems is {problems}; expected at least 1")
        if min_terms < 2:
            raise UserError(f"min_terms is {min_terms}; expected at least 2, so that there is something to add")
        if max_terms < min_terms:
            raise UserError(f"max_terms is {max_terms}; expected at least min_terms, {min_terms}")
        if largest < SMALLEST_RANGE:
            raise UserError(f"largest is {largest}; expected at least {SMALLEST_RANGE}")
        if modulus is not None and modulus < 3:
            raise UserError(f"modulus is {modulus}; expected at least 3, or null for plain sums")
        if not 0 <= slip_share <= 1:
            raise UserError(f"slip_share is {slip_share}; expected a share between 0 and 1")
        self.min_terms = min_terms
        self.max_terms = max_terms
        self.largest = largest
        self.modulus = modulus
        self.slip_share = slip_share
        self.seed = seed
        self._problem_count = problems

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Problems in a fixed order, 256 of them held out."""
        return tuple(problem.prompt for problem in self._problems(split))

    @once_per_split
    def demonstrations(self, split: Split) -> Sequence[Demonstration]:
        """One imperfect response to each training problem, several to each held-out one, in a fixed order."""
        problems, rng = self._problems(split), random.Random(f"arithmetic/demonstrations/{split}/{self.seed}")
        count = HELDOUT_DEMONSTRATIONS if split == "heldout" else len(problems)
        return tuple(
            Demonstration(problem.prompt, problem.demonstrate(self.slip_share, rng))
            for problem in islice(cycle(problems), count)
        )

    def labels(self, split: Split) -> Sequence[LabelledResponse]:
        """The demonstrations, each labelled desirable if its answer is right."""
        return tuple(
            LabelledResponse(shown.prompt, shown.response, is_right(parse(shown.prompt), shown.response))
            for shown in self.demonstrations(split)
        )

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """A word-level tokenizer: one token per number, in the order of the numbers.

        Raises:
            UserError: the numbers are too large for that.
        """
        largest = self.largest_number
        if largest > LARGEST_TOKEN:
            raise UserError(
                f"the numbers of the arithmetic task go up to {largest}, and a model built from scratch has one token "
                f"for each up to {LARGEST_TOKEN}; expected fewer or smaller terms, a modulus, or a checkpoint"
            )
        question = Problem(terms=(), modulus=self.modulus).text
        words = dict.fromkeys(word for word in question.split() if not word.isdigit())
        return build_word_tokenizer([*words, *map(str, range(largest + 1))])

    def gold(self) -> ArithmeticVerifier:
        """1 for a right answer, 0 for a wrong one."""
        return ArithmeticVerifier()

    def demonstration_entropy(self, demonstrations: Sequence[Demonstration]) -> float:
        """Exact entropy of the responses given the demonstrations' prompts, summed over them, in nats."""
        return math.fsum(parse(d.prompt).entropy(self.slip_share) for d in demonstrations)

    @property
    def largest_number(self) -> int:
        """The largest number in any problem or in any demonstration, whose sums may be too large by one."""
        return self.max_terms * self.largest + 1 if self.modulus is None else max(self.largest, self.modulus)

    def holds_out(self, problem: Problem) -> bool:
        """Whether training never sees the problem: a hash of its text decides."""
        return prompt_hash(problem.text, self.seed) < HELDOUT_SHARE * HASHES

    def draw(self, *, heldout: bool) -> Iterator[Problem]:
        """An endless, reproducible sequence of problems of one split; every number of terms is equally likely."""
        rng = random.Random(f"arithmetic/problems/{heldout}/{self.seed}")
        while True:
            count = rng.randint(self.min_terms, self.max_terms)
            problem = Problem(tuple(rng.randint(1, self.largest) for _ in range(count)), self.modulus)
            if self.holds_out(problem) == heldout:
                yield problem

    @once_per_split
    def _problems(self, split: Split) -> Sequence[Problem]:
        heldout = is_heldout(split, "arithmetic")
        count = HELDOUT_PROMPTS if heldout else self._problem_count
        return tuple(islice(self.draw(heldout=heldout), count))

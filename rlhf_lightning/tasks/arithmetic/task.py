"""Running sums with verified answers: a task with a rule as its reward and an adjustable difficulty."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING, ClassVar

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.arithmetic.problems import Problem, ProblemSet, parse
from rlhf_lightning.tasks.arithmetic.verifier import ArithmeticVerifier, is_right
from rlhf_lightning.tasks.task import Split, Task, is_heldout, once_per_split
from rlhf_lightning.tasks.word_tokenizer import build_word_tokenizer
from rlhf_lightning.types import Demonstration, LabelledResponse, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
        self.problem_set = ProblemSet(min_terms, max_terms, largest, modulus, seed)
        if not 0 <= slip_share <= 1:
            raise UserError(f"slip_share is {slip_share}; expected a share between 0 and 1")
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
        largest = self.problem_set.largest_number
        if largest > LARGEST_TOKEN:
            raise UserError(
                f"the numbers of the arithmetic task go up to {largest}, and a model built from scratch has one token "
                f"for each up to {LARGEST_TOKEN}; expected fewer or smaller terms, a modulus, or a checkpoint"
            )
        question = Problem(terms=(), modulus=self.problem_set.modulus).text
        words = dict.fromkeys(word for word in question.split() if not word.isdigit())
        return build_word_tokenizer([*words, *map(str, range(largest + 1))])

    def gold(self) -> ArithmeticVerifier:
        """1 for a right answer, 0 for a wrong one."""
        return ArithmeticVerifier()

    def demonstration_entropy(self, demonstrations: Sequence[Demonstration]) -> float:
        """Exact entropy of the responses given the demonstrations' prompts, summed over them, in nats."""
        return math.fsum(parse(d.prompt).entropy(self.slip_share) for d in demonstrations)

    @once_per_split
    def _problems(self, split: Split) -> Sequence[Problem]:
        heldout = is_heldout(split, "arithmetic")
        count = HELDOUT_PROMPTS if heldout else self._problem_count
        return tuple(islice(self.problem_set.draw(heldout=heldout), count))

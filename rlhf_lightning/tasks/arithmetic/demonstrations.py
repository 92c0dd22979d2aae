"""How the demonstrations answer: with every running sum, and imperfect on purpose.

A given share of the responses has one slip: one sum (each but the first with equal probability) is one too large or
one too small, and the later sums continue from it. A slip therefore always gives a wrong answer, and no response can
be produced in two ways, so the entropy is exact.
"""

from __future__ import annotations

import math
import random

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.arithmetic.problems import Problem

ERRORS = (-1, 1)


class ArithmeticDemonstrator:
    """Draws demonstrations, and knows their exact entropy.

    Args:
        slip_share: share of the responses with a slip.
    """

    def __init__(self, slip_share: float) -> None:
        if not 0 <= slip_share <= 1:
            raise UserError(f"slip_share is {slip_share}; expected a share between 0 and 1")
        self.slip_share = slip_share

    def sample(self, problem: Problem, rng: random.Random) -> str:
        """Draw a response."""
        slips = rng.random() < self.slip_share
        slip, error = rng.randrange(1, len(problem.terms)), rng.choice(ERRORS)
        return " ".join(map(str, problem.sums(slip, error) if slips else problem.sums()))

    def entropy(self, problem: Problem) -> float:
        """Entropy of the response in nats: whether there is a slip, where, and which."""
        share, ways = self.slip_share, len(ERRORS) * (len(problem.terms) - 1)
        choice = -math.fsum(p * math.log(p) for p in (share, 1 - share) if p > 0)
        return choice + share * math.log(ways)

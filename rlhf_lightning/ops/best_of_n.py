"""Best-of-n sampling: what its responses are worth, for every n from one sample, and how far from the policy it is."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def best_of_n(scores: Float[Tensor, "P N"], values: Float[Tensor, "P N"], *, n: int) -> Float[Tensor, " P"]:
    """Mean value of the response with the highest score of n, over all subsets of n of the N responses.

    The unbiased estimator of Nakano et al. 2021, "WebGPT: Browser-Assisted Question-Answering with Human Feedback",
    app. I, with which Gao et al. 2022, "Scaling Laws for Reward Model Overoptimization", measure best-of-n, too. It
    uses all N responses for every n: one that is above k others is the best of C(k, n − 1) of the C(N, n) subsets. Of
    responses with the same score each is taken equally often: the subsets in which their score is the highest,
    C(those not above it, n) − C(those below it, n), are divided among them.

    Args:
        scores: by which a response is selected, such as a reward model's; a row for each prompt.
        values: what is averaged: the same scores, or others of the same responses, such as gold.
        n: from 1, the plain mean, to N, the value of the best.
    """
    responses = scores.shape[1]
    subsets = math.comb(responses, n)
    within = torch.tensor(
        [math.comb(count, n) / subsets for count in range(responses + 1)], dtype=torch.float64, device=scores.device
    )
    ordered = scores.sort(-1).values
    below = torch.searchsorted(ordered, scores.contiguous())
    not_above = torch.searchsorted(ordered, scores.contiguous(), right=True)
    weights = (within[not_above] - within[below]) / (not_above - below)
    return (weights * values.double()).sum(-1)


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n to the policy that it samples from, log n − (n − 1) / n, in nats.

    Stiennon et al. 2020, "Learning to Summarize from Human Feedback", app. G.3. It is exact where no two responses have
    the same score, and an upper bound elsewhere (Beirami et al. 2024, "Theoretical Guarantees on the Best-of-n
    Alignment Policy").
    """
    return math.log(n) - (n - 1) / n

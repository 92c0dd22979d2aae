"""Losses on human feedback, one value per pair, ranking or rating. The scores of K responses are ordered best first."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.ops.masking import masked


def bradley_terry_loss(
    chosen: Float[Tensor, " B"],
    rejected: Float[Tensor, " B"],
    *,
    margin: Float[Tensor, " B"] | float,
    label_smoothing: float,
) -> Float[Tensor, " B"]:
    """−(1 − ε) log σ(d) − ε log σ(−d), with d = r_w − r_l − m; in nats per pair.

    Bradley and Terry 1952; with a margin as in Touvron et al. 2023, "Llama 2", eq. 2.

    Args:
        chosen: r_w, scores of the preferred responses.
        rejected: r_l, scores of the others.
        margin: m ≥ 0, by how much the preferred score should be larger; 0 for the plain loss.
        label_smoothing: ε, probability that a preference is recorded the wrong way round, below 0.5; 0 for the plain
            loss.
    """
    return _smoothed_loss(chosen - rejected - margin, label_smoothing)


def plackett_luce_loss(scores: Float[Tensor, "B K"], mask: Bool[Tensor, "B K"]) -> Float[Tensor, " B"]:
    """−Σₖ log (exp rₖ / Σ_{j ≥ k} exp rⱼ), in nats per ranking: the best is chosen first, then the best of the rest.

    Luce 1959, "Individual Choice Behavior"; Plackett 1975, "The Analysis of Permutations". For K = 2 it is the
    Bradley–Terry loss.

    Args:
        scores: r, in the order of the ranking.
        mask: False where a ranking has fewer than K responses.
    """
    scores = masked(scores, mask)
    itself = torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    # Each response is among its own rivals, so that no row is empty: an empty row would have a gradient of NaN.
    rivals = itself | (itself.long().cumsum(-1).bool() & mask[:, None, :])
    choices = torch.where(rivals, scores[:, None, :], -torch.inf).log_softmax(-1).diagonal(dim1=1, dim2=2)
    return -masked(choices, mask).sum(-1)


def all_pairs_loss(scores: Float[Tensor, "B K"], mask: Bool[Tensor, "B K"]) -> Float[Tensor, " B"]:
    """The mean of −log σ(rᵢ − rⱼ) over the pairs i < j of a ranking, in nats per pair; 0 for fewer than two responses.

    Ouyang et al. 2022, "Training language models to follow instructions with human feedback", eq. 1. The pairs of one
    ranking are not independent, so for K > 2 this is not a likelihood.

    Args:
        scores: r, in the order of the ranking.
        mask: False where a ranking has fewer than K responses.
    """
    scores = masked(scores, mask)
    pairs = (mask[:, :, None] & mask[:, None, :]).triu(1)
    losses = -torch.nn.functional.logsigmoid(scores[:, :, None] - scores[:, None, :])
    total = masked(losses, pairs).sum((1, 2))
    return total / pairs.sum((1, 2)).clamp(min=1)


def regression_loss(
    scores: Float[Tensor, "B K"], ratings: Float[Tensor, "B K"], mask: Bool[Tensor, "B K"]
) -> Float[Tensor, " B"]:
    """(r − y)², the mean over the objectives that a response was rated for; 0 if it was not rated.

    Args:
        scores: r, for each of K objectives.
        ratings: y, in the same units.
        mask: True where there is a rating.
    """
    errors = masked(scores, mask) - masked(ratings, mask)
    return (errors**2).sum(-1) / mask.sum(-1).clamp(min=1)


def centering_penalty(scores: Float[Tensor, "B K"], mask: Bool[Tensor, "B K"]) -> Float[Tensor, " B"]:
    """(Σₖ rₖ)²: pulls the mean score, which comparisons do not determine, towards 0.

    Eisenstein et al. 2023, "Helping or Herding? Reward Model Ensembles Mitigate but do not Eliminate Reward Hacking",
    eq. 2, with coefficients of about 0.01.

    Args:
        scores: r, of the responses that were compared.
        mask: False where there are fewer than K of them.
    """
    return masked(scores, mask).sum(-1) ** 2


def sigmoid_preference_loss(
    chosen_log_ratio: Float[Tensor, " B"],
    rejected_log_ratio: Float[Tensor, " B"],
    *,
    beta: float,
    label_smoothing: float,
) -> Float[Tensor, " B"]:
    """−(1 − ε) log σ(βh) − ε log σ(−βh), with h the chosen log ratio minus the rejected one; in nats per pair.

    Rafailov et al. 2023, "Direct Preference Optimization", eq. 7; with ε > 0 conservative DPO, Mitchell 2023,
    "A note on DPO with noisy preferences & relationship to IPO".

    Args:
        chosen_log_ratio: log π(y) − log π_ref(y) of the preferred response, summed over its tokens.
        rejected_log_ratio: the same of the other response.
        beta: β, the KL coefficient of the objective whose optimum this reaches, 0.1 to 0.5.
        label_smoothing: ε, probability that a preference is recorded the wrong way round, below 0.5; 0 for DPO.
    """
    return _smoothed_loss(beta * (chosen_log_ratio - rejected_log_ratio), label_smoothing)


def ipo_loss(
    chosen_log_ratio: Float[Tensor, " B"], rejected_log_ratio: Float[Tensor, " B"], *, beta: float
) -> Float[Tensor, " B"]:
    """(h − 1 / (2β))², with h the chosen log ratio minus the rejected one: the margin has a finite target.

    Azar et al. 2024, "A General Theoretical Paradigm to Understand Learning from Human Preferences", eq. 17.

    Args:
        chosen_log_ratio: log π(y) − log π_ref(y) of the preferred response, summed over its tokens.
        rejected_log_ratio: the same of the other response.
        beta: the paper's τ > 0; a smaller one lets the policy go further from the reference.
    """
    return (chosen_log_ratio - rejected_log_ratio - 1 / (2 * beta)) ** 2


def _smoothed_loss(logits: Float[Tensor, " B"], label_smoothing: float) -> Float[Tensor, " B"]:
    """−log σ of the logits, if each label is wrong with probability ``label_smoothing``."""
    right, wrong = torch.nn.functional.logsigmoid(logits), torch.nn.functional.logsigmoid(-logits)
    return -(1 - label_smoothing) * right - label_smoothing * wrong

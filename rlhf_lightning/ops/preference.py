"""Losses on preferences, per pair."""

import torch
from jaxtyping import Float
from torch import Tensor


def bradley_terry_loss(
    chosen: Float[Tensor, " B"], rejected: Float[Tensor, " B"], *, margin: Float[Tensor, " B"] | float
) -> Float[Tensor, " B"]:
    """−log σ(r_w − r_l − m), in nats per pair.

    Bradley and Terry 1952; with a margin as in Touvron et al. 2023, "Llama 2", eq. 2.

    Args:
        chosen: r_w, scores of the preferred responses.
        rejected: r_l, scores of the others.
        margin: m ≥ 0, by how much the first should win; 0 for the plain loss.
    """
    return -torch.nn.functional.logsigmoid(chosen - rejected - margin)


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
    logits = beta * (chosen_log_ratio - rejected_log_ratio)
    right, wrong = torch.nn.functional.logsigmoid(logits), torch.nn.functional.logsigmoid(-logits)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def ipo_loss(
    chosen_log_ratio: Float[Tensor, " B"], rejected_log_ratio: Float[Tensor, " B"], *, beta: float
) -> Float[Tensor, " B"]:
    """(h − 1 / (2β))², with h the chosen log ratio minus the rejected one: a margin to reach, not to outgrow.

    Azar et al. 2024, "A General Theoretical Paradigm to Understand Learning from Human Preferences", eq. 17.

    Args:
        chosen_log_ratio: log π(y) − log π_ref(y) of the preferred response, summed over its tokens.
        rejected_log_ratio: the same of the other response.
        beta: the paper's τ > 0; a smaller one lets the policy go further from the reference.
    """
    return (chosen_log_ratio - rejected_log_ratio - 1 / (2 * beta)) ** 2

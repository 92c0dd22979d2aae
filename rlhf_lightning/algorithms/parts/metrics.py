"""Metrics that several algorithms log, and how figures show them."""

from rlhf_lightning.records.metrics import Metric

ENTROPY = Metric("Entropy", "nats per action", "objective/entropy", floor=0)
GRADIENT = Metric("Gradient norm", "of the policy, before any clipping", "policy/grad_norm", floor=0)
KL_OLD = Metric("KL to the old policy", "nats per action, within one update", "policy/kl_old", role="kl", floor=0)
STEPS = Metric(
    "Steps of the update",
    "minibatches until KL stopped it",
    "policy/steps",
    floor=0,
    smooth=False,
    only_if_varying=True,
)
CLIP_FRACTION = Metric("Clip fraction", "share of actions at the clip", "policy/clip_fraction", floor=0)

VALUE = (
    Metric("Value loss", "squared error of the critic", "value/loss", floor=0),
    Metric(
        "Explained variance",
        "of the returns, by the critic",
        "value/explained_variance",
        lowest=-1.0,
        mark=1.0,
        mark_name="perfect critic",
    ),
)

KL_TO_REFERENCE = Metric(
    "KL to the reference",
    "nats per sequence",
    "objective/kl_ref_sequence",
    "eval/kl_ref_sequence",
    role="kl",
    floor=0,
)
KL_COEFFICIENT = Metric("KL coefficient", "weight of the KL penalty", "kl_control/coef", role="kl", floor=0)

UNSHOWN = (
    Metric("Loss", "of the policy", "policy/loss", shown=False),
    Metric("Largest ratio", "of probabilities, within one update", "policy/ratio_max", shown=False),
    Metric("Gap", "in nats, between decoding and training", "rollout/logprob_gap", shown=False),
    Metric("Gradient norm", "of the critic, before any clipping", "value/grad_norm", shown=False),
    Metric("Shaped reward", "the score less the price of the KL", "objective/reward", shown=False),
    Metric("KL to the reference", "nats per token", "objective/kl_ref_token", shown=False),
    Metric("Halvings", "of the step, by the line search", "trust_region/backtracks", shown=False),
    Metric("Expected improvement", "of the surrogate", "trust_region/improvement_expected", shown=False),
)
"""Numbers for detectors and for a closer look, which no figure needs."""

CG_RESIDUAL = Metric("Conjugate gradient", "relative residual where it stopped", "trust_region/cg_residual", floor=0)


def kl_of_step(max_kl: float | None) -> Metric:
    """The KL of a step in a trust region.

    Args:
        max_kl: δ; None where nothing bounds the step.
    """
    name = "" if max_kl is None else f"δ = {max_kl:g}"
    unit = "nats per action; δ bounds it"
    return Metric("KL of the step", unit, "trust_region/kl", role="kl", floor=0, mark=max_kl, mark_name=name)

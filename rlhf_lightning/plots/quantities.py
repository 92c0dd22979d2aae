"""What a dashboard shows of each kind of run: quantities, their units, and the values that mean something."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from rlhf_lightning.plots.kit.style import GOLD, HELD_OUT, KL, PLAIN, PROXY, WARN, number
from rlhf_lightning.plots.measures import has_proxy, measured
from rlhf_lightning.records.runs import Run


@dataclass(frozen=True)
class Panel:
    """One small multiple.

    Args:
        batch: metric of the training batches; ``*`` stands for a preference optimizer's own group of metrics.
        held_out: the same in evaluations.
        floor: lowest possible value, at which the axis starts.
        lowest: where the view is cut, for a quantity without lower bound.
        mark: a value that means something, and its name.
        bound: a value that the run's configuration sets, and its name.
        per: the metric that ``batch`` is divided by.
        where: which runs have this quantity; None for all that logged it.
        smooth: whether the training batches are averaged; not where their values are counts.
    """

    title: str
    unit: str
    batch: str = ""
    held_out: str = ""
    color: str = PLAIN
    floor: float | None = None
    lowest: float | None = None
    mark: tuple[float, str] | None = None
    bound: Callable[[Run], tuple[float, str] | None] | None = None
    per: str = ""
    where: Callable[[Run], bool] | None = None
    smooth: bool = True

    def training(self, run: Run) -> pd.Series:
        """The quantity in a run's training batches."""
        batch = self.batch.replace("*", own_group(run))
        values = run.series(batch) if self.applies(run) else pd.Series(dtype=float)
        if not self.per:
            return values
        divisor = run.series(self.per)
        divisor = divisor[divisor != 0]
        return (values / divisor).dropna()

    def evaluated(self, run: Run) -> pd.Series:
        """The quantity in a run's evaluations."""
        return run.series(self.held_out) if self.applies(run) else pd.Series(dtype=float)

    def interval(self, run: Run) -> tuple[pd.Series, pd.Series] | None:
        """Both ends of its confidence interval in the evaluations, where there is one."""
        low, high = run.series(f"{self.held_out}_low"), run.series(f"{self.held_out}_high")
        return (low, high) if len(low) and len(low) == len(high) else None

    def applies(self, run: Run) -> bool:
        """Whether a run has this quantity."""
        return self.where is None or self.where(run)


def quantities(runs: Sequence[Run]) -> tuple[Panel, ...]:
    """The panels of some runs of one kind."""
    if runs[0].kind == "control":
        return CONTROL
    if runs[0].kind == "preference":
        return (*JUDGED, *_losses(runs), *PREFERENCE)
    return (*_text_rewards(runs), *_objectives(runs), *_monitors(runs), *TEXT)


def own_group(run: Run) -> str:
    """The group in which a preference optimizer logs its training; empty for other runs."""
    groups = (str(column).removesuffix("/loss") for column in run.metrics.columns if str(column).endswith("/loss"))
    return next((group for group in groups if group not in ("eval", "policy", "value")), "")


def objectives(runs: Sequence[Run]) -> list[str]:
    """Names of the objectives that some runs were evaluated on, each by itself."""
    prefix = "eval/score_"
    columns = dict.fromkeys(str(column) for run in runs for column in run.metrics.columns)
    names = [column.removeprefix(prefix) for column in columns if column.startswith(prefix)]
    return [name for name in names if name not in ("kept", "std", "min", "max")]  # statistics of the whole score


def reward_name(runs: Sequence[Run]) -> str:
    """What the score of some text policies is called: a proxy only where a gold reward differs from it."""
    golden = [run for run in runs if len(measured(run, "gold"))]
    return "Proxy reward" if golden and all(has_proxy(run) for run in golden) else "Reward"


def _text_rewards(runs: Sequence[Run]) -> tuple[Panel, ...]:
    if all(len(measured(run, "gold")) and not has_proxy(run) for run in runs):
        return (Panel("Gold reward", "the reward that is trained on", "objective/gold", "eval/gold", GOLD),)
    title = reward_name(runs)
    trained_on = Panel(title, "the score that is trained on", "objective/score", "eval/score", PROXY)
    unit = "the true reward, for measuring only" if title == "Proxy reward" else "the true reward"
    return trained_on, Panel("Gold reward", unit, "objective/gold", "eval/gold", GOLD)


def _objectives(runs: Sequence[Run]) -> tuple[Panel, ...]:
    """Panels of each objective's score, of its weight where that is learned, and of the critic where it has a part."""
    found: list[Panel] = []
    for name in objectives(runs):
        title, shared = name.replace("_", " "), f"score_{name}"
        found += [
            Panel(f"Score: {title}", "of this objective alone", f"objective/{shared}", f"eval/{shared}", PROXY),
            Panel(f"Weight: {title}", "of the objective in the reward", f"objective/weight_{name}"),
            Panel(
                f"Explained variance: {title}",
                "of the objective's returns, by the critic",
                f"value/explained_variance_{name}",
                lowest=-1.0,
            ),
        ]
    return tuple(found)


def _monitors(runs: Sequence[Run]) -> tuple[Panel, ...]:
    """A panel for each reward that is measured beside the one that is trained on, and for an ensemble's discord."""
    settings = [run.setting("data.init_args.monitors") for run in runs]
    names = dict.fromkeys(name for setting in settings if isinstance(setting, dict) for name in setting)
    watched = [
        Panel(
            f"Monitor: {name.replace('_', ' ')}",
            "measured, not trained on",
            f"objective/{name}",
            f"eval/{name}",
            HELD_OUT,
        )
        for name in names
    ]
    discord = Panel(
        "Disagreement", "of the reward model's members", "objective/disagreement", "eval/disagreement", WARN, floor=0
    )
    return *watched, discord


def _losses(runs: Sequence[Run]) -> tuple[Panel, ...]:
    """A panel for each preference optimizer: they do not share a loss."""
    algorithms = {own_group(run): str(run.setting("model.class_path") or "").rpartition(".")[2] for run in runs}
    return tuple(
        Panel(
            f"Loss of {name or group}" if len(algorithms) > 1 else "Loss",
            "per pair",
            f"{group}/loss",
            "eval/loss",
            where=lambda run, group=group: own_group(run) == group,
        )
        for group, name in algorithms.items()
    )


def step_limit(run: Run) -> tuple[float, str] | None:
    """δ of a trust region, unless the step's size is fixed instead."""
    limit = run.setting("model.init_args.max_kl")
    fixed = run.setting("model.init_args.step_size")
    return (float(limit), f"δ = {number(float(limit))}") if isinstance(limit, int | float) and fixed is None else None


def _searches(run: Run) -> bool:
    return len(run.series("trust_region/backtracks")) > 0


WIN_RATE = Panel(
    "Win rate",
    "against the reference, 95 % interval",
    held_out="eval/win_rate",
    color=HELD_OUT,
    floor=0,
    mark=(0.5, "even"),
)
KL_TO_REFERENCE = Panel(
    "KL to the reference", "nats per sequence", "objective/kl_ref_sequence", "eval/kl_ref_sequence", KL, floor=0
)
REPLY_LENGTH = Panel("Reply length", "tokens", "rollout/length_mean", "eval/length_mean", floor=0)
PERPLEXITY = Panel("Perplexity", "on demonstrations; rises with forgetting", held_out="eval/perplexity", color=HELD_OUT)
GRADIENT = Panel("Gradient norm", "of the policy, before any clipping", "policy/grad_norm", floor=0)

UPDATE = (
    Panel("Entropy", "nats per action", "objective/entropy", floor=0),
    Panel("KL of the step", "nats per action; δ bounds it", "trust_region/kl", color=KL, floor=0, bound=step_limit),
    Panel(
        "Length of the step",
        "share of the full step; 0 where rejected",
        "trust_region/step_size",
        floor=0,
        where=_searches,
        smooth=False,
    ),
    Panel(
        "Step size",
        "factor of the natural gradient",
        "trust_region/step_size",
        floor=0,
        where=lambda run: not _searches(run),
    ),
    Panel("Rejected steps", "so far", "trust_region/rejections", floor=0, smooth=False),
    Panel(
        "Improvement",
        "of the surrogate, as a share of what is expected",
        "trust_region/improvement_actual",
        per="trust_region/improvement_expected",
        mark=(1.0, "as expected"),
        floor=0,
    ),
    Panel("Conjugate gradient", "relative residual where it stopped", "trust_region/cg_residual", floor=0),
    Panel("KL to the old policy", "nats per action, within one update", "policy/kl_old", color=KL, floor=0),
    Panel("KL penalty of the update", "β of the surrogate", "policy/kl_coef", color=KL, floor=0),
    Panel(
        "Steps of the update",
        "minibatches until KL stopped it",
        "policy/steps",
        floor=0,
        where=lambda run: run.series("policy/steps").nunique() > 1,
        smooth=False,
    ),
    Panel("Clip fraction", "share of actions at the clip", "policy/clip_fraction", floor=0),
    Panel("Largest weight", "of an action in the better policy", "policy/weight_max", floor=0),
    GRADIENT,
    Panel("Baseline", "subtracted from every return", "policy/baseline"),
    Panel("Value loss", "squared error of the critic", "value/loss", floor=0),
    Panel(
        "Explained variance",
        "of the returns, by the critic",
        "value/explained_variance",
        lowest=-1.0,
        mark=(1.0, "perfect critic"),
    ),
)

TEXT = (
    WIN_RATE,
    KL_TO_REFERENCE,
    REPLY_LENGTH,
    Panel("Replies that end themselves", "share with an end-of-sequence token", "rollout/eos_rate"),
    Panel("Distinct bigrams", "share among all; falls with repetition", "rollout/distinct_2", floor=0),
    PERPLEXITY,
    Panel("KL coefficient", "weight of the KL penalty", "kl_control/coef", color=KL, floor=0),
    Panel("Score of the best", "that are kept of each group", "objective/score_kept", color=PROXY),
    Panel("Groups that differ", "in their scores, per batch", "rollout/groups_kept", floor=0),
    *UPDATE,
)

CONTROL = (
    Panel("Return", "mean over episodes", "objective/score", "eval/score", PROXY),
    Panel("Episode length", "steps", "rollout/length_mean", "eval/length_mean", floor=0),
    *UPDATE,
)

JUDGED = (
    Panel("Gold reward", "the true reward, for measuring only", held_out="eval/gold", color=GOLD),
    Panel("Score", "of the replies; not trained on", held_out="eval/score", color=PROXY),
    WIN_RATE,
    KL_TO_REFERENCE,
)

PREFERENCE = (
    Panel("Accuracy", "share of pairs ordered rightly", "*/accuracy", "eval/accuracy", mark=(0.5, "coin toss")),
    Panel("Margin", "reward of chosen − rejected", "*/margin", "eval/margin"),
    Panel("Reward of the chosen", "β times the log ratio to the reference", "*/chosen_reward", "eval/chosen_reward"),
    Panel(
        "Reward of the rejected", "β times the log ratio to the reference", "*/rejected_reward", "eval/rejected_reward"
    ),
    Panel("Loss of the chosen", "nats per reply", "*/chosen_loss", "eval/chosen_loss"),
    Panel("Loss of the rejected", "nats per reply", "*/rejected_loss", "eval/rejected_loss"),
    REPLY_LENGTH,
    Panel("Replies that end themselves", "share with an end-of-sequence token", held_out="eval/eos_rate"),
    Panel("Distinct bigrams", "share among all; falls with repetition", held_out="eval/distinct_2", floor=0),
    PERPLEXITY,
    GRADIENT,
)

"""Everything that moves during policy training, in small multiples, for one run or several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots import panels
from rlhf_lightning.plots.style import GOLD, HELD_OUT, KL, PLAIN, PROXY, RUNS, styled
from rlhf_lightning.runs import Run


@dataclass(frozen=True)
class Panel:
    """One small multiple.

    Args:
        batch: metric of the training batches.
        held_out: the same on held-out prompts.
        floor: lowest possible value, at which the axis starts.
        lowest: where the view is cut, for a quantity without lower bound.
        mark: a value that means something, and its name.
    """

    title: str
    unit: str
    batch: str = ""
    held_out: str = ""
    color: str = PLAIN
    floor: float | None = None
    lowest: float | None = None
    mark: tuple[float, str] | None = None


PANELS = (
    Panel("Proxy reward", "the score that is trained on", "objective/score", "eval/score", PROXY),
    Panel("Gold reward", "the true reward, for measuring only", "objective/gold", "eval/gold", GOLD),
    Panel(
        "Win rate",
        "against the reference, 95 % interval",
        held_out="eval/win_rate",
        color=HELD_OUT,
        mark=(0.5, "even"),
    ),
    Panel(
        "KL to the reference",
        "nats per sequence",
        "objective/kl_ref_sequence",
        "eval/kl_ref_sequence",
        KL,
        floor=0,
    ),
    Panel("KL coefficient", "weight of the KL penalty", "kl_control/coef", color=KL, floor=0),
    Panel("KL to the old policy", "nats per action, within one update", "policy/kl_old", color=KL),
    Panel("Entropy", "nats per action", "objective/entropy", floor=0),
    Panel("Reply length", "tokens", "rollout/length_mean", "eval/length_mean", floor=0),
    Panel("Distinct bigrams", "share among all; falls with repetition", "rollout/distinct_2", floor=0),
    Panel("Clip fraction", "share of actions at the clip", "policy/clip_fraction", floor=0),
    Panel("Gradient norm", "before clipping", "policy/grad_norm", floor=0),
    Panel("Replies that end themselves", "share with an end-of-sequence token", "rollout/eos_rate"),
    Panel("Value loss", "squared error of the critic", "value/loss", floor=0),
    Panel(
        "Explained variance",
        "of the returns, by the critic",
        "value/explained_variance",
        lowest=-1.0,
        mark=(1.0, "perfect critic"),
    ),
    Panel("Perplexity", "on demonstrations; rises with forgetting", held_out="eval/perplexity", color=HELD_OUT),
)


@styled
def dashboard(runs: Run | Sequence[Run]) -> Figure:
    """Small multiples of one policy run, or of several overlaid.

    A quantity that no run logged has no panel. With one run the colours mean quantities (proxy, gold, KL); with
    several they mean runs.

    Args:
        runs: policy runs, or pipelines with one each.

    Raises:
        UserError: none of them has policy metrics.
    """
    found = [runs] if isinstance(runs, Run) else list(runs)
    policies = [policy for run in found if (policy := run.find("policy")) is not None]
    shown = [panel for panel in PANELS if any(_has(policy, panel) for policy in policies)]
    if not shown:
        raise UserError(f"{', '.join(str(run.path) for run in found)}: no policy run with metrics")
    columns = min(3, len(shown))
    key = _key(policies) if len(policies) > 1 else []
    top = 1.25 + 0.22 * math.ceil(len(key) / 4)
    figure, axes = panels.sheet(len(shown), columns=columns, size=(3.05, 1.6), top=top, gap=(0.55, 0.82))
    title = policies[0].name if len(policies) == 1 else f"{len(policies)} policy runs"
    panels.heading(figure, title, _note(policies, shown))
    last = max(float(policy.metrics[policy.axis].max()) for policy in policies if len(policy.metrics))
    for index, (panel, place) in enumerate(zip(shown, axes, strict=True)):
        lowest_row = index + columns >= len(shown)
        panels.dress(place, panel.title, panel.unit, xlabel=policies[0].axis if lowest_row else "")
        panels.counter_axis(place, last)
        for policy, color in zip(policies, _colors(policies, panel), strict=True):
            _draw(place, policy, panel, color, alone=len(policies) == 1)
        _limit(place, policies, panel)
    for index, (name, color) in enumerate(key):
        _key_entry(figure, index, name, color)
    return figure


def names(runs: Sequence[Run]) -> list[str]:
    """Names that tell the runs apart: a stage that all share is left out, equal names get their folder."""
    found = [run.name for run in runs]
    shortened = [name.removesuffix("/policy") for name in found]
    found = shortened if len(set(shortened)) == len(runs) else found
    return [
        f"{run.path.resolve().parent.name}/{name}" if found.count(name) > 1 else name
        for run, name in zip(runs, found, strict=True)
    ]


def _has(run: Run, panel: Panel) -> bool:
    return any(len(run.series(metric)) for metric in (panel.batch, panel.held_out) if metric)


def _colors(policies: Sequence[Run], panel: Panel) -> list[str]:
    if len(policies) == 1:
        return [panel.color]
    return [RUNS[index % len(RUNS)] for index in range(len(policies))]


def _key(policies: Sequence[Run]) -> list[tuple[str, str]]:
    return [(name, RUNS[index % len(RUNS)]) for index, name in enumerate(names(policies))]


def _key_entry(figure: Figure, index: int, name: str, color: str) -> None:
    """Name of a run in its colour, four to a line, under the heading."""
    width, height = figure.get_size_inches()
    row, column = divmod(index, 4)
    x, y = 0.6 + column * (width - 0.9) / 4, height - 0.9 - 0.22 * row
    shown = name if len(name) <= 30 else f"{name[:29]}…"
    figure.text(x / width, y / height, "●", color=color, size=10, va="center")
    figure.text((x + 0.17) / width, y / height, shown, color=color, size=9.5, weight="bold", va="center")


def _draw(axes: Axes, run: Run, panel: Panel, color: str, *, alone: bool) -> None:
    batch, held_out = run.series(panel.batch), run.series(panel.held_out)
    if len(held_out):
        low, high = run.series(f"{panel.held_out}_low"), run.series(f"{panel.held_out}_high")
        if len(low) and len(low) == len(high):
            axes.fill_between(low.index, low, high, color=color, alpha=0.14 if alone else 0.08, linewidth=0)
        if alone and len(batch):
            axes.plot(batch.index, batch, color=color, linewidth=0.8, alpha=0.35, zorder=2)
        panels.points(axes, held_out, color)
    else:
        panels.trace(axes, batch, color, faint=alone)


def _limit(axes: Axes, policies: Sequence[Run], panel: Panel) -> None:
    shown = []
    for policy in policies:
        metrics = [panel.held_out, f"{panel.held_out}_low", f"{panel.held_out}_high"] if panel.held_out else []
        alone = len(policies) == 1 or not len(policy.series(panel.held_out))
        shown += [policy.series(metric) for metric in [*metrics, *([panel.batch] if alone else [])]]
    include = (panel.mark[0],) if panel.mark else ()
    panels.limits(axes, shown, floor=panel.floor, lowest=panel.lowest, include=include)
    if panel.mark:
        panels.reference(axes, *panel.mark)
    panels.zero_line(axes)


def _note(policies: Sequence[Run], shown: Sequence[Panel]) -> str:
    held_out = any(len(policy.series(panel.held_out)) for policy in policies for panel in shown if panel.held_out)
    dots = "Dots: held-out prompts. " if held_out else ""
    if len(policies) > 1:
        return f"{dots}Lines without dots: training batches, moving average."
    return f"{dots}Lines: training batches, each of them (thin) and their moving average (thick)."

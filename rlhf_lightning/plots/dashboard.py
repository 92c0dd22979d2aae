"""Everything that moves during policy training, in small multiples, for one run or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots import panels
from rlhf_lightning.plots.style import GOLD, HELD_OUT, KL, PLAIN, PROXY, RUNS, styled
from rlhf_lightning.runs import Run, names


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
        floor=0,
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
    Panel("KL to the old policy", "nats per action, within one update", "policy/kl_old", color=KL, floor=0),
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
    trained = [(run, policy) for run in found if (policy := run.find("policy")) is not None]
    policies = [policy for _, policy in trained]
    labels = names([run for run, _ in trained])
    shown = [panel for panel in PANELS if any(_has(policy, panel) for policy in policies)]
    if not shown:
        raise UserError(f"{', '.join(str(run.path) for run in found)}: no policy run with metrics")
    columns = min(3, len(shown))
    gap = (0.62, 0.82)
    key = _key(labels, width=columns * 3.05 + (columns - 1) * gap[0] + 0.6) if len(policies) > 1 else []
    top = 1.25 + (0.1 + 0.24 * len({entry.line for entry in key}) if key else 0)
    figure, axes = panels.sheet(len(shown), columns=columns, size=(3.05, 1.6), top=top, gap=gap)
    title = labels[0] if len(policies) == 1 else f"{len(policies)} policy runs"
    panels.heading(figure, title, _note(policies, shown))
    last = max(float(policy.metrics[policy.axis].max()) for policy in policies if len(policy.metrics))
    for index, (panel, place) in enumerate(zip(shown, axes, strict=True)):
        lowest_row = index + columns >= len(shown)
        panels.dress(place, panel.title, panel.unit, xlabel=policies[0].axis if lowest_row else "")
        panels.counter_axis(place, last)
        for policy, color in zip(policies, _colors(policies, panel), strict=True):
            _draw(place, policy, panel, color, alone=len(policies) == 1)
        _limit(place, policies, panel)
    for entry in key:
        _draw_entry(figure, entry)
    return figure


def _has(run: Run, panel: Panel) -> bool:
    return any(len(run.series(metric)) for metric in (panel.batch, panel.held_out) if metric)


def _colors(policies: Sequence[Run], panel: Panel) -> list[str]:
    if len(policies) == 1:
        return [panel.color]
    return [RUNS[index % len(RUNS)] for index in range(len(policies))]


@dataclass(frozen=True)
class KeyEntry:
    """A run's name in its colour; ``x`` in inches from the left, lines counted from the top."""

    name: str
    color: str
    x: float
    line: int


def _key(labels: Sequence[str], *, width: float) -> list[KeyEntry]:
    """The names set one after the other, on as many lines as they need."""
    entries: list[KeyEntry] = []
    x, line = 0.0, 0
    for index, name in enumerate(labels):
        shown = name if len(name) <= 48 else f"{name[:47]}…"
        needed = 0.17 + panels.text_width(shown, size=9.5, weight="bold")
        if x > 0 and x + needed > width:
            x, line = 0.0, line + 1
        entries.append(KeyEntry(shown, RUNS[index % len(RUNS)], x, line))
        x += needed + 0.3
    return entries


def _draw_entry(figure: Figure, entry: KeyEntry) -> None:
    width, height = figure.get_size_inches()
    x, y = 0.1 + entry.x, height - 0.9 - 0.24 * entry.line
    figure.text(x / width, y / height, "●", color=entry.color, size=9, va="center_baseline")
    figure.text(
        (x + 0.17) / width,
        y / height,
        entry.name,
        color=entry.color,
        size=9.5,
        weight="bold",
        va="center_baseline",
    )


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

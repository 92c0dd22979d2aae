"""What best-of-n sampling gains: the reward that selects, and gold, by the KL that n costs."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lightning.plots.kit import panels
from rlhf_lightning.plots.kit.labels import Label, end_labels, heading
from rlhf_lightning.plots.kit.style import GOLD, MUTED, PROXY, signed, span, styled

_COLORS = {"proxy": PROXY, "gold": GOLD}


@styled
def best_of_n_gains(table: pd.DataFrame, *, name: str = "") -> Figure:
    """Gains of proxy and gold over n = 1 against √KL, with bands of 95 % over prompts.

    Gao et al. 2022, "Scaling Laws for Reward Model Overoptimization", fig. 1.

    Args:
        table: ``n``, ``kl``, and the columns of ``proxy``, of ``gold``, or of both, as `bestof` writes them.
        name: of the policy, for the note.
    """
    shown = [reward for reward in _COLORS if reward in table]
    figure, (axes,) = panels.sheet(1, columns=1, size=(5.2, 3.2), top=0.95, bottom=0.75, left=0.6, right=1.3)
    panels.dress(axes, xlabel="n, and below it KL to the policy in nats (√ scale)")
    bands = [table[f"{reward}_gain_{end}"].dropna() for reward in shown for end in ("low", "high")]
    panels.limits(axes, [*(table[f"{reward}_gain"] for reward in shown), *bands], include=(0.0,))
    axes.axhline(0, color=MUTED, linewidth=0.9, zorder=1.5)
    _kl_axis(axes, table)
    ends = []
    for reward in shown:
        color, gains = _COLORS[reward], pd.Series(table[f"{reward}_gain"].to_numpy(), index=table["kl"])
        low, high = table[f"{reward}_gain_low"], table[f"{reward}_gain_high"]
        axes.fill_between(table["kl"], low, high, color=color, alpha=0.16, linewidth=0, zorder=2)
        panels.points(axes, gains, color)
        ends.append(Label(gains.iloc[-1], reward, color, span(table[reward].iloc[0], table[reward].iloc[-1])))
    end_labels(axes, ends)
    heading(figure, _headline(table, shown), _note(name))
    return figure


def _kl_axis(axes: Axes, table: pd.DataFrame) -> None:
    """A tick at every n that has room for it."""
    furthest = max(float(table["kl"].iloc[-1]), 0.01)
    panels.kl_axis(axes, furthest)
    ticks: dict[float, str] = {}
    for n, kl in zip(table["n"], table["kl"], strict=True):
        if not ticks or math.sqrt(kl) - math.sqrt(max(ticks)) > 0.07 * math.sqrt(furthest):
            ticks[kl] = f"{n:.0f}\n{kl:.1f}".replace("\n0.0", "\n0")
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()


def _headline(table: pd.DataFrame, shown: list[str]) -> str:
    last = table.iloc[-1]
    gains = ", ".join(f"{reward} {signed(last[f'{reward}_gain'])}" for reward in shown)
    text = f"Best of {last['n']:.0f}: {gains}"
    if "gold" in shown and len(table) > 1:
        peak = table.loc[table["gold_gain"].idxmax()]
        if peak["n"] < last["n"]:
            text += f"; gold is largest at n = {peak['n']:.0f}"
    return text


def _note(name: str) -> str:
    whose = f" · {name}" if name else ""
    return f"Change of mean reward since n = 1, each reward in its own unit; bands are 95 % over prompts{whose}"

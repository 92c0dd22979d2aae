"""How often each arm does well, over tasks: the share of runs above every level at once."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from rlhf_lightning.plots.figures.arm_dots import check_columns
from rlhf_lightning.plots.kit import panels
from rlhf_lightning.plots.kit.bands import Curve, draw_band
from rlhf_lightning.plots.kit.key import draw_key, height_of, key_of
from rlhf_lightning.plots.kit.labels import heading
from rlhf_lightning.plots.kit.style import MARKERS, looks, styled

_WIDTH, _HEIGHT = 6.4, 3.4


@styled
def arm_profile(table: pd.DataFrame, *, title: str, label: str = "τ, normalized score", note: str = "") -> Figure:
    """Share of runs, over all tasks and seeds, whose score is above τ, with bands.

    A curve that lies above another everywhere belongs to the better arm whatever level one cares about; curves that
    cross tell of arms of which one is better at the bottom and the other at the top. Agarwal et al. 2021, "Deep
    Reinforcement Learning at the Edge of the Statistical Precipice", section 4.2.

    Args:
        table: ``tau``, ``arm``, ``share``, ``low``, ``high``; arms in the order in which they first appear.
        title: of the figure.
        label: of the x-axis.
        note: what else is to be said below the title.

    Raises:
        UserError: a column is missing, or there is no row.
    """
    check_columns(table, ("tau", "arm", "share", "low", "high"))
    curves = {
        str(arm): (rows.sort_values("tau").set_index("tau"), color, marker)
        for (arm, rows), (color, marker) in zip(table.groupby("arm", sort=False), looks(), strict=False)
    }
    names = [(MARKERS[marker], name, color) for name, (_, color, marker) in curves.items()]
    key = key_of(names, width=_WIDTH + 0.5)
    figure, (axes,) = panels.sheet(1, columns=1, size=(_WIDTH, _HEIGHT), top=0.95 + height_of(key), bottom=0.6)
    grown = heading(figure, title, " · ".join(filter(None, ["Share of runs above τ, with 95 % bands", note])))
    draw_key(figure, key, grown + 0.82)
    panels.dress(axes, xlabel=label)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    axes.set_xlim(float(table["tau"].min()), float(table["tau"].max()))
    axes.xaxis.set_major_formatter(panels.PlainTicks())
    for rows, color, marker in curves.values():
        drawn = Curve((rows["share"],), rows["share"], rows["low"], rows["high"])
        draw_band(axes, drawn, color, marker=marker, faint=0.0)
    return figure

"""Put figures into a page: as SVG that follows the page's light or dark colours, without clashing ids."""

from __future__ import annotations

import html
import re

from rlhf_lightning.plots.kit import style

_NIGHT_RUNS = ("#9188ee", "#e8879b", "#4fbf77", "#5bbbd9", "#c3bc4e", "#d583ca", "#cf78a4", "#9aa1a9")

NIGHT = {
    style.PAPER: "#14181d",
    style.INK: "#e6eaef",
    style.MUTED: "#9aa5b2",
    style.GRID: "#262d36",
    style.AXIS: "#4d5966",
    style.PROXY: "#5ba7e6",
    style.GOLD: "#e3a33c",
    style.WARN: "#e5766d",
    style.TRAIN: "#7d8896",
    style.HELD_OUT: "#3fb8a5",
    style.KL: "#a48be0",
    style.PLAIN: "#8fb0d1",
    **dict(zip(style.RUNS, _NIGHT_RUNS, strict=True)),
}
"""The colour that stands for each of the style's colours on a dark page."""


def variable(color: str) -> str:
    """The CSS variable of one of the style's colours, with the colour itself as fallback."""
    return f"var(--c-{color[1:]}, {color})"


def palette(*, dark: bool) -> str:
    """CSS declarations of the style's colours."""
    return " ".join(f"--c-{day[1:]}: {night if dark else day};" for day, night in NIGHT.items())


def inline(svg: str, *, prefix: str, title: str) -> str:
    """An SVG file's text as an element of a page.

    Args:
        prefix: put before every id, unique within the page.
        title: what the figure shows, for those who cannot see it.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r'(href="|url\()#', rf"\1#{prefix}-", body)
    body = re.sub(r"font-family: [^;]+; ", "", body)
    for color in NIGHT:
        body = body.replace(color, variable(color))
    size = re.search(r'viewBox="0 0 ([\d.]+) ', body)
    width = float(size.group(1)) * 4 / 3 if size else 960.0
    start = f'<svg role="img" aria-label="{html.escape(title)}" class="figure" style="max-width: {width:.0f}px" '
    body = re.sub(r' (width|height)="[\d.]+pt"', "", body, count=2)
    return start + body[len("<svg ") :]


def sparkline(values: list[float], color: str) -> str:
    """A word-sized line of a series, its last value dotted; empty for fewer than three values."""
    if len(values) < 3:
        return ""
    width, height = 88, 22
    low, high = min(values), max(values)
    values = values[:: max(1, len(values) // 100)][:-1] + values[-1:]
    step = (width - 8) / (len(values) - 1)
    scale = (height - 8) / (high - low) if high > low else 0.0
    points = [
        (4 + index * step, height - 4 - (value - low) * scale if scale else height / 2)
        for index, value in enumerate(values)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    x, y = points[-1]
    return (
        f'<svg class="spark" aria-hidden="true" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f'<polyline points="{line}" fill="none" stroke="{variable(color)}" stroke-width="1.5" '
        f'stroke-linejoin="round"/><circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" fill="{variable(color)}"/></svg>'
    )

"""The house style: one palette, one type size, one way to save.

Colours are told apart under every common colour-vision deficiency. Proxy (the score that is trained on) and gold
(the true reward) keep theirs in every figure.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
from matplotlib.figure import Figure

PAPER = "#ffffff"
INK = "#1d2733"
MUTED = "#66717f"
GRID = "#e6e9ed"
AXIS = "#aab3bd"

PROXY = "#1f6fb2"
GOLD = "#b87400"
WARN = "#b3372f"
TRAIN = "#7b8794"
HELD_OUT = "#0f7b6c"
KL = "#6a4fa3"
PLAIN = "#3d5a78"

RUNS = ("#3a2a8c", "#c4536b", "#15803d", "#2b93b5", "#8a8420", "#a8459b", "#7d2450", "#6f757c")
"""Colours of overlaid runs, in the order in which they are given (none is proxy's or gold's); the ninth starts over."""

MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖"}
"""Markers of arms, and the characters that look like them; one fewer than there are colours, so that both differ."""

TITLE_SIZE = 10.0
TEXT_SIZE = 8.5

_RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": TEXT_SIZE,
    "text.color": INK,
    "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 5),
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "path.simplify": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "rlhf_lightning",
}


def looks() -> Iterator[tuple[str, str]]:
    """Colour and marker of one arm after the other; where there are more arms than colours, another marker."""
    return zip(itertools.cycle(RUNS), itertools.cycle(MARKERS), strict=False)


P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Make a function draw in the house style, whatever the caller's matplotlib settings are."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(_RC)
            return draw(*args, **kwargs)

    return wrapper


@styled
def save(figure: Figure, path: str | Path, *, dpi: int = 200) -> tuple[Path, Path]:
    """Write ``<path>.png`` and ``<path>.svg`` and return both paths.

    Args:
        path: where to, without a suffix; missing folders are made.
        dpi: pixels per inch of the PNG.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    png, svg = path.with_name(f"{path.name}.png"), path.with_name(f"{path.name}.svg")
    figure.savefig(png, dpi=dpi, metadata={"Software": None})
    figure.savefig(svg, metadata={"Date": None})
    return png, svg


def number(value: float | None) -> str:
    """A number as text, at a meaningful precision: ``0.61``, ``12.4``, ``−0.0034``."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size >= 1000:
        text = f"{size:,.0f}"
    elif size >= 100:
        text = f"{size:.0f}"
    elif size >= 10:
        text = f"{size:.1f}"
    elif size >= 0.0995 or size < 1e-9:
        text = f"{size:.2f}"
    else:
        text = f"{size:.2g}".replace("e-0", "e−")
    return f"−{text}" if value < 0 and size >= 1e-9 else text


def span(first: float, last: float) -> str:
    """From one value to another, at one precision unless it shrinks by far: ``0.07 → 1.44``, ``126 → 1.83``."""
    size = max(abs(first), abs(last))
    if not 0.001 <= size < 1000 or abs(last) < abs(first) / 10:
        return f"{number(first)} → {number(last)}"
    places = 0 if size >= 100 else 1 if size >= 9.95 else 2 if size >= 0.0995 else 3
    return f"{fixed(first, places)} → {fixed(last, places)}"


def plus_minus(mean: float, half: float, *, sign: bool = False) -> str:
    """A mean and half the width of its interval, to two digits of the latter: ``0.810 ± 0.065``, ``487 ± 13``.

    Args:
        half: NaN where there is none; then the mean stands alone.
        sign: whether the mean is a change, and has a sign.
    """
    if not math.isfinite(half) or half <= 0:
        return signed(mean) if sign else number(mean)
    places = _places(half)
    return f"{signed(mean, places) if sign else fixed(mean, places)} ± {fixed(half, places)}"


def change_within(change: float, low: float, high: float) -> str:
    """A change with the ends of its interval, to two digits of half its width: ``+0.065 [0.012, 0.118]``."""
    half = (high - low) / 2
    places = _places(half) if math.isfinite(half) and half > 0 else 2
    return f"{signed(change, places)} [{fixed(low, places)}, {fixed(high, places)}]"


def _places(half: float) -> int:
    """Decimal places at which half the width of an interval has two digits, four at most."""
    return min(max(1 - math.floor(math.log10(half)), 0), 4)


def signed(value: float, places: int = 2) -> str:
    """A change: ``+0.34``, ``−0.05``, ``0.00``."""
    text = fixed(value, places)
    return text if float(text.replace("−", "-")) <= 0 else f"+{text}"


def fixed(value: float | None, places: int = 2) -> str:
    """A number with a fixed number of decimal places; what rounds to zero has no minus sign."""
    if value is None or not math.isfinite(value):
        return number(value)
    text = f"{value:.{places}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")

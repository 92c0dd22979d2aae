"""A key below a figure's heading: names in their colours, where lines have no room for them at their ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from rlhf_lightning.plots.kit.labels import NAME, shortened, text_width

_LINE = 0.24
"""Height of a line, in inches."""


@dataclass(frozen=True)
class KeyName:
    """A name in its colour, after a sign; ``x`` in inches from the left, lines counted from the top."""

    sign: str
    text: str
    color: str
    x: float
    line: int


def key_of(names: Sequence[tuple[str, str, str]], *, width: float) -> list[KeyName]:
    """Names set one after the other, on as many lines of some inches as they need.

    Args:
        names: sign, name and colour of each.
    """
    key: list[KeyName] = []
    x, line = 0.0, 0
    for sign, name, color in names:
        shown = shortened(name, width=width - 0.5, size=NAME, weight="bold")
        needed = 0.17 + text_width(shown, size=NAME, weight="bold")
        if x > 0 and x + needed > width:
            x, line = 0.0, line + 1
        key.append(KeyName(sign, shown, color, x, line))
        x += needed + 0.3
    return key


def height_of(key: Sequence[KeyName]) -> float:
    """The inches that its lines take."""
    return _LINE * (key[-1].line + 1) if key else 0.0


def draw_key(figure: Figure, key: Sequence[KeyName], below: float) -> None:
    """Write the names, the first line of them some inches below the figure's upper edge."""
    width, height = figure.get_size_inches()
    for name in key:
        x, y = 0.1 + name.x, (height - below - _LINE * name.line) / height
        figure.text(x / width, y, name.sign, size=9, color=name.color, va="center_baseline")
        x += 0.17
        figure.text(x / width, y, name.text, size=NAME, weight="bold", color=name.color, va="center_baseline")

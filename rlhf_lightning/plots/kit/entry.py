"""How a figure is registered, so that reports have it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from matplotlib.figure import Figure

from rlhf_lightning.records.runs import Run

Section: TypeAlias = Literal["learning", "proxy", "policy", "reward", "sft"]
"""A part of a report's page."""


@dataclass(frozen=True)
class FigureEntry:
    """A figure that reports show where the runs have its data.

    Args:
        draw: of one run (``scope`` run), of several (runs), or of several and the family to draw (family, see
            `measures.families`); raises a `UserError` where the data is missing.
        section: of the page.
        title: what the figure shows.
        name: of the file, without a suffix; that of ``draw`` by default.
        wanted: whether some runs need it at all.
    """

    draw: Callable[..., Figure]
    section: Section
    title: str
    scope: Literal["run", "runs", "family"] = "run"
    name: str = ""
    wanted: Callable[[Sequence[Run]], bool] = lambda runs: True

    @property
    def file(self) -> str:
        """Name of the file, without a suffix."""
        return self.name or self.draw.__name__

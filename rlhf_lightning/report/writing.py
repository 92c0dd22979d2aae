"""Write a report: the page and its figures, in one folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

from matplotlib.figure import Figure

from rlhf_lightning.errors import UserError
from rlhf_lightning.plots import FIGURES, FigureEntry
from rlhf_lightning.plots.kit.style import save
from rlhf_lightning.plots.measures import families
from rlhf_lightning.records.arms import arms
from rlhf_lightning.records.runs import Run, names
from rlhf_lightning.report.page import Picture, render


def write_report(runs: Sequence[Run], out: str | Path) -> Path:
    """Write ``report.html`` and its figures into a folder, and return the page's path.

    Args:
        runs: what `load_run` returned, one or several.
        out: the folder; made where it is missing.

    Raises:
        UserError: the folder cannot be written to.
    """
    out = Path(out)
    pictures = []
    try:
        for entry, name, title, draw in figures_of(runs):
            try:
                figure = draw()
            except UserError:
                continue  # The runs have no data for it; the page says what is missing.
            pictures.append(Picture(entry.section, save(figure, out / name)[1], title))
        out.mkdir(parents=True, exist_ok=True)
        page = out / "report.html"
        page.write_text(render(runs, pictures), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}") from None
    return page


Candidate: TypeAlias = tuple[FigureEntry, str, str, Callable[[], Figure]]
"""Entry, file name without suffix, title and drawing function of a figure."""


def figures_of(runs: Sequence[Run]) -> list[Candidate]:
    """Every figure that a report of these runs may have; no two have one file name."""
    found: dict[str, Candidate] = {}
    for entry, name, title, draw in _candidates(runs):
        number, file = 1, name
        while file.lower() in found:  # some file systems do not tell capitals apart
            number, file = number + 1, f"{name}-{number + 1}"
        found[file.lower()] = entry, file, title, draw
    return list(found.values())


def _candidates(runs: Sequence[Run]) -> Iterator[Candidate]:
    wanted = [entry for entry in FIGURES if entry.wanted(runs)]
    for entry in wanted:
        if entry.scope == "runs":
            yield entry, entry.file, entry.title, partial(entry.draw, runs)
    labels = dict(zip(map(id, runs), names(runs), strict=True))
    for arm in arms(runs):
        run = arm.shown
        label = labels[id(run)]
        for entry in wanted:
            if entry.scope == "run" and len(runs) == 1:
                yield entry, entry.file, entry.title, partial(entry.draw, run)
            elif entry.scope == "run":
                yield entry, f"{_slug(label)}-{entry.file}", f"{entry.title}: {label}", partial(entry.draw, run)
    all_families = families(runs)
    for family in all_families:
        for entry in wanted:
            if entry.scope == "family":
                name = entry.file if len(all_families) == 1 else f"{entry.file}-{_slug(family)}"
                yield entry, name, f"{entry.title}: {family}", partial(entry.draw, runs, family=family)


def _slug(name: str, longest: int = 60) -> str:
    """Letters, digits and hyphens, from the end of a name that is too long for a file."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-")[-longest:]

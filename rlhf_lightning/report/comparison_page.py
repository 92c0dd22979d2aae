"""A comparison of arms as one page: what was claimed, what was found, and everything needed to believe or repeat it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd

from rlhf_lightning.report.tables import columns_of, is_numeric
from rlhf_lightning.report.templates import fill, inline_figures


@dataclass(frozen=True)
class ComparisonPage:
    """What a page says of a comparison, ready to be shown. Tables are shown with their columns as they are.

    Args:
        question: that the comparison answers, in a sentence.
        source: what was published: paper, table or figure; empty where nothing was.
        link: to the source, an http(s) address; another text is not made a link.
        answer: the outcome in a sentence.
        cautions: what a reader must know before believing it, such as a budget that proves nothing.
        claims: a row for each claim: published, ours with its interval, verdict, seeds, trials, budget; a column
            ``verdict`` is set in bold.
        arms: a row for each arm.
        figures: SVG files in their order, and what each shows.
        methods: a paragraph that can go into a paper; several where empty lines part it.
        declaration: how it was declared, by name: hash, commit, date, seeds that were added later.
        failures: a row for each run that failed or diverged.
        commands: that repeat it.
        spec: the text of its declaration.
    """

    title: str
    question: str
    claims: pd.DataFrame
    arms: pd.DataFrame
    source: str = ""
    link: str = ""
    answer: str = ""
    cautions: Sequence[str] = ()
    figures: Sequence[tuple[Path, str]] = ()
    methods: str = ""
    declaration: Mapping[str, str] = field(default_factory=dict)
    failures: pd.DataFrame = field(default_factory=pd.DataFrame)
    commands: Sequence[str] = ()
    spec: str = ""


def render_comparison(page: ComparisonPage) -> str:
    """The page, as HTML text with everything in it; nothing is fetched or executed, and all text is escaped."""
    return fill(
        "comparison.html",
        title=page.title,
        question=page.question,
        source=page.source or page.link,
        link=page.link if urlsplit(page.link).scheme in ("http", "https") else "",
        answer=page.answer,
        cautions=page.cautions,
        claims=_cells(page.claims),
        arms=_cells(page.arms),
        figures=inline_figures(page.figures),
        methods=[" ".join(part.split()) for part in page.methods.split("\n\n") if part.strip()],
        declaration=page.declaration,
        failures=_cells(page.failures),
        commands=page.commands,
        spec=page.spec,
    )


def _cells(table: pd.DataFrame) -> dict[str, Any]:
    """Names, cells and alignment of a table's columns; no rows where it is empty."""
    columns = columns_of(table)
    return {
        "columns": [name for name, _ in columns],
        "right": [is_numeric(table.iloc[:, place]) for place in range(len(columns))],
        "rows": [[cells[row] for _, cells in columns] for row in range(len(table))],
    }

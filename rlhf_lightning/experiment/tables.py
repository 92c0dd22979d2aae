"""The tables of a comparison, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from rlhf_lightning.experiment.claims.base import Decision
from rlhf_lightning.experiment.claims.compared import compared
from rlhf_lightning.experiment.claims.judging import Judged
from rlhf_lightning.experiment.results import ComparisonResult, settings_in_words
from rlhf_lightning.experiment.spec import PRIMARY
from rlhf_lightning.experiment.statistics.arms import describe
from rlhf_lightning.experiment.statistics.scores import MeasureScale
from rlhf_lightning.plots.kit.style import number


def arms_rows(result: ComparisonResult) -> pd.DataFrame:
    """The arms as they are shown: numbers as text, columns that nothing has left out."""
    table, measures = result.table, list(result.experiment.measures)
    shown = pd.DataFrame({"arm": table["label"]})
    shown["seeds"] = [f"{row.seeds}" + (f" ({row.failed} failed)" if row.failed else "") for row in table.itertuples()]
    head = result.experiment.primary.metric
    shown[head] = [_with_interval(row.mean, row.low, row.high) for row in table.itertuples()]
    shown["SD over seeds"] = [number(value) for value in table["sd"]]
    if "iqm" in table:
        shown["interquartile mean"] = [_with_interval(row.iqm, row.iqm_low, row.iqm_high) for row in table.itertuples()]
    if table["published"].notna().any():
        shown["published"] = [_cell(value) for value in table["published"]]
    for name in measures:
        if name != PRIMARY:
            shown[name] = [number(value) for value in table[name]]
    units = [unit for unit in result.runs["unit"].unique() if unit]
    shown[units[0] if len(units) == 1 else "used"] = [number(value) for value in table["used"]]
    shown["seconds"] = [number(value) for value in table["seconds"]]
    shown["tuning"] = [
        f"{row.trials} trials: {settings_in_words(row.settings) or 'as shipped'}" if row.trials else "as shipped"
        for row in table.itertuples()
    ]
    return shown


def claims_rows(result: ComparisonResult) -> pd.DataFrame:
    """The claims as they are shown."""
    rows = judged_rows(result.judged)
    missing = [
        [title, "–", "–", "not judged: its arms have not run, or no run has its measure", "–", "0", ""]
        for title in result.not_judged
    ]
    return pd.concat([rows, pd.DataFrame(missing, columns=rows.columns)], ignore_index=True)


def _verdict(one: Judged) -> str:
    """What was shown, and for a claim that must hold whether it does."""
    if one.standing is None or one.verdict is Decision.UNDECIDED:
        return one.in_words()
    return f"{one.standing} ({one.in_words()})"


def judged_rows(judged: Sequence[Judged]) -> pd.DataFrame:
    """Verdicts as they are shown."""
    columns = ["claim", "published", "ours (95 % interval)", "verdict", "p", "seeds", "notes"]
    rows = [
        [
            one.claim.title,
            _cell(one.claim.published),
            f"{one.quantity}: {_with_interval(one.estimate, one.low, one.high)}",
            _verdict(one),
            _p(one.adjusted_equivalence if one.verdict is Decision.EQUIVALENT else one.adjusted_difference),
            str(len(one.seeds)),
            "; ".join(one.notes),
        ]
        for one in judged
    ]
    return pd.DataFrame(rows, columns=columns)


def described_rows(table: pd.DataFrame, scale: MeasureScale) -> pd.DataFrame:
    """The arms of a table of scores as they are shown."""
    described = describe(table, scale)
    shown = pd.DataFrame({"arm": described["arm"], "seeds": described["seeds"], "failed": described["failed"]})
    shown[scale.name] = [_with_interval(row.mean, row.low, row.high) for row in described.itertuples()]
    shown["SD over seeds"] = [number(value) for value in described["sd"]]
    if "iqm" in described:
        rows = described.itertuples()
        shown["interquartile mean"] = [_with_interval(row.iqm, row.iqm_low, row.iqm_high) for row in rows]
    shown["notes"] = described["notes"]
    return shown


def compared_rows(
    table: pd.DataFrame, scale: MeasureScale, *, baseline: str | None, margin: float | None
) -> pd.DataFrame:
    """Every arm of a table of scores against a baseline, or against every other, as they are shown."""
    return judged_rows(compared(table, scale, baseline=baseline, margin=margin))


def _with_interval(mean: float, low: float, high: float) -> str:
    if math.isnan(low):
        return number(mean)
    return f"{number(mean)} ({number(low)} to {number(high)})"


def _p(value: float | None) -> str:
    """Of what was decided, over all claims; a dash where nothing was tested."""
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return number(value) if isinstance(value, int | float) else str(value)

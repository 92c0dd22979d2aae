"""What the table at the head of a report reads from each kind of run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import pandas as pd

from rlhf_lightning.intervals import student_interval
from rlhf_lightning.plots.kit import style
from rlhf_lightning.plots.kit.style import number, plus_minus, signed, span
from rlhf_lightning.plots.measures import experience, has_proxy, measured, win_rate
from rlhf_lightning.plots.quantities import COLORS, reward_name
from rlhf_lightning.records.runs import Run
from rlhf_lightning.report.svg import sparkline


@dataclass(frozen=True)
class Cell:
    """A figure, a quieter note beside it, and a sparkline (HTML)."""

    text: str
    note: str = ""
    spark: str = ""


@dataclass(frozen=True)
class CellReader:
    """A row of the table.

    Args:
        read: reads a run's cell; None where the run lacks it.
        metric: name of the evaluated metric that it shows, where it shows one.
        values: what an arm of several seeds averages, its last value being the result; None where an average means
            nothing.
        color: of the arm's sparkline.
        suffix: of the arm's mean.
    """

    label: str
    unit: str
    read: Callable[[Run], Cell | None]
    metric: str = ""
    values: Callable[[Run], pd.Series] | None = None
    color: str = style.HELD_OUT
    suffix: str = ""

    def of(self, runs: Sequence[Run]) -> Cell | None:
        """The cell of an arm: of a single run, or of several seeds the mean with half the width of its interval."""
        if len(runs) == 1:
            return self.read(runs[0])
        if self.values is None:
            cells = [self.read(run) for run in runs]
            return cells[0] if cells and all(cell == cells[0] for cell in cells) else None
        series = [values for run in runs if len(values := self.values(run))]
        if not series:
            return None
        ends = [float(values.iloc[-1]) for values in series]
        text = f"{plus_minus(*student_interval(ends))}{self.suffix}"
        if any(len(values) > 1 for values in series):
            text = f"{number(fmean(values.iloc[0] for values in series))} → {text}"
        note = "" if len(series) == len(runs) else f"{len(series)} of {len(runs)} seeds"
        mean = pd.concat(series, axis=1).mean(axis=1)
        return Cell(text, note, sparkline(mean.to_list(), self.color))


@dataclass(frozen=True)
class TableSection:
    """The measures of one kind of run, or of kinds that share them."""

    kinds: tuple[str, ...]
    title: str
    measures: tuple[CellReader, ...]


def sections(runs: Sequence[Run]) -> tuple[TableSection, ...]:
    """The table of some runs; policies have a row for each further metric that they evaluate."""
    texts = [found for run in runs if (found := run.find("policy"))]
    text = (
        _evaluated("Gold reward", "", "gold", style.GOLD),
        CellReader("Best gold reward", "", _best_gold),
        CellReader(reward_name(texts) if texts else "Score", "", _reward, "eval/score", _score, style.PROXY),
        _evaluated("KL to the reference", "nats per sequence", "kl_ref_sequence", style.KL),
        CellReader(
            "Win rate against the reference",
            "at the end, 95 % interval",
            _win_rate,
            "eval/win_rate",
            _wins,
            suffix=" %",
        ),
        _logged("Perplexity on demonstrations", "", "eval/perplexity"),
        _evaluated("Reply length", "tokens", "length_mean", style.PLAIN),
    )
    return (
        _of_policies(runs, "Policy", ("policy", "preference"), text),
        _of_policies(runs, "Control policy", ("control",), _CONTROL),
        *_OTHERS,
    )


def _of_policies(
    runs: Sequence[Run], title: str, kinds: tuple[str, ...], measures: tuple[CellReader, ...]
) -> TableSection:
    """With a row for each evaluated metric that has none yet, except losses: those of two algorithms do not compare."""
    rows = {measure.metric or measure.label: measure for measure in measures}
    for found in (run.find(*kinds) for run in runs):
        for metric in found.panels if found else ():
            if metric.heldout and not metric.own:
                row = _logged(metric.title, metric.unit, metric.heldout, COLORS[metric.role])
                rows.setdefault(metric.heldout, row)
    return TableSection(kinds, title, (*rows.values(), CellReader("Learned from", "", _experience)))


def _evaluated(label: str, unit: str, metric: str, color: str) -> CellReader:
    """First and last value in evaluations, or in training where there are none."""
    return CellReader(
        label,
        unit,
        lambda run: _course(measured(run, metric), color),
        f"eval/{metric}",
        lambda run: measured(run, metric),
        color,
    )


def _logged(label: str, unit: str, metric: str, color: str = style.HELD_OUT) -> CellReader:
    """First and last value of a metric by its whole name."""
    return CellReader(
        label, unit, lambda run: _course(run.series(metric), color), metric, lambda run: run.series(metric), color
    )


def _course(values: pd.Series, color: str) -> Cell | None:
    if not len(values):
        return None
    if len(values) == 1:
        return Cell(number(values.iloc[0]))
    return Cell(span(values.iloc[0], values.iloc[-1]), spark=sparkline(values.to_list(), color))


def _reward(run: Run) -> Cell | None:
    return _course(_score(run), style.PROXY)


def _score(run: Run) -> pd.Series:
    """The score, where it is not gold itself."""
    score = measured(run, "score")
    return score[:0] if len(measured(run, "gold")) and not has_proxy(run) else score


def _best_gold(run: Run) -> Cell | None:
    """The highest value, and how far the run was by then."""
    gold, kl = measured(run, "gold"), measured(run, "kl_ref_sequence")
    if len(gold) < 2:
        return None
    where = int(gold.idxmax())
    far = f", {number(kl[where])} nats" if where in kl.index else ""
    return Cell(number(gold.max()), f"at {run.axis} {where:,}{far}")


def _best_return(run: Run) -> Cell | None:
    returns = measured(run, "score")
    if len(returns) < 2:
        return None
    return Cell(number(returns.max()), f"after {experience(run).count[returns.idxmax()]:,.0f} steps")


def _experience(run: Run) -> Cell | None:
    """What the run has learned from, where it counts that."""
    x_axis = experience(run)
    if x_axis.unit == run.axis or not len(x_axis.count):
        return None
    return Cell(f"{x_axis.count.iloc[-1]:,.0f}", x_axis.unit)


def _win_rate(run: Run) -> Cell | None:
    rate, note = win_rate(run)
    if not len(rate):
        return None
    return Cell(f"{100 * rate.iloc[-1]:.0f} %", note, sparkline(rate.to_list(), style.HELD_OUT))


def _wins(run: Run) -> pd.Series:
    """The last one alone, in percent: the first says that a model wins half the time against itself."""
    return 100 * win_rate(run)[0][-1:]


def _rejections(run: Run) -> Cell | None:
    rejections = run.series("trust_region/rejections")
    return Cell(f"{rejections.iloc[-1]:.0f}", f"of {len(rejections)}") if len(rejections) else None


def _accuracy(run: Run) -> Cell | None:
    cell = _course(_accuracies(run), style.HELD_OUT)
    ceiling = (run.evaluation or {}).get("ceiling")
    note = f"of {number(ceiling)} attainable" if ceiling is not None else ""
    return Cell(cell.text, note, cell.spark) if cell else None


def _accuracies(run: Run) -> pd.Series:
    """As they were logged, or else the one that was measured at the end."""
    logged, measured = run.series("eval/accuracy"), (run.evaluation or {}).get("accuracy")
    return logged if len(logged) or measured is None else pd.Series([measured])


def _calibration(run: Run) -> Cell | None:
    """As stated at the end, and what is left of it after temperature scaling."""
    measured = run.evaluation or {}
    value, scaled = measured.get("calibration_error"), measured.get("calibration_error_scaled")
    note = f"{scaled:.3f} after temperature scaling" if scaled is not None else ""
    if value is not None:
        return Cell(f"{value:.3f}", note)
    return _course(run.series("eval/calibration_error"), style.HELD_OUT)


def _bias(run: Run) -> Cell | None:
    rows = (run.evaluation or {}).get("biases") or []
    return Cell(", ".join(f"{row['name']} {signed(row['change'])}" for row in rows)) if rows else None


def _agreement(run: Run) -> Cell | None:
    members = (run.evaluation or {}).get("members") or {}
    count, agreement = len(members.get("accuracy") or []), members.get("agreement")
    return Cell(f"{100 * agreement:.0f} %", f"{count} members") if agreement is not None else None


def _pairs(run: Run) -> Cell | None:
    path = run.path / "pairs.jsonl"
    if not path.exists():
        return None
    with path.open(encoding="utf-8") as file:
        return Cell(f"{sum(1 for line in file if line.strip()):,}")


_CONTROL = (
    CellReader("Environment", "", lambda run: Cell(run.task) if run.task else None),
    _logged("Mean return", "of evaluation episodes", "eval/score", style.PROXY),
    CellReader("Best mean return", "of evaluation episodes", _best_return),
    _logged("Return in training", "with sampled actions", "objective/score", style.TRAIN),
    _evaluated("Episode length", "steps", "length_mean", style.PLAIN),
    CellReader(
        "Rejected steps",
        "of the line search",
        _rejections,
        values=lambda run: run.series("trust_region/rejections")[-1:],
    ),
)
_OTHERS = (
    TableSection(
        ("reward",),
        "Reward model",
        (
            CellReader("Held-out accuracy", "", _accuracy, values=_accuracies),
            _logged("Held-out loss", "nats per pair", "eval/loss"),
            _logged("Correlation with gold", "", "eval/correlation_gold"),
            _logged("Over-fitting", "accuracy in training − held out", "eval/accuracy_gap"),
            CellReader("Calibration error", "", _calibration, values=lambda run: run.series("eval/calibration_error")),
            CellReader("Biases", "change of score, standard deviations", _bias),
            CellReader("Agreement of members", "share of pairs, each two", _agreement),
        ),
    ),
    TableSection(("pairs",), "Preference pairs", (CellReader("Pairs", "", _pairs),)),
    TableSection(
        ("sft",),
        "Supervised fine-tuning",
        (
            _logged("Held-out perplexity", "", "eval/perplexity"),
            _logged("Held-out loss", "nats per token", "eval/loss"),
            _logged("Above the data's entropy", "nats per token", "eval/nats_above_entropy"),
        ),
    ),
)

"""The figures of a comparison, and its page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from rlhf_lightning.errors import UserError
from rlhf_lightning.experiment.declaration import SPEC
from rlhf_lightning.experiment.methods import methods
from rlhf_lightning.experiment.results import ComparisonResult
from rlhf_lightning.experiment.spec import PRIMARY
from rlhf_lightning.experiment.statistics.pooled import performance_profile
from rlhf_lightning.experiment.statistics.scores import FINISHED
from rlhf_lightning.experiment.tables import arms_rows, claims_rows
from rlhf_lightning.experiment.writing import cautions, declared_by_name
from rlhf_lightning.plots.figures.arm_dots import arm_dots
from rlhf_lightning.plots.figures.arm_profile import arm_profile
from rlhf_lightning.plots.figures.claim_intervals import claim_intervals
from rlhf_lightning.plots.figures.frontier import frontier
from rlhf_lightning.plots.figures.learning import learning_curves
from rlhf_lightning.plots.kit.style import save
from rlhf_lightning.records.files import write_atomically
from rlhf_lightning.records.runs import Run, load_run
from rlhf_lightning.report.comparison_page import ComparisonPage, render_comparison

PAGE, FIGURES = "report.html", "figures"


def figures(result: ComparisonResult) -> dict[str, Figure]:
    """The figures that the runs allow, by the names of their files; curves need the runs' directories."""
    found = {"arms": _dots(result)}
    if result.judged:
        found["claims"] = _intervals(result)
    if result.experiment.tasks[0].name:
        found["profile"] = _profile(result)
    if runs := runs_by_arm(result):
        metric = result.experiment.primary.metric
        with suppress(UserError):  # no run was evaluated twice
            found["learning_curves"] = learning_curves(runs, metric=metric)
        with suppress(UserError):  # nothing has a KL to the reference
            found["frontier"] = frontier(runs, metric=metric)
    return found


TITLES = {
    "arms": "Where the arms ended",
    "claims": "What the claims rest on",
    "profile": "How often each arm does well, over tasks",
    "learning_curves": "Learning curves",
    "frontier": "Reward against KL to the reference",
}


def runs_by_arm(result: ComparisonResult) -> dict[str, list[Run]]:
    """The finished runs whose directories are there, by the label of their arm."""
    finished = result.runs[result.runs["status"] == FINISHED]
    there = finished[[Path(path).is_dir() for path in finished["directory"]]]
    return {
        result.experiment.arms[arm].label: [load_run(path) for path in rows["directory"]]
        for arm, rows in there.groupby("arm", sort=False)
    }


def _dots(result: ComparisonResult) -> Figure:
    table = result.table
    shown = table.assign(arm=table["label"], n=table["seeds"], published=pd.to_numeric(table["published"]))
    primary, source = result.experiment.primary, result.experiment.source
    return arm_dots(shown, title=result.experiment.title, label=primary.metric, source=source.paper.partition(",")[0])


def _intervals(result: ComparisonResult) -> Figure:
    verdicts = result.verdicts
    units = [result.experiment.measures[name].metric for name in verdicts["measure"]]
    shown = verdicts.assign(unit=units, margin=pd.to_numeric(verdicts["margin"]))
    return claim_intervals(shown, title="What the claims rest on")


def _profile(result: ComparisonResult) -> Figure:
    profile = performance_profile(result.scores, result.scales[PRIMARY]).rename(columns={"threshold": "tau"})
    labels = {name: arm.label for name, arm in result.experiment.arms.items()}
    return arm_profile(profile.replace({"arm": labels}), title="How often each arm does well")


def write_page(result: ComparisonResult, folder: Path, commands: Sequence[str]) -> Path:
    """Draw all figures and write the page that shows them; returns the page.

    Args:
        folder: of the results, where tables and claims stand.
        commands: that repeat the comparison.
    """
    drawn = {name: save(figure, folder / FIGURES / name)[1] for name, figure in figures(result).items()}
    source = result.experiment.source
    page = ComparisonPage(
        title=result.experiment.title,
        question=result.experiment.question,
        claims=claims_rows(result),
        arms=arms_rows(result),
        source=", ".join(filter(None, [source.paper, source.where])),
        link=source.link,
        answer=answer(result),
        cautions=cautions(result),
        figures=[(path, TITLES[name]) for name, path in drawn.items()],
        methods=methods(result),
        declaration=declared_by_name(result.declaration),
        failures=result.failed[["arm", "task", "seed", "note", "directory"]],
        commands=commands,
        spec=(folder / SPEC).read_text(encoding="utf-8"),
    )
    write_atomically(folder / PAGE, render_comparison(page))
    return folder / PAGE


def answer(result: ComparisonResult) -> str:
    """The outcome in a sentence: how many claims held, were contradicted and are undecided."""
    counts = Counter(str(one.standing or one.in_words().partition(":")[0]) for one in result.judged)
    if not counts:
        return "No claim could be judged yet."
    return f"Of {counts.total()} claims: {', '.join(f'{count} {word}' for word, count in counts.most_common())}."

"""What came out of a sweep: its table, the best trial, and what each parameter had to do with it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.importance import get_param_importances
from optuna.trial import TrialState

from rlhf_lightning.plots.figures.parallel_coordinates import Axis, parallel_coordinates
from rlhf_lightning.plots.kit.style import save
from rlhf_lightning.sweep.distributions import in_order
from rlhf_lightning.sweep.search import Search
from rlhf_lightning.sweep.space import Space
from rlhf_lightning.sweep.study import REASON, SCORES, VALUES

ENOUGH = 10
"""Complete trials for each parameter, below which the importance of parameters is a guess."""

_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "given up",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}


def trials_table(study: optuna.Study, search: Search) -> pd.DataFrame:
    """One row per trial: ``trial``, ``state``, the metric, each parameter, the seconds it took, and why it failed.

    A trial that was given up has the value that it had then. Where a trial has several seeds, ``seed 1``, ``seed 2``, …
    are the metric of each.
    """
    rows = []
    for trial in study.get_trials(deepcopy=False):
        row: dict[str, Any] = {"trial": trial.number, "state": _STATES.get(trial.state, "waiting")}
        row[search.metric] = trial.value if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) else None
        row |= parameters_of(search.space, trial.user_attrs.get(VALUES, {}))
        scores = trial.user_attrs.get(SCORES, [])
        row |= {f"seed {place}": score for place, score in enumerate(scores, 1) if len(scores) > 1}
        row["seconds"] = None if trial.duration is None else round(trial.duration.total_seconds(), 1)
        rows.append({**row, REASON: trial.user_attrs.get(REASON)})
    return pd.DataFrame(rows).dropna(axis="columns", how="all") if rows else pd.DataFrame()


def parameters_of(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """The value of each parameter that is searched, by its name, from the values by the keys of a command line.

    What has no order is text, a class with its arguments as one would call it.
    """
    found = {name: _inside(values, space.nested.get(name, (name,))) for name in space.searched}
    return {name: value if in_order(space.searched[name].ends()) else _text(value) for name, value in found.items()}


def _text(value: Any) -> str:
    """A value in a few words."""
    if not isinstance(value, Mapping) or "class_path" not in value:
        return str(value)
    arguments = ", ".join(f"{name}={_text(one)}" for name, one in (value.get("init_args") or {}).items())
    name = str(value["class_path"]).rpartition(".")[2]
    return f"{name}({arguments})" if arguments else name


def _inside(values: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def importances(study: optuna.Study) -> dict[str, float]:
    """The share of each parameter in what sets the best trials apart from the others; empty where too few are complete.

    By PED-ANOVA (Watanabe et al. 2023), which needs no model of the trials.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < 3 or len({trial.value for trial in complete}) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_param_importances(study)


def is_guess(study: optuna.Study) -> bool:
    """Whether there are too few complete trials to say what a parameter does."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return len(complete) < ENOUGH * max((len(trial.params) for trial in complete), default=1)


def draw(study: optuna.Study, search: Search, folder: Path) -> tuple[Path, ...]:
    """Draw the trials into a folder; returns the files, none where there is nothing to draw."""
    table = trials_table(study, search)
    axes = axes_of(search.space, table)
    if not axes:
        return ()
    figure = parallel_coordinates(
        table,
        axes,
        search.metric,
        maximize=search.goal == "maximize",
        name=folder.name,
        title="What was tried, and how far it came",
    )
    return save(figure, folder / "parallel_coordinates")


def axes_of(space: Space, table: pd.DataFrame) -> list[Axis]:
    """The axes of a parallel-coordinates figure: one per parameter that was searched."""
    axes = []
    titles = short_names(list(space.searched))
    for name, one in space.searched.items():
        if in_order(one.ends()):
            log = one.logarithmic and float(table[name].min()) > 0
            axes.append(Axis(name, log=log, title=titles[name]))
        else:
            axes.append(Axis(name, choices=tuple(map(_text, one.ends())), title=titles[name]))
    return axes


def short_names(names: list[str]) -> dict[str, str]:
    """Names without what stands in front, as far as they still tell the parameters apart."""
    parts = {name: [part for part in name.split(".") if part != "init_args"] for name in names}
    kept = dict.fromkeys(names, 1)
    while longer := [name for name in names if _clashes(name, parts, kept) and kept[name] < len(parts[name])]:
        for name in longer:
            kept[name] += 1
    return {name: ".".join(parts[name][-kept[name] :]) for name in names}


def _clashes(name: str, parts: Mapping[str, list[str]], kept: Mapping[str, int]) -> bool:
    own = parts[name][-kept[name] :]
    return any(other != name and parts[other][-kept[other] :] == own for other in parts)

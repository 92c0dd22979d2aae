"""Read and check a declaration: ``experiments/NAME.yaml``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError, suggestion
from rlhf_lightning.experiment.arms import read_arms, read_groups
from rlhf_lightning.experiment.claims.reading import read_claims
from rlhf_lightning.experiment.measures import Measure, read_measures, read_primary
from rlhf_lightning.experiment.spec import (
    PRIMARY,
    UNITS,
    Budget,
    DeclaredArm,
    Experiment,
    PublishedSource,
    TaskEntry,
    Tuning,
)
from rlhf_lightning.experiment.spec_parts import check_keys, matching, names_in, one_of, sections_in
from rlhf_lightning.records.config_files import find_file, read_config
from rlhf_lightning.records.run_directory import STAGES
from rlhf_lightning.sweep.space import read_space

_WORDS = ("title", "question", "source")
_RUNS = ("config", "tasks", "pipeline", "arms", "groups", "baseline", "seeds", "equal", "tune", "budgets")
_JUDGEMENT = ("metric", "measures", "margin", "claims")
DEFAULT_SEEDS = 10


def read_experiment(path: str | Path, *, name: str | None = None) -> Experiment:
    """Read and check a declaration.

    Args:
        name: that of the file, if not given.

    Raises:
        UserError: see each part; the message names the place.
    """
    file = find_file(path, "experiments", str(path))
    return experiment_of(read_config(file), name or file.stem, str(path))


def experiment_of(content: Mapping[str, Any], name: str, path: str) -> Experiment:
    """The comparison that a declaration's content describes.

    Args:
        path: where the content stands, for messages.

    Raises:
        UserError: see `read_experiment`.
    """
    check_keys(content, (*_WORDS, *_RUNS, *_JUDGEMENT), path, required=("title", "arms", "metric"))
    arms = read_arms(content["arms"], f"{path}: arms")
    groups = read_groups(content.get("groups") or {}, arms, f"{path}: groups")
    primary = read_primary(content["metric"], f"{path}: metric", name=PRIMARY)
    measures = {PRIMARY: primary, **read_measures(content.get("measures") or {}, f"{path}: measures")}
    margin = _margin(content.get("margin"), f"{path}: margin")
    claims = read_claims(content.get("claims") or [], arms=[*arms, *groups], measures=list(measures), margin=margin)
    tasks = _tasks(content.get("tasks"), f"{path}: tasks")
    budgets = _budgets(content, arms, [task.name for task in tasks], path)
    tuning = _tuning(content.get("tune"), arms, measures, f"{path}: tune")
    baseline = str(content.get("baseline", next(iter(arms))))
    if baseline not in arms:
        raise UserError(f"{path}: baseline {baseline}: {suggestion(baseline, arms, otherwise=one_of(arms))}")
    for budget in budgets.values():
        if tuning and (both := sorted({*tuning.seeds} & {*budget.seeds})):
            raise UserError(f"{path}: tune.seeds {both} are seeds of the result, too; expected others")
    equal = content.get("equal")
    if equal is not None and equal not in UNITS:
        raise UserError(f"{path}: equal {equal!r}; {suggestion(str(equal), UNITS, otherwise=one_of(UNITS))}")
    return Experiment(
        name=name,
        content=content,
        title=str(content["title"]),
        question=str(content.get("question", "")),
        source=_source(content.get("source") or {}, f"{path}: source"),
        configs=names_in(content.get("config")),
        tasks=tasks,
        pipeline=sections_in(content.get("pipeline") or {}, f"{path}: pipeline"),
        arms=arms,
        groups=groups,
        baseline=baseline,
        measures=measures,
        equal=equal,
        margin=margin,
        claims=claims,
        tuning=tuning,
        budgets=budgets,
    )


def _source(content: Any, place: str) -> PublishedSource:
    check_keys(content, ("paper", "where", "link"), place)
    return PublishedSource(**{key: str(value) for key, value in content.items()})


def _margin(value: Any, place: str) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
        raise UserError(f"{place} {value!r}; expected the smallest difference that matters, a number")
    return None if value is None else float(value)


def _tasks(content: Any, place: str) -> list[TaskEntry]:
    """The tasks; one without a name where the declaration has none."""
    if content is None:
        return [TaskEntry("", [], {}, (0.0, 1.0))]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{place}: expected a mapping of names to {{config: FILE.yaml, scale: [RANDOM, BEST]}}")
    found = []
    for name, entry in content.items():
        check_keys(entry, ("config", "scale", *STAGES), f"{place}.{name}", required=("config", "scale"))
        scale = entry["scale"]
        if not (isinstance(scale, list) and len(scale) == 2 and scale[0] != scale[1]):
            raise UserError(f"{place}.{name}.scale is {scale!r}; expected two values, those that count as 0 and as 1")
        sections = sections_in({key: entry[key] for key in STAGES if key in entry}, f"{place}.{name}")
        found.append(TaskEntry(str(name), names_in(entry["config"]), sections, (float(scale[0]), float(scale[1]))))
    return found


def _budgets(
    content: Mapping[str, Any], arms: Mapping[str, DeclaredArm], tasks: Sequence[str], path: str | Path
) -> dict[str, Budget]:
    usual = seeds_from(content.get("seeds", DEFAULT_SEEDS), f"{path}: seeds")
    budgets = {}
    for name, entry in (content.get("budgets") or {"paper": {}}).items():
        place, own = f"{path}: budgets.{name}", {} if entry is None else entry
        check_keys(own, ("seeds", "arms", "arms_only", "tasks_only", "trials", *STAGES), place)
        for arm in own.get("arms") or {}:
            if arm not in arms:
                raise UserError(f"{place}.arms: no arm {arm}; {suggestion(str(arm), arms, otherwise=one_of(arms))}")
        budgets[str(name)] = Budget(
            name=str(name),
            seeds=seeds_from(own["seeds"], f"{place}.seeds") if "seeds" in own else usual,
            pipeline=sections_in({key: own[key] for key in STAGES if key in own}, place),
            arms={arm: sections_in(each, f"{place}.arms.{arm}") for arm, each in (own.get("arms") or {}).items()},
            trials=None if own.get("trials") is None else _count(own["trials"], f"{place}.trials"),
            arms_only=_only(own.get("arms_only"), list(arms), f"{place}.arms_only: no arm"),
            tasks_only=_only(own.get("tasks_only"), tasks, f"{place}.tasks_only: no task"),
        )
    return budgets


def _only(patterns: Any, names: Sequence[str], refusal: str) -> tuple[str, ...] | None:
    """What a budget is limited to; None where it is not."""
    return tuple(matching(patterns, names, refusal)) or None


def seeds_from(value: Any, place: str) -> tuple[int, ...]:
    """Seeds from their number (1 to N) or from a list.

    Raises:
        UserError: neither, or a seed stands there twice.
    """
    if isinstance(value, list):
        if not value or len(set(value)) < len(value) or not all(isinstance(seed, int) for seed in value):
            raise UserError(f"{place} {value}; expected whole numbers, each once")
        return tuple(value)
    return tuple(range(1, _count(value, place) + 1))


def _count(value: Any, place: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{place} {value!r}; expected a whole number of at least 1")
    return value


def _tuning(
    content: Any, arms: Mapping[str, DeclaredArm], measures: Mapping[str, Measure], place: str
) -> Tuning | None:
    if content is None:
        return None
    check_keys(content, ("trials", "seeds", "measure", "space"), place, required=("trials", "seeds", "space"))
    measure = str(content.get("measure", PRIMARY))
    if measure not in measures:
        raise UserError(f"{place}.measure {measure}: {suggestion(measure, measures, otherwise=one_of(measures))}")
    spaces = content["space"]
    check_keys(spaces, list(arms), f"{place}.space")
    if not spaces:
        raise UserError(f"{place}.space is empty; expected what is searched for each arm")
    return Tuning(
        trials=_count(content["trials"], f"{place}.trials"),
        seeds=seeds_from(content["seeds"], f"{place}.seeds"),
        measure=measure,
        spaces={arm: read_space(space, f"{place}.space.{arm}") for arm, space in spaces.items()},
    )

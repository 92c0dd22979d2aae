"""What is compared, as it is declared before it runs: a file ``experiments/NAME.yaml``."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias

from rlhf_lightning.errors import UserError, suggestion
from rlhf_lightning.experiment.claims.base import ArmClaim
from rlhf_lightning.experiment.claims.reading import read_claims
from rlhf_lightning.experiment.measures import Measure, read_measures, read_primary
from rlhf_lightning.pipeline.stages import dotted
from rlhf_lightning.records.config_files import find_config, read_config
from rlhf_lightning.records.run_directory import STAGES
from rlhf_lightning.sweep.space import Space, read_space

Sections: TypeAlias = dict[str, dict[str, Any]]
"""Settings by stage (sft, pairs, reward, policy), by dotted key."""

PRIMARY = "primary"
"""The name of the primary measure."""

UNITS = {
    "samples": "sampled responses",
    "env_steps": "environment steps",
    "pairs": "preference pairs",
    "labels": "labelled responses",
    "seconds": "seconds",
}
"""What an equal budget may be counted in, and how runs call it."""

_WORDS = ("title", "question", "source")
_RUNS = ("config", "tasks", "pipeline", "arms", "groups", "baseline", "seeds", "equal", "tune", "budgets")
_JUDGEMENT = ("metric", "measures", "margin", "claims")
DEFAULT_SEEDS = 10


@dataclass(frozen=True)
class Source:
    """Where the comparison was published; empty texts where it was not."""

    paper: str = ""
    where: str = ""
    link: str = ""


@dataclass(frozen=True)
class TaskEntry:
    """One of several tasks that the arms are compared on.

    Args:
        scale: values of the primary measure that count as 0 and as 1 where tasks are pooled.
    """

    name: str
    configs: list[str]
    pipeline: Sections
    scale: tuple[float, float]


@dataclass(frozen=True)
class Arm:
    """What is compared: a pipeline whose last stage is measured.

    Args:
        pipeline: settings that differ from those of the experiment, by stage.
        published: the value of the primary measure in the source.
    """

    name: str
    label: str
    pipeline: Sections
    published: float | None = None


@dataclass(frozen=True)
class Tuning:
    """A search that costs every arm the same.

    Args:
        trials: number of settings that are tried for each arm; the first is the arm as shipped.
        seeds: that each setting is tried on; none of them is a seed of the result.
        spaces: what is searched, by arm, of its last stage; an arm that is missing stays as shipped.
    """

    trials: int
    seeds: tuple[int, ...]
    measure: str
    spaces: dict[str, Space]


@dataclass(frozen=True)
class Budget:
    """How much a comparison may cost.

    Args:
        pipeline: settings by stage, for all arms.
        arms: settings by stage, for single arms.
        trials: of the tuning, where they are not those of the experiment.
    """

    name: str
    seeds: tuple[int, ...]
    pipeline: Sections = field(default_factory=dict)
    arms: dict[str, Sections] = field(default_factory=dict)
    trials: int | None = None


@dataclass(frozen=True)
class Experiment:
    """A declared comparison.

    Args:
        name: of the file.
        content: of the file, as it was read.
        groups: arms whose mean counts as one more arm, by its name.
        measures: by name; the primary one first.
        equal: what equal budgets are counted in, one of `UNITS`; None where they are not equal.
        margin: the smallest difference of the primary measure that matters.
    """

    name: str
    content: Mapping[str, Any]
    title: str
    question: str
    source: Source
    configs: list[str]
    tasks: list[TaskEntry]
    pipeline: Sections
    arms: dict[str, Arm]
    groups: dict[str, list[str]]
    baseline: str
    measures: dict[str, Measure]
    equal: str | None
    margin: float | None
    claims: list[ArmClaim]
    tuning: Tuning | None
    budgets: dict[str, Budget]

    @property
    def primary(self) -> Measure:
        """The measure that arms are compared by."""
        return self.measures[PRIMARY]

    def budget(self, name: str) -> Budget:
        """One of the budgets.

        Raises:
            UserError: there is none of this name.
        """
        if name not in self.budgets:
            expected = f"expected one of {', '.join(self.budgets)}"
            raise UserError(f"--budget {name}: {suggestion(name, self.budgets, otherwise=expected)}")
        return self.budgets[name]

    def sections(
        self, arm: Arm, budget: Budget, task: TaskEntry, settings: Mapping[str, Any] | None = None
    ) -> Sections:
        """Everything that is set for an arm, by stage, later layers on top.

        Args:
            settings: of the last stage, such as those that tuning has chosen.
        """
        layers = [self.pipeline, task.pipeline, budget.pipeline, arm.pipeline, budget.arms.get(arm.name, {})]
        merged = overlaid(*layers)
        return overlaid(merged, {measured_stage(merged): dict(settings or {})})


def measured_stage(sections: Sections) -> str:
    """The last stage of a pipeline."""
    return [stage for stage in STAGES if stage in sections][-1]


def overlaid(*layers: Mapping[str, Mapping[str, Any]]) -> Sections:
    """Settings by stage, later layers on top; a key that is set anew replaces all that was set below it."""
    result: Sections = {}
    for layer in layers:
        for stage, settings in layer.items():
            merged = result.setdefault(stage, {})
            for key, value in dotted(settings):
                for old in [name for name in merged if name == key or name.startswith(f"{key}.")]:
                    del merged[old]
                merged[key] = value
    return result


# -- reading -----------------------------------------------------------------------------------------------------------


def read_experiment(path: str | Path, *, name: str | None = None) -> Experiment:
    """Read and check a declaration.

    Args:
        name: that of the file, if not given.

    Raises:
        UserError: see each part; the message names the place.
    """
    file = find_config(path)
    content = read_config(file)
    check_keys(content, (*_WORDS, *_RUNS, *_JUDGEMENT), str(path), required=("title", "arms", "metric"))
    arms = _arms(content["arms"], f"{path}: arms")
    groups = _groups(content.get("groups") or {}, arms, f"{path}: groups")
    primary = read_primary(content["metric"], f"{path}: metric", name=PRIMARY)
    measures = {PRIMARY: primary, **read_measures(content.get("measures") or {}, f"{path}: measures")}
    margin = _margin(content.get("margin"), f"{path}: margin")
    claims = read_claims(content.get("claims") or [], arms=[*arms, *groups], measures=list(measures), margin=margin)
    budgets = _budgets(content, arms, path)
    tuning = _tuning(content.get("tune"), arms, measures, f"{path}: tune")
    baseline = str(content.get("baseline", next(iter(arms))))
    if baseline not in arms:
        raise UserError(f"{path}: baseline {baseline}: {suggestion(baseline, arms, otherwise=_one_of(arms))}")
    for budget in budgets.values():
        if tuning and (both := sorted({*tuning.seeds} & {*budget.seeds})):
            raise UserError(f"{path}: tune.seeds {both} are seeds of the result, too; expected others")
    equal = content.get("equal")
    if equal is not None and equal not in UNITS:
        raise UserError(f"{path}: equal {equal!r}; {suggestion(str(equal), UNITS, otherwise=_one_of(UNITS))}")
    return Experiment(
        name=name or file.stem,
        content=content,
        title=str(content["title"]),
        question=str(content.get("question", "")),
        source=_source(content.get("source") or {}, f"{path}: source"),
        configs=_list(content.get("config")),
        tasks=_tasks(content.get("tasks"), f"{path}: tasks"),
        pipeline=_sections(content.get("pipeline") or {}, f"{path}: pipeline"),
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


def check_keys(content: Any, known: Sequence[str], place: str, required: Sequence[str] = ()) -> None:
    """Refuse what is no mapping, keys that are unknown, and those that are missing.

    Raises:
        UserError: one of these; the message names the place.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{place} is {content!r}; expected a mapping with {', '.join(known)}")
    for key in content:
        if key not in known:
            raise UserError(f"{place}: unknown key {key!r}; {suggestion(str(key), known, otherwise=_one_of(known))}")
    for key in required:
        if key not in content:
            raise UserError(f"{place}: {key} is missing")


def _one_of(names: Sequence[str] | Mapping[str, Any]) -> str:
    return f"expected one of {', '.join(names)}"


def _list(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _source(content: Any, place: str) -> Source:
    check_keys(content, ("paper", "where", "link"), place)
    return Source(**{key: str(value) for key, value in content.items()})


def _margin(value: Any, place: str) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
        raise UserError(f"{place} {value!r}; expected the smallest difference that matters, a number")
    return None if value is None else float(value)


def _sections(content: Any, place: str) -> Sections:
    """Settings by stage, with dotted keys."""
    check_keys(content, STAGES, place)
    for stage, section in content.items():
        if not isinstance(section, Mapping):
            raise UserError(
                f"{place}.{stage} is {section!r}; expected a mapping of settings, such as config: FILE.yaml"
            )
    return overlaid(content)


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
        sections = _sections({key: entry[key] for key in STAGES if key in entry}, f"{place}.{name}")
        found.append(TaskEntry(str(name), _list(entry["config"]), sections, (float(scale[0]), float(scale[1]))))
    return found


# -- arms --------------------------------------------------------------------------------------------------------------


def _arms(content: Any, place: str) -> dict[str, Arm]:
    if not isinstance(content, Mapping) or len(content) == 0:
        raise UserError(f"{place}: expected a mapping of names to settings, such as ppo: {{policy: {{config: …}}}}")
    found: dict[str, Arm] = {}
    for name, entry in content.items():
        for arm_name, own in _filled_in(str(name), {} if entry is None else entry, f"{place}.{name}"):
            check_keys(own, ("label", "published", *STAGES), f"{place}.{name}")
            if arm_name in found or "/" in arm_name:
                raise UserError(f"{place}: {arm_name!r}; expected names that differ, without /")
            sections = _sections({key: own[key] for key in STAGES if key in own}, f"{place}.{name}")
            published = own.get("published")
            if published is not None and not isinstance(published, int | float):
                raise UserError(f"{place}.{name}.published is {published!r}; expected a number")
            found[arm_name] = Arm(arm_name, str(own.get("label", arm_name)), sections, published)
    return found


def _filled_in(name: str, entry: Any, place: str) -> Iterator[tuple[str, Any]]:
    """An arm, or one for each combination of the values under ``for``, which stand for {NAMES} in braces."""
    values = entry.get("for") if isinstance(entry, Mapping) else None
    if values is None:
        yield name, entry
        return
    if not isinstance(values, Mapping) or not all(isinstance(each, list) and each for each in values.values()):
        raise UserError(f"{place}.for: expected a mapping of names to lists of values")
    rest = {key: value for key, value in entry.items() if key != "for"}
    for combination in itertools.product(*values.values()):
        chosen = dict(zip(values, combination, strict=True))
        yield _with_values(name, chosen, place), _with_values(rest, chosen, place)


def _with_values(content: Any, values: Mapping[str, Any], place: str) -> Any:
    """Content with values in the place of their names in braces; a text that is only a name becomes the value."""
    if isinstance(content, Mapping):
        return {key: _with_values(value, values, place) for key, value in content.items()}
    if isinstance(content, list):
        return [_with_values(value, values, place) for value in content]
    if not isinstance(content, str):
        return content
    if content[1:-1] in values and content == f"{{{content[1:-1]}}}":
        return values[content[1:-1]]
    try:
        return content.format_map(values)
    except (KeyError, ValueError, IndexError):
        raise UserError(f"{place}: {content!r}; expected names in braces from {', '.join(values)}") from None


def _groups(content: Any, arms: Mapping[str, Arm], place: str) -> dict[str, list[str]]:
    """Arms by group; members are names or patterns such as ``npg-*``."""
    if not isinstance(content, Mapping):
        raise UserError(f"{place}: expected a mapping of names to arms")
    groups: dict[str, list[str]] = {}
    for name, patterns in content.items():
        if name in arms:
            raise UserError(f"{place}.{name} is the name of an arm, too; expected another")
        members = [arm for pattern in _list(patterns) for arm in arms if fnmatchcase(arm, pattern)]
        for pattern in _list(patterns):
            if not any(fnmatchcase(arm, pattern) for arm in arms):
                raise UserError(
                    f"{place}.{name}: no arm {pattern}; {suggestion(pattern, arms, otherwise=_one_of(arms))}"
                )
        groups[str(name)] = list(dict.fromkeys(members))
    return groups


# -- budgets and tuning ------------------------------------------------------------------------------------------------


def _budgets(content: Mapping[str, Any], arms: Mapping[str, Arm], path: str | Path) -> dict[str, Budget]:
    usual = seeds_from(content.get("seeds", DEFAULT_SEEDS), f"{path}: seeds")
    budgets = {}
    for name, entry in (content.get("budgets") or {"paper": {}}).items():
        place, own = f"{path}: budgets.{name}", {} if entry is None else entry
        check_keys(own, ("seeds", "arms", "trials", *STAGES), place)
        for arm in own.get("arms") or {}:
            if arm not in arms:
                raise UserError(f"{place}.arms: no arm {arm}; {suggestion(str(arm), arms, otherwise=_one_of(arms))}")
        budgets[str(name)] = Budget(
            name=str(name),
            seeds=seeds_from(own["seeds"], f"{place}.seeds") if "seeds" in own else usual,
            pipeline=_sections({key: own[key] for key in STAGES if key in own}, place),
            arms={arm: _sections(each, f"{place}.arms.{arm}") for arm, each in (own.get("arms") or {}).items()},
            trials=None if own.get("trials") is None else _count(own["trials"], f"{place}.trials"),
        )
    return budgets


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


def _tuning(content: Any, arms: Mapping[str, Arm], measures: Mapping[str, Measure], place: str) -> Tuning | None:
    if content is None:
        return None
    check_keys(content, ("trials", "seeds", "measure", "space"), place, required=("trials", "seeds", "space"))
    measure = str(content.get("measure", PRIMARY))
    if measure not in measures:
        raise UserError(f"{place}.measure {measure}: {suggestion(measure, measures, otherwise=_one_of(measures))}")
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


def with_seeds(budget: Budget, seeds: Sequence[int]) -> Budget:
    """A budget with other seeds."""
    return replace(budget, seeds=tuple(seeds))

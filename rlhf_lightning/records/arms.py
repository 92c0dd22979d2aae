"""Which runs are one arm of a comparison: those that differ in nothing but the seed. Imports no torch."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lightning.records.run_plan import changes_no_number, flattened
from rlhf_lightning.records.runs import Run, names

SEED = "seed_everything"
"""Key of a run's seed in its configuration."""


@dataclass(frozen=True)
class Arm:
    """Runs that are the same but for their seeds.

    Args:
        runs: one for each seed, sorted by it.
    """

    name: str
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """The runs' seeds in their order; None where a run has none."""
        return tuple(seed_of(run) for run in self.runs)

    @property
    def shown(self) -> Run:
        """The run to be shown where only one can be: the first that finished, or else the first."""
        return next((run for run in self.runs if run.done), self.runs[0])


def seed_of(run: Run) -> int | None:
    """The seed that a run, or the policy's stage of a pipeline, was started with; None where there is none."""
    for part in (run.policy, run, *run.stages.values()):
        seed = part.setting(SEED) if part is not None else None
        if isinstance(seed, int) and not isinstance(seed, bool):
            return seed
    return None


def arms(runs: Sequence[Run]) -> list[Arm]:
    """Group runs that differ in the seed alone, in the order in which their first ones are given.

    What says where a run is kept, and what changes no number, is not compared. A path among the settings, such as a
    checkpoint, is compared without the run's own folder and without the part of a folder's name that is the run's
    seed: ``runs/sft-s1`` in the run of seed 1 and ``runs/sft-s2`` in that of seed 2 are the same.

    Two runs of one seed are never one arm: where seeds repeat within a group, the runs' names tell its arms apart.
    A run without a seed or a configuration is an arm by itself.
    """
    labels = dict(zip(map(id, runs), names(runs), strict=True))
    groups: list[tuple[_Settings, list[Run]]] = []
    for run in runs:
        settings = _Settings.of(run)
        alike = next((members for other, members in groups if settings.same_but_for_the_seed(other)), None)
        if alike is None:
            groups.append((settings, [run]))
        else:
            alike.append(run)
    found = [part for _, group in groups for part in _of_distinct_seeds(group, labels)]
    place = {id(run): number for number, run in enumerate(runs)}
    found.sort(key=lambda part: place[id(part[0])])
    titles = _titles(found, labels)
    return [Arm(title, tuple(sorted(part, key=_by_seed))) for title, part in zip(titles, found, strict=True)]


def _by_seed(run: Run) -> int:
    return seed_of(run) or 0


def _of_distinct_seeds(group: Sequence[Run], labels: Mapping[int, str]) -> list[list[Run]]:
    """A group as it is; by the runs' names where seeds repeat; run by run where they repeat even so."""
    if _distinct(group):
        return [list(group)]
    by_name: dict[str, list[Run]] = {}
    for run in group:
        by_name.setdefault(_unseeded(labels[id(run)], seed_of(run)), []).append(run)
    parts = [[part] if _distinct(part) else [[run] for run in part] for part in by_name.values()]
    return list(itertools.chain.from_iterable(parts))


def _distinct(runs: Sequence[Run]) -> bool:
    return len({seed_of(run) for run in runs}) == len(runs)


# -- what is compared ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Settings:
    """What a run and its stages were told.

    Args:
        given: values by dotted keys, without the seed and what changes no number.
        seedless: the same, with the run's own folder and its seed taken out of paths.
        comparable: whether there are any, and a seed.
    """

    given: dict[str, Any]
    seedless: dict[str, Any]
    comparable: bool

    @classmethod
    def of(cls, run: Run) -> _Settings:
        seed, own = seed_of(run), _place(run).parts[-2:]
        given = {
            f"{stage}:{key}": value
            for stage, part in {"": run, **run.stages}.items()
            for key, value in flattened(part.config)
            if key != SEED and not changes_no_number(key)
        }
        seedless = {key: _seedless(value, seed, own) for key, value in given.items()}
        return cls(given, seedless, comparable=seed is not None and len(given) > 0)

    def same_but_for_the_seed(self, other: _Settings) -> bool:
        """Whether each setting is the same as it was given, or once the seed is taken out of it."""
        return (
            self.comparable
            and other.comparable
            and self.given.keys() == other.given.keys()
            and all(
                value == other.given[key] or self.seedless[key] == other.seedless[key]
                for key, value in self.given.items()
            )
        )


def _place(run: Run) -> Path:
    """The folder that is the run's own: a stage's is that of its pipeline."""
    place = run.path.resolve()
    return place.parent if "/" in run.name else place  # the name of a stage is PIPELINE/STAGE


def _seedless(value: Any, seed: int | None, own: Sequence[str]) -> Any:
    """A value with the seed, and the two folders that are the run's own, taken out of the paths in it."""
    if isinstance(value, Mapping):
        return {key: _seedless(item, seed, own) for key, item in value.items()}
    if isinstance(value, list):
        return [_seedless(item, seed, own) for item in value]
    if not isinstance(value, str) or "/" not in value:
        return value
    parts = list(Path(value).parts)
    for at in range(len(parts) - 1):
        if parts[at : at + 2] == list(own):
            parts[: at + 2] = []
            break
    return "/".join(_unseeded(part, seed) for part in parts)


def _unseeded(name: str, seed: int | None) -> str:
    """A name without the part that is the seed: ``seed1`` or ``s-1``, or else a bare ``1``; the last one.

    A digit of a decimal number is no seed: ``clip-0.1`` stays.
    """
    marked = rf"(?<![^\W_])s(?:eed)?[-_= ]?{seed}(?![^\W_])"
    bare = rf"(?<![^\W_])(?<!\d\.){seed}(?![^\W_])(?!\.\d)"
    places = list(re.finditer(marked, name, re.IGNORECASE)) or list(re.finditer(bare, name))
    if seed is None or not places:
        return name
    before, after = name[: places[-1].start()].rstrip("-_ /."), name[places[-1].end() :]
    return f"{before}{after}" if before else after.lstrip("-_ /.")


# -- what they are called ------------------------------------------------------------------------------------------


def _titles(groups: Sequence[Sequence[Run]], labels: Mapping[int, str]) -> list[str]:
    """The runs' common name without the seed; where two arms have the same, the settings that tell them apart."""
    titles = [_title(group, labels) for group in groups]
    alike = [[group for group, other in zip(groups, titles, strict=True) if other == title] for title in titles]
    told = [
        ", ".join(filter(None, [title, _told_apart(group, others)]))
        for group, title, others in zip(groups, titles, alike, strict=True)
    ]
    counts = Counter(told)
    return [
        f"{title} ({labels[id(group[0])]})" if counts[title] > 1 else title
        for group, title in zip(groups, told, strict=True)
    ]


def _title(group: Sequence[Run], labels: Mapping[int, str]) -> str:
    its_labels = [labels[id(run)] for run in group]
    if len(group) == 1:
        return its_labels[0]
    found = {_unseeded(label, seed_of(run)) for label, run in zip(its_labels, group, strict=True)} - {""}
    shared = found.pop() if len(found) == 1 else _shared_start(sorted(found))
    return shared or _place(group[0]).parent.name


def _shared_start(its_labels: Sequence[str]) -> str:
    """The words with which all names begin."""
    words = [re.split(r"([-_/ ])", label) for label in its_labels]
    alike = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False))
    return "".join(column[0] for column in alike).strip("-_/ ")


def _told_apart(group: Sequence[Run], of_one_title: Iterable[Sequence[Run]]) -> str:
    """The settings in which a group differs from others of its name, with their values; empty where none does."""
    others = [dict(flattened((other[0].policy or other[0]).config)) for other in of_one_title]
    own = dict(flattened((group[0].policy or group[0]).config))
    differing = [
        key
        for key, value in own.items()
        if key != SEED and not changes_no_number(key) and any(other.get(key) != value for other in others)
    ]
    return ", ".join(f"{key.rpartition('.')[2]} {own[key]}" for key in differing)

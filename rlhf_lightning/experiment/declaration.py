"""What was declared before the first run, and whether it still is what is declared now.

A declaration never changes: another one gets folders of its own, and the one before it is marked. Seeds may be added,
and are written down with their dates.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rlhf_lightning.errors import UserError
from rlhf_lightning.experiment.spec import Budget, Experiment
from rlhf_lightning.records.config_files import find_config, read_config
from rlhf_lightning.records.environment import git_commit, now, package_version
from rlhf_lightning.records.files import write_atomically
from rlhf_lightning.records.run_plan import flattened

FILE, SPEC = "declaration.json", "experiment.yaml"

_IN_WORDS = frozenset({"title", "question", "source"})
"""What a declaration says to its readers, which decides nothing."""
_OF_ARMS_IN_WORDS = frozenset({"label", "published"})
_OF_RUNS = ("config", "tasks", "pipeline", "arms", "tune")
"""What the runs depend on, with the budget; the rest says how they are judged."""


@dataclass
class Declaration:
    """What was declared, when, and with which code.

    Args:
        content: what decides: the declaration without its words, with the budget and the configurations' contents.
        digest: of the content.
        commit: of the package, None where it runs from no checkout.
        seeds: those of each date.
        later: the folder of a later declaration that differs, and what differs; empty where there is none.
    """

    name: str
    budget: str
    content: dict[str, Any]
    digest: str
    declared: str
    version: str
    commit: str | None
    seeds: list[dict[str, Any]] = field(default_factory=list)
    later: dict[str, Any] = field(default_factory=dict)

    @property
    def all_seeds(self) -> list[int]:
        """Every seed that was declared, in the order of the dates."""
        return [seed for entry in self.seeds for seed in entry["seeds"]]


def declared(experiment: Experiment, budget: Budget, *, only_runs: bool = False) -> dict[str, Any]:
    """What decides of a comparison.

    Args:
        only_runs: leave out what says how runs are judged.
    """
    kept = {key: value for key, value in experiment.content.items() if key not in (*_IN_WORDS, "budgets", "seeds")}
    if only_runs:
        kept = {key: value for key, value in kept.items() if key in _OF_RUNS}
    kept["arms"] = {
        name: {key: value for key, value in (arm or {}).items() if key not in _OF_ARMS_IN_WORDS}
        for name, arm in kept["arms"].items()
    }
    own = {key: value for key, value in _budget_entry(experiment, budget).items() if key != "seeds"}
    return {
        **kept,
        "budget": own,
        "configurations": {path: read_config(find_config(path)) for path in _files(kept, own)},
    }


def _budget_entry(experiment: Experiment, budget: Budget) -> Mapping[str, Any]:
    return (experiment.content.get("budgets") or {}).get(budget.name) or {}


def _files(*contents: Any) -> list[str]:
    """The configuration files that are named anywhere in a declaration."""
    found: dict[str, None] = {}
    for content in contents:
        values = content.items() if isinstance(content, Mapping) else enumerate(content)
        for key, value in values:
            if key == "config":
                found |= dict.fromkeys([value] if isinstance(value, str) else value or [])
            elif isinstance(value, Mapping | list):
                found |= dict.fromkeys(_files(value))
    return list(found)


def digest(content: Mapping[str, Any]) -> str:
    """Hash of what decides."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def place_of(parent: Path, experiment: Experiment, budget: Budget, *, only_runs: bool = False) -> Path:
    """The folder of this declaration: that of the same one before, or else the first that is free. Writes nothing.

    Args:
        parent: folder of all such folders; theirs are ``NAME-BUDGET``, and ``NAME-BUDGET-2`` for a second declaration.
    """
    key = digest(declared(experiment, budget, only_runs=only_runs))
    for folder in _folders(parent, experiment.name, budget.name):
        if not folder.exists() or read_declaration(folder).digest == key:
            return folder
    raise AssertionError("there is always a next folder")


def declare(folder: Path, experiment: Experiment, budget: Budget, *, only_runs: bool = False) -> None:
    """Write down what is declared in its folder (see `place_of`), if it is new, and mark the one before."""
    if folder.exists():
        return
    content = declared(experiment, budget, only_runs=only_runs)
    earlier = list(_before(folder, experiment.name, budget.name))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / SPEC, yaml.safe_dump(dict(experiment.content), sort_keys=False, allow_unicode=True))
    declaration = Declaration(
        name=experiment.name,
        budget=budget.name,
        content=json.loads(json.dumps(content, default=str)),
        digest=digest(content),
        declared=now(),
        version=package_version(),
        commit=git_commit(),
    )
    write_declaration(folder, declaration)
    if earlier:
        _mark(earlier[-1], folder, declaration)


def _folders(parent: Path, name: str, budget: str) -> Iterator[Path]:
    yield parent / f"{name}-{budget}"
    for number in itertools.count(2):
        yield parent / f"{name}-{budget}-{number}"


def _before(folder: Path, name: str, budget: str) -> Iterator[Path]:
    return itertools.takewhile(lambda one: one != folder, _folders(folder.parent, name, budget))


def _mark(folder: Path, later: Path, declaration: Declaration) -> None:
    """Write down that a later declaration differs, and in what."""
    earlier = read_declaration(folder)
    before, after = dict(flattened(earlier.content)), dict(flattened(declaration.content))
    differing = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
    earlier.later = {"folder": later.name, "declared": declaration.declared, "differs_in": differing}
    write_declaration(folder, earlier)


def add_seeds(folder: Path, seeds: Sequence[int]) -> None:
    """Write down seeds that were not declared before, with the date."""
    declaration = read_declaration(folder)
    added = [seed for seed in seeds if seed not in declaration.all_seeds]
    if added:
        declaration.seeds.append({"declared": now(), "seeds": added})
        write_declaration(folder, declaration)


def read_declaration(folder: Path) -> Declaration:
    """Read what was declared.

    Raises:
        UserError: the folder holds none.
    """
    try:
        return Declaration(**json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise UserError(f"{folder} holds no declared comparison ({FILE}); expected one that compare has made") from None


def write_declaration(folder: Path, declaration: Declaration) -> None:
    """Write it beside the results."""
    write_atomically(folder / FILE, json.dumps(asdict(declaration), indent=1, ensure_ascii=False) + "\n")

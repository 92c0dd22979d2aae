"""What can be told of the classes that a configuration may name: their arguments, and their types and subclasses."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import sys
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, set_parsing_settings
from lightning.pytorch import Callback, LightningDataModule, LightningModule

from rlhf_lightning.errors import raised_in
from rlhf_lightning.records.config_files import shipped_configs
from rlhf_lightning.rewards.objectives import ObjectiveWeights
from rlhf_lightning.rewards.scaling import Scaling
from rlhf_lightning.rewards.source import RewardSource
from rlhf_lightning.tasks.task import Task

_COMPONENTS = ("algorithms", "data", "rewards", "tasks", "models", "callbacks")
"""Packages whose classes a configuration may name by their short names."""

_ONLY_BASES = (LightningModule, LightningDataModule, Callback, Task, RewardSource, Scaling, ObjectiveWeights)
"""Classes that mean something only where others derive from them."""

FILLED_IN = ("task", "backbone")
"""Arguments of models and data modules that come from the options of these names."""


def import_components() -> None:
    """Import every module whose classes can be named in a configuration: a new optimizer is one new file."""
    importlib.import_module("rlhf_lightning.reward_modeling.module")
    for name in _COMPONENTS:
        package = importlib.import_module(f"rlhf_lightning.{name}")
        for module in pkgutil.walk_packages(package.__path__, prefix=f"{package.__name__}."):
            importlib.import_module(module.name)
    # jsonargparse takes a dataclass as it is; ours may be given as one of its subclasses, by class_path
    families: list[type | str] = [
        cls for cls in package_classes() if dataclasses.is_dataclass(cls) and cls.__subclasses__()
    ]
    set_parsing_settings(subclasses_enabled=families)


def search_beside(config: Path) -> None:
    """Have modules found in the folder of a configuration of the user's own, too, after all other places."""
    folder, shipped = config.resolve().parent, shipped_configs()
    if str(folder) not in sys.path and (shipped is None or not folder.is_relative_to(shipped)):
        sys.path.append(str(folder))


def package_classes() -> list[type]:
    """Every class of the package that is imported."""
    modules = [module for name, module in sys.modules.items() if name.startswith("rlhf_lightning.")]
    return [cls for m in modules for _, cls in inspect.getmembers(m, inspect.isclass) if cls.__module__ == m.__name__]


def import_class(path: str) -> Any:
    """The class of a dotted path, or the function that makes an object; None where there is none."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except Exception:  # a module of the user's own can raise anything; `import_problem` says what
        return None


def import_problem(path: str) -> str | None:
    """What the module of a dotted path raises when it is imported; None where it is there, or is not found."""
    module = path.rpartition(".")[0]
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:
        return None
    except Exception as error:
        return raised_in(error)
    return None


def argument_types(cls: type) -> dict[str, Any]:
    """Types of a class's arguments and of those that it passes on to its parents; ``Any`` where None is the default."""
    known: dict[str, Any] = {}
    for base in inspect.getmro(cls):
        initialize = vars(base).get("__init__")
        if not inspect.isfunction(initialize):
            continue
        try:
            hints = typing.get_type_hints(initialize)
        except (NameError, TypeError):  # imported for type checkers only
            continue
        for parameter in inspect.signature(initialize).parameters.values():
            if parameter.name in hints:
                known.setdefault(parameter.name, Any if parameter.default is None else hints[parameter.name])
    return known


def argument_names(cls: Any) -> list[str]:
    """Names of the arguments that a configuration can give to a class, with those of options among them."""
    if not isinstance(cls, type):
        return []
    names = [str(name) for name in ArgumentParser().add_class_arguments(cls, fail_untyped=False)]
    names = [name for name in names if name not in FILLED_IN]
    for name, kind in argument_types(cls).items():
        if name in names and dataclasses.is_dataclass(kind) and isinstance(kind, type):
            fields = [field.name for option in (kind, *kind.__subclasses__()) for field in dataclasses.fields(option)]
            names += [f"{name}.{field}" for field in dict.fromkeys(fields)]
    return names


def subclasses(bases: Iterable[type]) -> dict[str, str]:
    """Short names of the classes that can be given where one of the bases is expected, with their modules."""
    modules: dict[str, str] = {}
    pending = list(bases)
    while pending:
        cls = pending.pop()
        children: list[type] = type.__subclasses__(cls)
        pending += children
        has_own = any(child.__module__.startswith("rlhf_lightning.") for child in children)
        is_base = has_own and issubclass(cls, _ONLY_BASES)
        if not (inspect.isabstract(cls) or cls.__name__.startswith("_") or is_base):
            modules[cls.__name__] = cls.__module__
    return dict(sorted(modules.items()))


def class_names(module: str) -> list[str]:
    """Names of the classes in a module."""
    return [name for name, _ in inspect.getmembers(importlib.import_module(module), inspect.isclass)]

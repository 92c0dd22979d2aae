"""Class paths in the configurations of earlier versions, whose classes have moved since."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.cli.introspection import import_class, package_classes

_RENAMED = {"rlhf_lightning.rewards.scaling.Clip": "ClipScores"}
"""Today's names of classes that have not only moved, by their old paths."""


def with_todays_classes(content: Any) -> Any:
    """A configuration in which ``class_path`` says where the package's classes are now.

    A path that cannot be mapped stays as it is.
    """
    if isinstance(content, list):
        return [with_todays_classes(item) for item in content]
    if not isinstance(content, dict):
        return content
    mapped = {key: with_todays_classes(value) for key, value in content.items()}
    path = mapped.get("class_path")
    if isinstance(path, str) and path.startswith("rlhf_lightning."):
        mapped["class_path"] = _todays_path(path)
    return mapped


def _todays_path(path: str) -> str:
    """The path itself where it leads to a class, else that of the class with its name, public or the only one."""
    if import_class(path) is not None:
        return path
    name = _RENAMED.get(path, path.rpartition(".")[2])
    if import_class(f"rlhf_lightning.{name}") is not None:
        return f"rlhf_lightning.{name}"
    homes = {cls.__module__ for cls in package_classes() if cls.__name__ == name}
    return f"{homes.pop()}.{name}" if len(homes) == 1 else path

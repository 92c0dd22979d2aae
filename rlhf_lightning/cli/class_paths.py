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
    """The public name of the class, the only one in the package with its name, or the path as it is."""
    name = _RENAMED.get(path, path.rpartition(".")[2])
    cls, public = import_class(path), import_class(f"rlhf_lightning.{name}")
    if public is not None and cls in (None, public):
        return f"rlhf_lightning.{name}"
    homes = {known.__module__ for known in package_classes() if known.__name__ == name}
    return f"{homes.pop()}.{name}" if cls is None and len(homes) == 1 else path

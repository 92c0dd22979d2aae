"""The arms of a declaration, those that stand for many, and groups of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.experiment.spec import DeclaredArm
from rlhf_lightning.experiment.spec_parts import check_keys, matching, sections_in
from rlhf_lightning.records.run_directory import STAGES


def read_arms(content: Any, place: str) -> dict[str, DeclaredArm]:
    """The arms, by name; one that has values under ``for`` stands for one arm for each combination of them.

    Raises:
        UserError: something is wrong with them; the message names the place.
    """
    if not isinstance(content, Mapping) or len(content) == 0:
        raise UserError(f"{place}: expected a mapping of names to settings, such as ppo: {{policy: {{config: …}}}}")
    found: dict[str, DeclaredArm] = {}
    for name, entry in content.items():
        for arm_name, own in _filled_in(str(name), {} if entry is None else entry, f"{place}.{name}"):
            check_keys(own, ("label", "published", "seed_offset", *STAGES), f"{place}.{name}")
            if arm_name in found or "/" in arm_name:
                raise UserError(f"{place}: {arm_name!r}; expected names that differ, without /")
            sections = sections_in({key: own[key] for key in STAGES if key in own}, f"{place}.{name}")
            published = own.get("published")
            if published is not None and not isinstance(published, int | float):
                raise UserError(f"{place}.{name}.published is {published!r}; expected a number")
            offset = int(own.get("seed_offset", 0))
            found[arm_name] = DeclaredArm(arm_name, str(own.get("label", arm_name)), sections, published, offset)
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


def read_groups(content: Any, arms: Mapping[str, DeclaredArm], place: str) -> dict[str, list[str]]:
    """Arms by group; members are names or patterns such as ``npg-*``."""
    if not isinstance(content, Mapping):
        raise UserError(f"{place}: expected a mapping of names to arms")
    groups: dict[str, list[str]] = {}
    for name, patterns in content.items():
        if name in arms:
            raise UserError(f"{place}.{name} is the name of an arm, too; expected another")
        groups[str(name)] = matching(patterns, list(arms), f"{place}.{name}: no arm")
    return groups

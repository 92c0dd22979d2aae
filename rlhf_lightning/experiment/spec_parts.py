"""Checked access to the parts of a declaration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from rlhf_lightning.errors import UserError, suggestion
from rlhf_lightning.experiment.spec import Sections, overlaid
from rlhf_lightning.records.run_directory import STAGES


def check_keys(content: Any, known: Sequence[str], place: str, required: Sequence[str] = ()) -> None:
    """Refuse what is no mapping, keys that are unknown, and those that are missing.

    Raises:
        UserError: one of these; the message names the place.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{place} is {content!r}; expected a mapping with {', '.join(known)}")
    for key in content:
        if key not in known:
            raise UserError(f"{place}: unknown key {key!r}; {suggestion(str(key), known, otherwise=one_of(known))}")
    for key in required:
        if key not in content:
            raise UserError(f"{place}: {key} is missing")


def one_of(names: Sequence[str] | Mapping[str, Any]) -> str:
    """What was expected in the place of an unknown name."""
    return f"expected one of {', '.join(names)}"


def names_in(value: Any) -> list[str]:
    """Names from one name or a list of them."""
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def matching(patterns: Any, names: Sequence[str], refusal: str) -> list[str]:
    """Those of the names that are listed, or that a pattern such as ``npg-*`` fits, each once.

    Args:
        refusal: what is said of a pattern that fits none, as far as the pattern.

    Raises:
        UserError: a pattern fits none.
    """
    found: dict[str, None] = {}
    for pattern in map(str, names_in(patterns)):
        fitting = [name for name in names if fnmatchcase(name, pattern)]
        if not fitting:
            raise UserError(f"{refusal} {pattern}; {suggestion(pattern, names, otherwise=one_of(names))}")
        found |= dict.fromkeys(fitting)
    return list(found)


def sections_in(content: Any, place: str) -> Sections:
    """Settings by stage, with dotted keys."""
    check_keys(content, STAGES, place)
    for stage, section in content.items():
        if not isinstance(section, Mapping):
            raise UserError(
                f"{place}.{stage} is {section!r}; expected a mapping of settings, such as config: FILE.yaml"
            )
    return overlaid(content)

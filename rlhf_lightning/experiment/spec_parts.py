"""Checked access to the parts of a declaration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def sections_in(content: Any, place: str) -> Sections:
    """Settings by stage, with dotted keys."""
    check_keys(content, STAGES, place)
    for stage, section in content.items():
        if not isinstance(section, Mapping):
            raise UserError(
                f"{place}.{stage} is {section!r}; expected a mapping of settings, such as config: FILE.yaml"
            )
    return overlaid(content)

"""Checked access to one claim of a declaration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rlhf_lightning.errors import UserError, suggestion


class Kind(StrEnum):
    """What is asked of a claim."""

    MUST_HOLD = "must hold"
    TWO_SIDED = "two-sided"
    REPORT_ONLY = "report only"


@dataclass(frozen=True)
class DeclaredClaim:
    """A claim as it was written, and what it may refer to; every method raises one `UserError` for what is wrong.

    Args:
        place: where it stands, for messages.
        arms: names of the comparison's arms.
        measures: names of what the runs measure, the primary one first.
        default_margin: smallest difference of the primary measure that matters.
    """

    place: str
    item: Mapping[str, Any]
    arms: Sequence[str]
    measures: Sequence[str]
    default_margin: float | None

    def common(self) -> dict[str, Any]:
        """What every check has: ``measure``, ``kind``, ``name``, ``published``."""
        measure, kind = self.item.get("measure", self.measures[0]), self.item.get("kind", Kind.MUST_HOLD)
        kinds = [str(one) for one in Kind]
        if measure not in self.measures:
            raise self.error(f"unknown measure {measure!r}", measure, self.measures)
        if kind not in kinds:
            raise self.error(f"unknown kind {kind!r}", kind, kinds)
        published = self.item.get("published")
        if published is not None and (isinstance(published, bool) or not isinstance(published, str | int | float)):
            raise UserError(f"{self.place}: published must be a number or text, got {published!r}")
        name = self.item.get("name", "")
        if not isinstance(name, str):
            raise UserError(f"{self.place}: name must be text, got {name!r}")
        return {"measure": measure, "kind": Kind(kind), "name": name, "published": published}

    def some_arms(self, key: str, *, least: int = 2, most: int | None = None) -> tuple[str, ...]:
        """A list of different arms."""
        names = self.item[key]
        many = f"{least} arms" if least == most else f"at least {least} {'arm' if least == 1 else 'arms'}"
        if not isinstance(names, list | tuple) or len(names) < least or (most is not None and len(names) > most):
            raise UserError(f"{self.place}: {key} must be a list of {many}, got {names!r}")
        for name in names:
            self._check_arm(name)
        if len(set(names)) < len(names):
            raise UserError(f"{self.place}: {key} must name different arms, got {list(names)}")
        return tuple(names)

    def arm_and_value(self, key: str) -> tuple[str, float]:
        """``{arm: …, value: …}``."""
        pair = self.item[key]
        if not isinstance(pair, Mapping) or set(pair) != {"arm", "value"}:
            raise UserError(f"{self.place}: {key} must be {{arm: NAME, value: NUMBER}}, got {pair!r}")
        self._check_arm(pair["arm"])
        if not _is_number(pair["value"]):
            raise UserError(f"{self.place}: {key}.value must be a number, got {pair['value']!r}")
        return pair["arm"], float(pair["value"])

    def positive(self, key: str) -> float | None:
        """A number above 0; None where it is not given."""
        value = self.item.get(key)
        if value is not None and (not _is_number(value) or value <= 0):
            raise UserError(f"{self.place}: {key} must be a number above 0, got {value!r}")
        return None if value is None else float(value)

    def margin(self) -> float | None:
        """The claim's own margin, or for a claim about the primary measure that of the comparison."""
        own = self.positive("margin")
        if own is not None or self.item.get("measure", self.measures[0]) != self.measures[0]:
            return own
        return self.default_margin or None

    def _check_arm(self, name: object) -> None:
        if name not in self.arms:
            raise self.error(f"unknown arm {name!r}", name, self.arms)

    def error(self, what: str, wrong: object, known: Sequence[str]) -> UserError:
        """The error for a name that is not known."""
        return UserError(
            f"{self.place}: {what}: {suggestion(str(wrong), known, otherwise='expected ' + ', '.join(known))}"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

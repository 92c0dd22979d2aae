"""Claims as a declaration writes them.

```yaml
claims:
  - {better: [ppo, reinforce], kind: must hold, by: 0.1}       # by the measure's direction
  - {greater: [a, b], measure: rollout/length, kind: two-sided}
  - {order: [a, b, c]}                                          # each better than the next
  - {equivalent: [a, b], margin: 0.1}                           # the margin of the comparison where none is given
  - {above: {arm: a, value: 0.9}, measure: fit_r2}              # or below
  - {increasing: [a, b, c], measure: kl}                        # or decreasing
  - {best_of: [a, b, c], better_than: [d, e]}
  - {less_spread: [a, b]}
```
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rlhf_lightning.errors import UserError, raise_all, suggestion
from rlhf_lightning.experiment.claims.base import ArmClaim
from rlhf_lightning.experiment.claims.chains import BestOf, Ordered
from rlhf_lightning.experiment.claims.contrasts import (
    Above,
    Below,
    Better,
    Decreasing,
    Equivalent,
    Greater,
    Increasing,
    LessSpread,
)
from rlhf_lightning.experiment.claims.declared import DeclaredClaim

CHECKS: Mapping[str, type[ArmClaim]] = {
    check.key: check
    for check in (Better, Greater, Ordered, Equivalent, Above, Below, Increasing, Decreasing, BestOf, LessSpread)
}
_COMMON = frozenset({"measure", "kind", "name", "published"})


def read_claims(
    items: object, *, arms: Sequence[str], measures: Sequence[str], margin: float | None = None
) -> list[ArmClaim]:
    """The claims of a declaration.

    Args:
        items: a list of mappings, as YAML gives them.
        arms: names of the arms.
        measures: names of what the runs measure; the first is the primary one.
        margin: smallest difference of the primary measure that matters.

    Raises:
        UserError: names everything that is wrong: an unknown check, key, arm, measure or kind, several checks in one
            claim, an equivalence claim without a margin, two claims of the same name.
    """
    if not isinstance(items, list | tuple):
        raise UserError(f"claims must be a list, got {items!r}")
    if margin is not None and not (margin >= 0 and math.isfinite(margin)):
        raise UserError(f"margin must be a number above 0, got {margin}")
    claims, mistakes = [], []
    for number, item in enumerate(items, start=1):
        try:
            claims.append(_claim(f"claim {number}", item, arms, measures, margin))
        except UserError as error:
            mistakes.append(str(error))
    raise_all(mistakes)
    return claims


def _claim(place: str, item: object, arms: Sequence[str], measures: Sequence[str], margin: float | None) -> ArmClaim:
    if not isinstance(item, Mapping):
        raise UserError(f"{place}: expected a mapping such as {{better: [a, b]}}, got {item!r}")
    named = [str(key) for key in item if key in CHECKS]
    if len(named) > 1:
        raise UserError(f"{place}: one check per claim, got {' and '.join(named)}")
    check = CHECKS[named[0]] if named else None
    known = {*_COMMON, *(check.further_keys | {check.key} if check else CHECKS)}
    unknown = [key for key in item if key not in known]
    if unknown:
        hint = suggestion(str(unknown[0]), known, otherwise=f"expected {', '.join(sorted(known))}")
        raise UserError(f"{place}: unknown {'key' if check else 'check or key'} {unknown[0]!r}: {hint}")
    if check is None:
        raise UserError(f"{place}: no check, expected one of {', '.join(CHECKS)}")
    return check.read(DeclaredClaim(f"{place} ({check.key})", item, arms, measures, margin))

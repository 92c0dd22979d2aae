"""What a run says of the numbers that it logs, so that figures need not know every algorithm. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeAlias, TypeVar

Role: TypeAlias = Literal["plain", "score", "gold", "heldout", "kl", "warning"]
"""What a number is about; figures give each its colour."""


@dataclass(frozen=True)
class Metric:
    """A logged number, and how a figure shows it.

    Args:
        title: of its panel.
        unit: what the numbers are, in a few words.
        name: as it is logged in training; empty where it is only evaluated.
        heldout: as it is logged in evaluations; empty where it is not.
        role: what it is about.
        floor: lowest possible value, at which the axis starts.
        lowest: where the view is cut, for a number without a lower bound.
        mark: a value that means something.
        mark_name: what that value is called.
        per: name of the metric that it is divided by.
        smooth: whether training batches are averaged; not where the values are counts.
        only_if_varying: whether a panel is left out where the value never changes.
        own: whether it means the same only among runs of one algorithm, as a loss does.
    """

    title: str
    unit: str
    name: str = ""
    heldout: str = ""
    role: Role = "plain"
    floor: float | None = None
    lowest: float | None = None
    mark: float | None = None
    mark_name: str = ""
    per: str = ""
    smooth: bool = True
    only_if_varying: bool = False
    own: bool = False


@dataclass(frozen=True)
class Experience:
    """What a run learns from, and how much of it has passed.

    Args:
        unit: in words, such as ``sampled responses``.
        counter: metric that counts it; empty where each step takes ``per_step`` of it.
        per_step: how much of it one step takes, where no metric counts it.
    """

    unit: str
    counter: str = ""
    per_step: int | None = None


@dataclass(frozen=True)
class Description:
    """What a run trains and logs: the content of ``run.json``.

    Args:
        kind: ``policy`` (on text, by a reward), ``control`` (in an environment), ``preference`` (a policy from
            feedback), ``reward`` or ``sft``.
        algorithm: name of the class.
        experience: what the run learns from; None where nothing counts it.
        metrics: that figures show, in their order.
    """

    kind: str
    algorithm: str
    experience: Experience | None = None
    metrics: tuple[Metric, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """As plain data; what has its default is left out of the metrics."""
        default = asdict(Metric("", ""))
        metrics = [{key: x for key, x in asdict(one).items() if x != default[key]} for one in self.metrics]
        return {**asdict(self), "metrics": metrics}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Description:
        """From plain data; keys of later versions are passed over."""
        experience = content.get("experience")
        return cls(
            kind=content["kind"],
            algorithm=content["algorithm"],
            experience=None if experience is None else _known(Experience, experience),
            metrics=tuple(_known(Metric, one) for one in content.get("metrics", ())),
        )


Record = TypeVar("Record", Experience, Metric)


def _known(cls: type[Record], content: Mapping[str, Any]) -> Record:
    names = {one.name for one in fields(cls)}
    return cls(**{key: value for key, value in content.items() if key in names})

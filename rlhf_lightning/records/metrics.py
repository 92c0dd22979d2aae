"""What a run says of the numbers that it logs, so that figures need not know every algorithm. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias, TypeVar

from rlhf_lightning.records.config_files import setting

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
        shown: whether figures have a panel for it; a number that has none is in ``metrics.csv`` all the same.
    """

    title: str
    unit: str = ""
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
    shown: bool = True

    @property
    def key(self) -> str:
        """The logged name by which the runs of a figure are matched."""
        return self.heldout or self.name


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
        metrics: that are declared, in the order in which figures show them.
    """

    kind: str
    algorithm: str
    experience: Experience | None = None
    metrics: tuple[Metric, ...] = ()

    def panels(self, logged: Collection[str]) -> tuple[Metric, ...]:
        """What figures show: the declared metrics, and those that are only logged.

        Args:
            logged: names of all logged metrics.
        """
        declared = tuple(metric for metric in self.metrics if metric.shown)
        return declared + undeclared(logged, self.metrics)

    def as_dict(self) -> dict[str, Any]:
        """As plain data; what has its default is left out of the metrics."""
        default = asdict(Metric(""))
        metrics = [{key: x for key, x in asdict(metric).items() if x != default[key]} for metric in self.metrics]
        return {**asdict(self), "metrics": metrics}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Description:
        """From plain data; keys of later versions are passed over.

        Raises:
            KeyError: the kind or the algorithm is missing.
            TypeError: a metric has no title.
        """
        experience = content.get("experience")
        return cls(
            kind=content["kind"],
            algorithm=content["algorithm"],
            experience=None if experience is None else _known(Experience, experience),
            metrics=tuple(_known(Metric, metric) for metric in content.get("metrics", ())),
        )


Record = TypeVar("Record", Experience, Metric)


def _known(cls: type[Record], content: Mapping[str, Any]) -> Record:
    names = {field.name for field in fields(cls)}
    return cls(**{key: value for key, value in content.items() if key in names})


# -- metrics that nobody declared ------------------------------------------------------------------------------

_INTERVAL = ("_low", "_high", "_se")
_ROLES: dict[str, Role] = {"score": "score", "gold": "gold", "kl_ref_sequence": "kl"}


def undeclared(logged: Collection[str], declared: Collection[Metric]) -> tuple[Metric, ...]:
    """Metrics that are logged without a declaration, with titles made from their names: rewards and KL first.

    ``policy/clip_fraction`` is titled "Clip fraction"; ``GROUP/NAME`` and ``eval/NAME`` are one metric. Counters
    (which have no group), timings, ends of intervals, and the components of gold, which have a figure of their
    own, are left out.
    """
    known = {name for metric in declared for name in (metric.name, metric.heldout, metric.per)}
    names = [name for name in logged if name not in known and not _is_secondary(name, logged)]
    trained: dict[str, str] = {}
    for name in names:
        group, _, last = name.partition("/")
        if group != "eval":
            trained.setdefault(last, name)
    found = []
    for name in names:
        group, _, last = name.partition("/")
        if group != "eval":
            evaluated = f"eval/{last}" if f"eval/{last}" in names and trained[last] == name else ""
            found.append(_titled(last, name, evaluated))
        elif last not in trained:
            found.append(_titled(last, "", name))
    return tuple(sorted(found, key=lambda metric: metric.role == "plain"))


def _is_secondary(name: str, logged: Collection[str]) -> bool:
    group, _, last = name.partition("/")
    return (
        not last
        or group == "timing"
        or last.endswith("_per_second")
        or any(name.endswith(end) and name.removesuffix(end) in logged for end in _INTERVAL)
        or (last.startswith("gold_") and f"{group}/gold" in logged)
    )


def _titled(last: str, name: str, heldout: str) -> Metric:
    words = last.replace("/", ", ").replace("_", " ").replace("kl ", "KL ")
    return Metric(words[:1].upper() + words[1:], name or heldout, name, heldout, role=_ROLES.get(last, "plain"))


# -- runs without ``run.json``, which the version before did not write ------------------------------------------


def inferred_description(columns: Sequence[str], config: Mapping[str, Any]) -> Description | None:
    """The description of a run by the names of its metrics; None where they do not tell its kind.

    Args:
        columns: of the table of metrics, the x-axis first.
        config: of the run.
    """
    kind = _kind(columns)
    if kind is None:
        return None
    algorithm = str(setting(config, "model.class_path") or "").rpartition(".")[2]
    batch_size = setting(config, "data.init_args.batch_size")
    experience = {
        "control": Experience("environment steps", counter="env_steps"),
        "policy": Experience("sampled responses", counter="samples"),
        "preference": Experience("preference pairs", per_step=batch_size if isinstance(batch_size, int) else None),
    }
    return Description(kind, algorithm, experience.get(kind))


def _kind(columns: Sequence[str]) -> str | None:
    groups = {column.partition("/")[0] for column in columns}
    if {"env_steps", "rollout/episodes", "eval/episodes"}.intersection(columns):
        return "control"
    for group, kind in {"objective": "policy", "reward_model": "reward", "sft": "sft"}.items():
        if group in groups:
            return kind
    if "policy" in groups or {"eval/score", "eval/gold", "eval/kl_ref_sequence"}.intersection(columns):
        return "preference" if columns[0] == "step" else "policy"
    return None

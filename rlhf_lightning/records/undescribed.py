"""What runs without ``run.json`` were: those of the version before wrote none, so their columns have to tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_lightning.records.config_files import setting
from rlhf_lightning.records.metrics import Description, Experience

_EXPERIENCE = {
    "control": Experience("environment steps", counter="env_steps"),
    "policy": Experience("sampled responses", counter="samples"),
}


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
    return Description(kind, algorithm, _EXPERIENCE.get(kind) or _passes_over_pairs(kind, config))


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


def _passes_over_pairs(kind: str, config: Mapping[str, Any]) -> Experience | None:
    if kind != "preference":
        return None
    batch_size = setting(config, "data.init_args.batch_size")
    return Experience("preference pairs", per_step=batch_size if isinstance(batch_size, int) else None)

"""Equal budgets: what every arm will use, as far as its configuration says, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from rlhf_lightning.errors import UserError
from rlhf_lightning.experiment.collect import TOLERANCE
from rlhf_lightning.experiment.plan import PlannedRun
from rlhf_lightning.experiment.spec import UNITS, Experiment
from rlhf_lightning.pipeline.stages import Stage, options_of
from rlhf_lightning.records.config_files import adapted, find_config, merged, read_config, setting

_PER_ITERATION = {"RolloutDataModule": "samples", "EnvironmentDataModule": "env_steps"}
"""What an iteration collects, by the class of the data; other data are read in batches, step by step."""


def check_equal_budgets(experiment: Experiment, planned: Sequence[PlannedRun]) -> None:
    """Check that all arms will use as much, as far as their configurations say.

    What a run decides on its way, such as responses that are drawn again, is compared after it.

    Raises:
        UserError: they will not.
    """
    if experiment.equal is None:
        return
    first = {(run.arm, run.task): run for run in reversed(planned)}
    for task in experiment.tasks:
        amounts: dict[str, float] = {}
        for (arm, name), run in first.items():
            if name == task.name and (amount := planned_amount(run.stages[-1], experiment.equal)) is not None:
                amounts[arm] = amount
        if amounts and max(amounts.values()) > (1 + TOLERANCE) * min(amounts.values()):
            least, most = min(amounts, key=amounts.__getitem__), max(amounts, key=amounts.__getitem__)
            raise UserError(
                f"{experiment.name}: equal is {experiment.equal}, but {least} will use {amounts[least]:,.0f} "
                f"{UNITS[experiment.equal]} and {most} {amounts[most]:,.0f}; expected the same of all arms"
            )


def planned_amount(stage: Stage, unit: str) -> float | None:
    """What a run will use, in a unit of `UNITS`; None where its configuration does not say."""
    config = _configuration(stage)
    data = setting(config, "data.init_args") or {}
    kind = str(setting(config, "data.class_path") or "").rpartition(".")[2]
    if unit == "seconds":
        return _seconds(setting(config, "trainer.max_time"))
    if kind in _PER_ITERATION:
        amount = _product(data.get("rollout_batch_size"), setting(config, "trainer.max_epochs"))
        return amount if _PER_ITERATION[kind] == unit else None
    return _product(data.get("batch_size"), setting(config, "trainer.max_steps"))


def _configuration(stage: Stage) -> dict[str, Any]:
    """The configuration of a command, as far as its files and options say; defaults of classes are not in it."""
    options = options_of(stage.command)
    config: dict[str, Any] = {}
    for path in options.pop("--config", []):
        config = merged(config, adapted(read_config(find_config(path)), config.get("task"), path))
    for option, values in options.items():
        if "." in option and len(values) == 1:
            _set(config, option.removeprefix("--").split("."), yaml.safe_load(values[0]))
    return config


def _set(config: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    *path, last = keys
    for key in path:
        inside = config.get(key)
        config[key] = config = dict(inside) if isinstance(inside, dict) else {}
    config[last] = value


def _product(*factors: Any) -> float | None:
    if not all(isinstance(factor, int | float) and factor > 0 for factor in factors):
        return None
    result = 1.0
    for factor in factors:
        result *= factor
    return result


def _seconds(time: Any) -> float | None:
    """Of ``DD:HH:MM:SS``, or of a mapping such as ``{minutes: 5}``."""
    units = {"days": 86_400, "hours": 3_600, "minutes": 60, "seconds": 1}
    if isinstance(time, str) and time.count(":") == 3:
        return float(sum(int(part) * factor for part, factor in zip(time.split(":"), units.values(), strict=True)))
    if isinstance(time, dict):
        return float(sum(units[name] * amount for name, amount in time.items() if name in units))
    return None

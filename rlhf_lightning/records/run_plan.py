"""What a new ``fit`` may do with a directory: start, go on with the run that is there, or neither. Imports no torch.

Every rank reads the same directory and comes to the same plan.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.records.checkpoint_files import newest_intact
from rlhf_lightning.records.config_files import read_config, setting
from rlhf_lightning.records.files import is_temporary
from rlhf_lightning.records.inputs import INPUTS, changed_inputs
from rlhf_lightning.records.locks import check_free
from rlhf_lightning.records.run_directory import CHECKPOINTS, CONFIG, DONE, ENVIRONMENT, KEPT, Plan

_OF_LOGGERS = frozenset({"wandb", "lightning_logs"})
"""What loggers may leave of a run that never started; W&B writes it as its process ends."""

_NOT_COMPARED = (
    "name",
    "runs_dir",
    "overwrite",
    "checkpoint_every",
    "checkpoint_keep",
    "ckpt_path",
    "weights_only",
    "trainer.logger",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.default_root_dir",
    "trainer.profiler",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
)
"""Settings that may differ between a run and its continuation, with all below them: they change no number."""

_NOT_COMPARED_ANYWHERE = frozenset({"microbatch_size", "decode_batch_size", "timeout"})
"""Arguments of that kind, whatever class takes them."""

_LENGTH = ("trainer.max_epochs", "trainer.max_steps")
"""Settings that may grow."""


def plan_run(
    directory: Path,
    config: Mapping[str, Any],
    *,
    overwrite: bool,
    read: Callable[[Path], Mapping[str, Any]] = read_config,
) -> Plan:
    """Start, go on or refuse; reads only.

    An unfinished run goes on, and a finished one that is to be longer, if configuration and inputs are the same.

    Args:
        config: the full configuration of the new run.
        read: reads the full configuration of a run that is there from its file.

    Raises:
        UserError: the directory holds a run that is complete, or one with another configuration, changed inputs or
            damaged checkpoints only, or no run.
    """
    entries = _entries(directory)
    if all(name in (ENVIRONMENT, INPUTS) or is_temporary(name) for name in entries):  # killed while it started
        return Plan(directory)
    if CONFIG not in entries:
        raise UserError(f"{directory} exists and holds no run ({CONFIG} is missing); choose another --name")
    if overwrite:
        return Plan(directory, set_aside=True)
    if DONE in entries and not _is_longer(directory / CONFIG, config):
        raise UserError(
            f"{directory} holds a finished run; pass --overwrite to replace it, --name for another directory, or a "
            "larger trainer.max_epochs or max_steps to train longer (in Python: overwrite=True, name, max_epochs, …)"
        )
    what = f"{directory} holds {'a finished' if DONE in entries else 'an unfinished'} run"
    last, damaged = newest_intact(directory / CHECKPOINTS)
    if last is None and damaged:
        names = ", ".join(path.name for path in damaged)
        raise UserError(f"{what} with damaged checkpoints ({names}); pass --overwrite to start over")
    if last is None and DONE in entries:
        raise UserError(f"{what} without a checkpoint to go on from; pass --overwrite to start over")
    if last is None:
        return Plan(directory, set_aside=True)
    otherwise = "pass --overwrite to start over, or --name for another directory"
    try:
        difference = first_difference(read(directory / CONFIG), config)
    except UserError as error:
        raise UserError(f"{what} that cannot be continued: {error}; {otherwise}") from error
    if difference is not None:
        key, old, new = difference
        raise UserError(f"{what} with another configuration: {key} is {old!r} there and {new!r} now; {otherwise}")
    if changed := changed_inputs(directory):
        names = ", ".join(map(str, changed))
        raise UserError(f"{what}, and what it was trained on is not the same any more: {names}; {otherwise}")
    return Plan(directory, resume_from=last, damaged=tuple(damaged))


def _entries(directory: Path) -> set[str]:
    """Names of what a run has written into a directory.

    Raises:
        UserError: it is none, its name cannot be written, or another process is training there.
    """
    try:
        os.fsencode(directory)
        str(directory).encode()
    except UnicodeEncodeError as error:
        expected = "one that file names can have here (PYTHONUTF8=1 allows all)"
        raise UserError(
            f"the run directory {str(directory)!a} has a name that cannot be written; expected {expected}"
        ) from error
    if file := next((parent for parent in directory.parents if parent.is_file()), None):
        raise UserError(f"{file} is a file; expected a folder for runs (choose another --runs_dir)")
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; expected a directory for the run (choose another --name)")
    check_free(directory)
    return {entry.name for entry in directory.iterdir()} - KEPT - _OF_LOGGERS if directory.is_dir() else set()


# -- comparing configurations --------------------------------------------------------------------------------------


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first key whose value forbids going on, with both values.

    Settings that change no number are not compared, and the new run may be longer.
    """
    flat_old, flat_new = dict(flattened(old)), dict(flattened(new))
    for key in [*flat_new, *(k for k in flat_old if k not in flat_new)]:
        before, after = flat_old.get(key), flat_new.get(key)
        if before == after or changes_no_number(key) or (key in _LENGTH and _is_larger(before, after)):
            continue
        return key, before, after
    return None


def changes_no_number(key: str) -> bool:
    """Whether a setting, by its dotted key, leaves every number of a run as it is."""
    below = any(key == skipped or key.startswith(f"{skipped}.") for skipped in _NOT_COMPARED)
    return below or key.rpartition(".")[2] in _NOT_COMPARED_ANYWHERE


def _is_longer(file: Path, new: Mapping[str, Any]) -> bool:
    """Whether a run is to be longer than the one whose configuration is in a file."""
    try:
        old = read_config(file)
    except UserError:  # damaged: nothing can be said, and the run that is there stays
        return False
    return any(_is_larger(setting(old, key), setting(new, key)) for key in _LENGTH)


def _is_larger(old: Any, new: Any) -> bool:
    """Whether one limit is above another; -1 is none."""
    return isinstance(old, int) and isinstance(new, int) and 0 <= old < new


def flattened(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a configuration by their dotted keys."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

"""What `cli` does around LightningCLI: names of runs, early refusals, loggers that write to the run directory."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from transformers.utils import logging as transformers_logging

from rlhf_lightning.cli.introspection import import_class
from rlhf_lightning.errors import UserError, raise_all, raised_in
from rlhf_lightning.records.run_directory import read_environment
from rlhf_lightning.records.sweep_agent import name_under_agent
from rlhf_lightning.training.module import Module

_TRAINER_INSTEAD = {
    "gradient_clip_val": "model.init_args.optimization.max_grad_norm",
    "gradient_clip_algorithm": "model.init_args.optimization.max_grad_norm",
    "accumulate_grad_batches": "model.init_args.optimization.microbatch_size",
    "default_root_dir": "--runs_dir and --name",
}
"""Trainer arguments that would do nothing or harm here, and what to give instead."""

_CALLBACKS_INSTEAD = {
    "BatchSizeFinder": "model.init_args.optimization.microbatch_size",
    "GradientAccumulationScheduler": "model.init_args.optimization.microbatch_size",
    "LearningRateFinder": "model.init_args.optimization.lr",
}
"""Callbacks of Lightning that would do nothing or harm, likewise."""

_DEFAULTS = {"accumulate_grad_batches": 1, "check_val_every_n_epoch": 1}
"""Defaults of trainer arguments, where they are not null."""

_NOISE = (
    "does not have many workers",
    "dataloader is not resumable",
    "smaller than the logging interval",
    "LeafSpec",
    "in eval mode at the start of training",
    "callbacks used to create the checkpoint need to be provided",
    "could not find the monitored key",
)
"""Warnings about loaders that only count, frozen networks, absent metrics, and libraries among themselves."""


def quiet_libraries() -> None:
    """Leave out what Lightning says on every run and nobody acts on."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # this is how profilers show their tables
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=f"(?s).*{message}.*")
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def by_iteration(model: Any) -> bool:
    """Whether the runs of a model, or of its class, are counted in iterations, which evaluate themselves."""
    return getattr(model, "by_iteration", False)


def run_name(config: Namespace) -> str:
    """The name that is given, or ``MODEL-TASK-SEED``; with the run's identifier under an agent of a sweep."""
    if config.name is not None:
        return name_under_agent(config.name)
    parts = [config.model.class_path.rpartition(".")[2], config.task.class_path.rpartition(".")[2]]
    return name_under_agent("-".join([*parts, str(config.seed_everything)]).lower())


def check_config(config: Namespace, command: str) -> None:
    """Refuse what cannot work together, before anything is built.

    Raises:
        UserError: the task does not provide what the model needs, or an argument of the trainer would do nothing.
    """
    if not isinstance(config.trainer, Namespace):
        raise UserError(f"trainer: expected a mapping of its arguments, got {config.trainer!r}")
    model, task = import_class(config.model.class_path), import_class(config.task.class_path)
    mistakes = [*_unmet_requirements(model, task), *_trainer_mistakes(config.trainer, model)]
    if command == "fit" and not config.trainer.fast_dev_run:
        mistakes += _budget_mistakes(config.trainer, model)
    raise_all(mistakes)


def _unmet_requirements(model: Any, task: Any) -> Iterator[str]:
    if isinstance(task.provides, frozenset):  # otherwise it depends on the arguments, and the model asks when built
        try:
            task.require(task.__new__(task), getattr(model, "requires", frozenset()), by=model.__name__)
        except UserError as error:
            yield str(error)


def _trainer_mistakes(trainer: Namespace, model: Any) -> Iterator[str]:
    """Arguments that would silently do nothing, or cannot work together."""
    if trainer.num_nodes > 1 and not {"RANK", "SLURM_PROCID"} & os.environ.keys():
        yield f"trainer.num_nodes is {trainer.num_nodes}: start one process per device by torchrun or srun"
    replaced = dict(_TRAINER_INSTEAD)
    if trainer.val_check_interval == 0 and not by_iteration(model):
        yield "trainer.val_check_interval is 0; expected more than 0"
    if by_iteration(model):
        replaced |= dict.fromkeys(("val_check_interval", "check_val_every_n_epoch"), "model.init_args.eval_every")
    for key, instead in replaced.items():
        if trainer.get(key) != _DEFAULTS.get(key) and (issubclass(model, Module) or key == "default_root_dir"):
            yield f"trainer.{key} has no effect here; give {instead}"
    for callback in as_list(trainer.callbacks):
        name = str(callback.get("class_path")).rpartition(".")[2] if isinstance(callback, Namespace) else ""
        if name in _CALLBACKS_INSTEAD and issubclass(model, Module):
            yield f"trainer.callbacks: {name} has no effect here; give {_CALLBACKS_INSTEAD[name]}"
    if str(trainer.strategy).startswith("single_") and str(trainer.devices) not in ("1", "auto"):
        devices = f"trainer.devices is {trainer.devices}"
        yield f"trainer.strategy {trainer.strategy} is for one device, and {devices}; give ddp"


def _budget_mistakes(trainer: Namespace, model: Any) -> Iterator[str]:
    """A run without an end, or with one that is counted in the wrong unit."""
    if by_iteration(model) and trainer.max_steps >= 0:
        yield (
            f"trainer.max_steps would stop {model.__name__} in the middle of an iteration; "
            "give the number of iterations: trainer.max_epochs"
        )
        return
    if by_iteration(model):
        ends, budget = trainer.max_epochs is not None, "trainer.max_epochs (iterations)"
    elif issubclass(model, Module):
        ends, budget = trainer.max_steps >= 0, "trainer.max_steps (optimizer steps)"
    else:
        ends = trainer.max_epochs is not None or trainer.max_steps >= 0 or trainer.max_time is not None
        budget = "trainer.max_epochs or trainer.max_steps"
    if not ends:
        yield f"how long {model.__name__} trains is not set; give {budget}"


def complete_loggers(loggers: Any, directory: Path, name: str, *, resumed: bool) -> None:
    """Have W&B keep its files in the run directory, show the run's name and continue a resumed run."""
    for logger in as_list(loggers):
        if isinstance(logger, Namespace) and logger.class_path.endswith("WandbLogger"):
            args = logger.init_args
            args.save_dir = str(directory) if args.get("save_dir") in (None, ".") else args.save_dir
            args.name = args.get("name") or name
            if resumed and not (args.get("id") or args.get("version")):
                args.id = read_environment(directory).get("wandb_run")


def as_list(value: Any) -> list[Any]:
    """Nothing, one or several, as a list."""
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def as_user_error(error: BaseException) -> UserError:
    """One line for what a class or the trainer refused."""
    cause: BaseException | None = error
    while cause is not None:  # jsonargparse wraps what a class raises
        if isinstance(cause, UserError):
            return cause
        innermost, cause = cause, cause.__cause__ or cause.__context__
    if "Union subtypes" in str(error):  # so jsonargparse calls any error of a constructor
        return UserError(raised_in(innermost))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if is_out_of_memory(error):
        reason = lines[0].split(" If reserved")[0].rpartition("DefaultCPUAllocator: ")[2]
        return UserError(f"{reason}; a smaller microbatch_size, or decode_batch_size for rollouts, needs less memory")
    if isinstance(error, ModuleNotFoundError):
        return UserError(f"{lines[0]}; install it, or leave out what needs it")
    return UserError(lines[0])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the machine, has less memory than was asked for; on the CPU torch has no class for it."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator: " in str(error))
    )


def trainer_error(error: BaseException, trainer: Mapping[str, Any]) -> UserError:
    """One line for what the trainer refused; it names the argument, or those that it may be about."""
    line = str(as_user_error(error)).split(" Example choices")[0]
    if duration := re.search(r"Timer\(duration=(.*?)\)", line):
        return UserError(f"trainer.max_time: expected DD:HH:MM:SS, got {duration[1]}")
    if any(re.search(rf"\b{key}\b", line) for key in trainer):
        return UserError(f"trainer: {line}")
    keys = ("accelerator", "devices", "num_nodes", "strategy", "precision")
    given = ", ".join(f"trainer.{key} {trainer[key]}" for key in keys if trainer[key] not in (None, "auto"))
    return UserError(f"trainer: {line} ({given})")

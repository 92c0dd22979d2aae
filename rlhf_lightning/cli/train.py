"""`train`: a training run with a full run directory, in one call from Python."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything

from rlhf_lightning.cli.assembly import ONLY_IN_PYTHON, TRAINER_DEFAULTS, TrainingRun, completed
from rlhf_lightning.cli.checks import by_iteration, quiet_libraries
from rlhf_lightning.errors import UserError
from rlhf_lightning.lightning_seams import has_trainer
from rlhf_lightning.records.constructed import PlainValues
from rlhf_lightning.records.run_directory import check_name
from rlhf_lightning.records.runs import Run, load_run


def train(
    model: LightningModule,
    data: LightningDataModule,
    *,
    name: str,
    max_epochs: int | None = None,
    max_steps: int = -1,
    seed: int = 1,
    accelerator: str = "auto",
    devices: int = 1,
    callbacks: Sequence[Callback] = (),
    runs_dir: str | Path = "runs",
    overwrite: bool = False,
    checkpoint_every: int | None = None,
    checkpoint_keep: int = 2,
    progress_bar: bool = True,
    **trainer_arguments: Any,
) -> Run:
    """Train a model and write what the ``fit`` command writes, below ``runs_dir``.

    An unfinished run, with the same configuration, continues from its last checkpoint: the same call again, with new
    objects, ends like a run that was never interrupted. A finished one is refused, unless ``max_epochs`` or
    ``max_steps`` is larger than it was: then it is trained longer. The configuration that is written is that of the
    objects. ``fit --config runs/NAME/config.yaml`` repeats the run, unless the file lists under
    ``only_in_python`` what no configuration can express, such as a class that is defined in a notebook.

    ```python
    task = Bandit()
    run = train(PPO(task, TabularBackbone()), RolloutDataModule(task), name="ppo-1", max_epochs=3)
    run.series("eval/gold")
    ```

    Args:
        model: an algorithm, newly constructed.
        data: the data module that goes with it.
        max_epochs: number of iterations, for policy optimizers.
        max_steps: number of optimizer steps, for all others.
        seed: of the networks, of the order of the data and of the sampling noise.
        accelerator: as Lightning calls it, such as ``cpu`` or ``gpu``; ``auto`` is the CPU on Apple silicon, whose GPU
            has no float64.
        callbacks: of the user's own, beside those that write the files.
        runs_dir: folder of all runs.
        overwrite: replace a run that is there.
        checkpoint_every: iterations or steps between checkpoints.
        checkpoint_keep: number of last checkpoints kept.
        progress_bar: whether to show how far the run is.
        trainer_arguments: further arguments of Lightning's ``Trainer``.

    Raises:
        UserError: the length of the run is missing, an argument of the trainer does not go with a run directory, the
            model has been trained before, or the directory holds a run that is complete, another run, one whose inputs
            have changed, or something else.
        KeyboardInterrupt: the run was interrupted; the same call continues it.
    """
    _check(model, max_epochs, max_steps, trainer_arguments)
    trainer = {
        **TRAINER_DEFAULTS,
        "accelerator": accelerator,
        "devices": devices,
        "max_epochs": -1 if max_epochs is None else max_epochs,
        "max_steps": max_steps,
        "enable_progress_bar": None if progress_bar else False,
        "callbacks": list(callbacks),
        **trainer_arguments,
    }
    settings = {
        "seed_everything": seed,
        **configuration(model, data, trainer),
        "name": name,
        "runs_dir": str(runs_dir),
        "checkpoint_every": checkpoint_every,
        "checkpoint_keep": checkpoint_keep,
    }
    quiet_libraries()
    run = TrainingRun(Path(runs_dir) / check_name(name), settings, overwrite=overwrite)
    if run.plan.resume_from is None and has_trainer(model):
        raise UserError(f"this {type(model).__name__} has been trained before; construct a new one for a new run")
    seed_everything(seed, workers=True, verbose=False)
    with run.cleaning_up(), _interruptible():
        run.set_aside()
        parts = {key: getattr(model, key) for key in ("task", "backbone") if hasattr(model, key)}
        run.note_inputs({**parts, "model": model, "data": data, "trainer.callbacks": list(callbacks)})
        run.fit(Trainer(**completed(trainer, run.directory, model, run)), model, datamodule=data)
    run.finish()
    return load_run(run.directory)


def configuration(model: LightningModule, data: LightningDataModule, trainer: dict[str, Any]) -> dict[str, Any]:
    """The configuration of objects and of the trainer's arguments, as ``fit`` takes it."""
    values = PlainValues()
    settings: dict[str, Any] = {"trainer": values.plain("trainer", trainer)}
    for name in ("task", "backbone"):
        if hasattr(model, name):
            settings[name] = values.component(name, getattr(model, name))
    settings["model"] = values.component("model", model, without=("task", "backbone"))
    own_task = getattr(data, "task", None) is not getattr(model, "task", None)
    settings["data"] = values.component("data", data, without=() if own_task else ("task",))
    if own_task:
        values.inexpressible["data.init_args.task"] = "another object than the model's task"
    if values.inexpressible:
        settings[ONLY_IN_PYTHON] = values.inexpressible
    return json.loads(json.dumps(settings))  # as it is read from the file


@contextmanager
def _interruptible() -> Iterator[None]:
    """Pass on Ctrl-C as what it is: Lightning ends the process instead, and ignores the signal from then on."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt("interrupted; the same call continues the run") from None


def _check(
    model: LightningModule, max_epochs: int | None, max_steps: int, trainer_arguments: Mapping[str, Any]
) -> None:
    """Refuse a run without an end, since Lightning would train for a thousand epochs, or in another directory."""
    if max_epochs is None and (by_iteration(model) or max_steps < 0):
        budget = "max_epochs (iterations)" if by_iteration(model) else "max_steps (optimizer steps)"
        raise UserError(f"how long {type(model).__name__} trains is not set; give {budget}")
    for key in trainer_arguments.keys() & {"default_root_dir", "fast_dev_run"}:
        raise UserError(f"{key} does not go with a run directory; leave it out")

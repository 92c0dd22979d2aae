"""What surrounds a training run, started by a command or from Python: its directory, its callbacks, its end."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.accelerators import MPSAccelerator

from rlhf_lightning.callbacks.checkpoint_io import AtomicCheckpointIO
from rlhf_lightning.callbacks.checkpoints import Checkpoints
from rlhf_lightning.callbacks.detectors import Detector, WarningsFile, default_detectors
from rlhf_lightning.callbacks.export import Export
from rlhf_lightning.callbacks.metrics_file import MetricsFile
from rlhf_lightning.callbacks.progress import PrintedRows, Progress
from rlhf_lightning.callbacks.run_files import RunFiles
from rlhf_lightning.callbacks.samples_file import SamplesFile
from rlhf_lightning.callbacks.sigterm import Sigterm
from rlhf_lightning.callbacks.stops import early_end
from rlhf_lightning.cli.checks import as_list, by_iteration
from rlhf_lightning.errors import UserError
from rlhf_lightning.lightning_seams import callbacks_of, process_rank
from rlhf_lightning.records.config_files import read_config
from rlhf_lightning.records.files import writing
from rlhf_lightning.records.inputs import inputs_of
from rlhf_lightning.records.run_directory import CHECKPOINTS, RunDirectory
from rlhf_lightning.records.run_plan import plan_run

log = logging.getLogger(__name__)

TRAINER_DEFAULTS = {
    "devices": 1,
    "logger": False,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
    "enable_model_summary": False,
}
"""Arguments of the trainer that differ from Lightning's defaults."""

ONLY_IN_PYTHON = "only_in_python"
"""Key of a configuration that lists what `train` was given and no configuration can express."""


class TrainingRun:
    """Decides between start and resume, builds the callbacks that write the directory, and trains.

    Args:
        settings: the full configuration.
        overwrite: replace a run that is there.
        read: reads the full configuration of an unfinished run.

    Raises:
        UserError: the directory holds a finished run, another one, or something else.
    """

    def __init__(
        self,
        directory: Path,
        settings: dict[str, Any],
        *,
        overwrite: bool,
        read: Callable[[Path], Mapping[str, Any]] = read_config,
    ) -> None:
        self.directory = directory
        self.settings = settings
        with writing(directory):
            self.plan = plan_run(directory, settings, overwrite=overwrite, read=read)
        self.writer: RunDirectory | None = None
        if process_rank() == 0:
            folder = next(parent for parent in directory.absolute().parents if parent.exists())
            with writing(directory), TemporaryDirectory(prefix=f".{directory.name}.", dir=folder):
                pass  # refused now rather than after networks have been loaded
            self.writer = RunDirectory(self.plan, settings)
            for path in self.plan.damaged:
                log.warning("%s is damaged: the run continues from %s", path, self.plan.resume_from)

    @contextmanager
    def cleaning_up(self) -> Iterator[None]:
        """Leave no half-written run directory behind where training never starts."""
        try:
            yield
        except BaseException:
            if self.writer is not None:
                self.writer.abandon()
            raise

    def set_aside(self) -> None:
        """Move a run that is replaced out of the way."""
        if self.writer is not None:
            self.writer.set_aside()

    def note_inputs(self, components: Mapping[str, Any]) -> None:
        """Digest what the components read, to be kept with the run.

        Args:
            components: by their keys in the configuration.
        """
        if self.writer is not None:
            self.writer.inputs = inputs_of(components)

    def callbacks(
        self, model: LightningModule, given: Sequence[Callback], progress: Sequence[Callback], *, checkpointing: bool
    ) -> list[Callback]:
        """What writes the files of the run, but for what the user's own callbacks replace, and shows how far it is."""
        begins = self.plan.resume_from is None
        files = [RunFiles(self.writer, self.settings, begins=begins), MetricsFile(), SamplesFile(), WarningsFile()]
        own: list[Callback] = [*files, Sigterm(), *progress]  # a module that is not one of ours brings no Sigterm
        own += default_detectors(besides=given, of_policy=by_iteration(model))
        if checkpointing and not any(isinstance(callback, Checkpoints) for callback in given):
            every, keep = self.settings["checkpoint_every"], self.settings["checkpoint_keep"]
            own.append(Checkpoints(self.directory / CHECKPOINTS, every=every, keep=keep))
        if hasattr(model, "export"):
            own.append(Export())
        return own

    def fit(self, trainer: Trainer, model: LightningModule, ckpt_path: str | None = None, **arguments: Any) -> None:
        """Train, or continue, and make up for what is missing where the checkpoint was already that of the end.

        Args:
            ckpt_path: where a run starts from; ``last``, or one of its own, where it continues.
            arguments: of `Trainer.fit`.
        """
        if self.plan.resume_from is not None and not self._is_own(ckpt_path):
            ckpt_path = str(self.plan.resume_from)  # the same command again, whatever the run first started from
        elif ckpt_path == "last":
            ckpt_path = None
        trainer.fit(model, ckpt_path=ckpt_path, **arguments)
        if self.writer is not None and (reason := early_end(trainer)) is not None:
            print(f"{self.directory}: {reason}", flush=True)
        if any(isinstance(callback, RunFiles) and callback.started for callback in callbacks_of(trainer)):
            return
        if self.plan.resume_from is None:
            raise UserError("there was nothing to train: the trainer's limits allow no step")
        for callback in callbacks_of(trainer):
            if isinstance(callback, Detector | Export):
                callback.on_train_end(trainer, model)

    def _is_own(self, ckpt_path: str | None) -> bool:
        """Whether a checkpoint is one of this run's."""
        return ckpt_path is not None and Path(ckpt_path).resolve().parent == (self.directory / CHECKPOINTS).resolve()

    def finish(self) -> None:
        """Mark the run as done."""
        if self.writer is not None:
            self.writer.finish()
            print(f"{self.directory}: done", flush=True)


def completed(
    arguments: Mapping[str, Any], directory: Path, model: LightningModule | None, run: TrainingRun | None
) -> dict[str, Any]:
    """Arguments of a trainer that writes to a run directory.

    Args:
        arguments: of the user's own.
        model: that is trained; None for evaluations.
        run: whose files are written; None for evaluations and dry runs.
    """
    plugins, callbacks = as_list(arguments.get("plugins")), as_list(arguments.get("callbacks"))
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(AtomicCheckpointIO())
    own: list[Callback] = [] if arguments.get("enable_progress_bar") is False else [Progress()]
    if model is None:
        own.insert(0, PrintedRows())
    elif run is not None:
        checkpointing = arguments.get("enable_checkpointing") is not False
        own = run.callbacks(model, callbacks, own, checkpointing=checkpointing)
    paths = {
        "default_root_dir": str(directory),
        "plugins": plugins,
        "callbacks": callbacks + own,
        "accelerator": _accelerator(arguments.get("accelerator", "auto")),
    }
    if model is not None and by_iteration(model) and arguments.get("limit_val_batches") is None:
        return {**arguments, **paths, "limit_val_batches": 0}  # a policy optimizer evaluates itself, between iterations
    return {**arguments, **paths}


def _accelerator(given: Any) -> Any:
    """The accelerator that was asked for; on Apple silicon ``auto`` is the CPU.

    Raises:
        UserError: Apple's GPU was asked for: it has no float64, which noise, sums and moments are computed in.
    """
    if not MPSAccelerator.is_available():
        return given
    warnings.filterwarnings("ignore", message=".*GPU available but not used")  # Lightning would advise it
    if given == "auto":
        if process_rank() == 0:
            log.warning("Apple silicon: training on the CPU, since sums and noise need float64 and the GPU has none")
        return "cpu"
    if given in ("gpu", "mps") or isinstance(given, MPSAccelerator):
        raise UserError(
            "trainer.accelerator is Apple's GPU, which has no float64, as sums and noise need; expected cpu"
        )
    return given

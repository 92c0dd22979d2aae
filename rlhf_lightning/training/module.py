"""`Module`: gradients, steps and metrics that are the same on any number of devices."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from rlhf_lightning.callbacks.listener import Listener, UpdateWatcher, resumed
from rlhf_lightning.callbacks.run_files import RunFiles
from rlhf_lightning.callbacks.sigterm import Sigterm
from rlhf_lightning.callbacks.tracking import tell_loggers
from rlhf_lightning.distributed import (
    all_sum,
    from_first_rank,
    gather_items,
    rank,
    run_seed,
    sum_gradients,
    world_size,
)
from rlhf_lightning.errors import UserError
from rlhf_lightning.lightning_seams import callbacks_of, has_trainer, is_dry_run, keep_loaders_whole
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.policy import TextPolicy
from rlhf_lightning.models.state import trained_parameters
from rlhf_lightning.records.constructed import Constructed
from rlhf_lightning.records.metrics import Description, Experience, Metric
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.training.stopwatch import Stopwatch
from rlhf_lightning.training.weight_change import WeightChange, change_metric


def text_policy(backbone: Backbone, task: Task) -> TextPolicy:
    """The policy of a backbone that answers text, at temperature 1.

    Raises:
        UserError: it acts in environments.
    """
    policy = backbone.policy(task.interface, temperature=1.0)
    if not isinstance(policy, TextPolicy):
        raise UserError(f"backbone {type(backbone).__name__} does not answer text; expected LanguageBackbone")
    return policy


class Module(Constructed, LightningModule):
    """What all algorithms share: each rank computes its own rows of a global batch, and gradients are summed once.

    A loss is a sum over this rank's rows divided by a *global* count, so summing the gradients of microbatches and of
    ranks gives the gradient of the whole batch. Backward passes run unsynchronized, inside `local_backward`; one
    flat all-reduce in `apply_gradients` joins them.

    Args:
        task: where data comes from.
        backbone: builds the networks.
        optimization: how they are stepped.
    """

    requires: ClassVar[frozenset[str]] = frozenset()
    """What the task must provide."""

    by_iteration: ClassVar[bool] = False
    """Whether an epoch is an iteration and ``trainer.max_epochs`` the budget, instead of ``trainer.max_steps``."""

    def __init__(self, task: Task, backbone: Backbone, optimization: Optimization) -> None:
        super().__init__()
        task.require(self.requires, by=type(self).__name__)
        self.automatic_optimization = False
        self.task = task
        self.backbone = backbone
        self.optimization = optimization
        self.steps_loaded = 0
        self.reported_names: set[str] = set()
        self.stopwatch = Stopwatch()
        self._grad_norms: dict[str, list[float]] = {}
        self._weights: dict[str, WeightChange] = {}
        self._saved_starts: dict[str, Tensor] = {}

    # -- what a subclass defines -------------------------------------------------------------------------------

    @property
    def kind(self) -> str:
        """The kind of run, see `Description`."""
        raise NotImplementedError

    def metrics(self) -> tuple[Metric, ...]:
        """What is logged and worth a figure, in the order of the figures."""
        return ()

    def experience(self) -> Experience | None:
        """What is learned from; None where nothing counts it."""
        return None

    def progress(self) -> dict[str, str]:
        """Metrics that are shown while the run goes on, in this order, with short labels."""
        return {}

    def networks(self) -> dict[str, nn.Module]:
        """Trained networks by name; gradients are clipped and measured for each by itself."""
        raise NotImplementedError

    def learners(self) -> dict[str, nn.Module]:
        """Networks that the run changes, by name: those of `networks`, and what is moved without the optimizer."""
        return self.networks()

    def learning_rates(self) -> dict[str, float]:
        """Learning rates of networks that do not follow ``optimization.lr``."""
        return {}

    def schedule_length(self) -> float:
        """Number of times that the learning-rate schedule is stepped in the run; -1 or infinity where nobody knows."""
        raise NotImplementedError

    def export(self, path: Path) -> None:
        """Write the trained networks into a folder, in the Hugging Face format."""
        raise NotImplementedError

    def position(self) -> str:
        """Which step is being taken, counted from 1, for messages."""
        return f"step {self.global_step + 1}"

    def describe(self) -> Description:
        """The content of ``run.json``."""
        moved = [change_metric(name, shown=number == 0) for number, name in enumerate(self._weights)]
        watchers = callbacks_of(self.trainer) if has_trainer(self) else ()
        watched = [metric for one in watchers if isinstance(one, UpdateWatcher) for metric in one.metrics()]
        return Description(self.kind, type(self).__name__, self.experience(), (*self.metrics(), *moved, *watched))

    # -- the trainer -------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Validate strategy and precision, and keep the data loaders the same on every rank.

        Raises:
            UserError: the weights would be kept in half precision, or the strategy divides gradients or weights itself.
        """
        # The loaders only count: shared out among ranks, each would see a part of the batches.
        keep_loaders_whole(self.trainer)
        if stage != TrainerFn.FITTING:
            return
        strategy, precision = self.trainer.strategy, self.trainer.precision_plugin.precision
        if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy) or isinstance(strategy, DeepSpeedStrategy):
            raise UserError(
                f"trainer.strategy is {type(strategy).__name__}, which shares out gradients or weights itself; "
                "expected ddp, or auto on one device"
            )
        if precision in ("bf16-true", "16-true", "transformer-engine-float16"):
            raise UserError(
                f"trainer.precision is {precision}, in which small updates of the weights are rounded away; "
                "expected 32-true, 64-true, bf16-mixed or 16-mixed"
            )

    def configure_callbacks(self) -> list[Callback]:
        """What every trainer of this module needs."""
        return [Sigterm()]

    def on_fit_start(self) -> None:
        """Check that all ranks start from the same seed and step; otherwise they would diverge, or wait for each other.

        The weights are remembered as they are now, or as the checkpoint of a run that goes on says that they were.

        Raises:
            UserError: they do not.
        """
        starts = gather_items([f"seed {run_seed()} after {self.steps_loaded} steps"], world_size())
        for number, start in enumerate(starts):
            if start != starts[0]:
                raise UserError(
                    f"rank 0 starts with {starts[0]} and rank {number} with {start}; "
                    "expected the same command on every node, and --runs_dir on a file system that they share"
                )
        self._remember_weights()

    def _remember_weights(self) -> None:
        learners = {name: network for name, network in self.learners().items() if trained_parameters(network)}
        if self._begins or not self.trainer.ckpt_path:
            self._weights = {name: WeightChange(network) for name, network in learners.items()}
            return
        # Of a checkpoint that does not say how its run started nothing is known.
        known = {name: learners[name] for name in self._saved_starts if name in learners}
        self._weights = {name: WeightChange(network, self._saved_starts[name]) for name, network in known.items()}

    @property
    def fitting(self) -> bool:
        """Whether this is training, evaluations in between included."""
        return self.trainer.state.fn == TrainerFn.FITTING

    @property
    def goes_on(self) -> bool:
        """Whether the run has rows already, as opposed to one that begins, be it at a checkpoint of another run."""
        return resumed(self.trainer) and not self._begins

    @property
    def _begins(self) -> bool:
        """Whether the run's files say that it begins, be it at a checkpoint of another run."""
        return any(callback.begins for callback in callbacks_of(self.trainer) if isinstance(callback, RunFiles))

    @property
    def steps(self) -> int:
        """Optimizer steps taken: of this run, or of the checkpoint that is evaluated."""
        return self.global_step if self.fitting else self.steps_loaded

    @property
    def datamodule(self) -> Any:
        """The data module that the trainer was given."""
        return cast(Any, self.trainer).datamodule

    @property
    def fast_dev_run(self) -> bool:
        """Whether the trainer only tries out a single step."""
        return is_dry_run(self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is remembered of the weights at the start."""
        checkpoint["weights_at_start"] = {name: weights.state() for name, weights in self._weights.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember how far the checkpoint is and how its run started, and make room for its numbers."""
        self.steps_loaded = int(checkpoint["global_step"])
        self._saved_starts = checkpoint.get("weights_at_start", {})
        if has_trainer(self) and self.trainer.precision_plugin.precision == "64-true":
            self.double()  # Lightning converts after loading: networks from a folder would round to float32 first

    # -- what takes long ---------------------------------------------------------------------------------------

    def announce(self, phase: str) -> None:
        """Tell callbacks, in words, of work that begins and may take minutes."""
        if has_trainer(self):
            for callback in callbacks_of(self.trainer):
                if isinstance(callback, Listener):
                    callback.on_phase(self.trainer, self, phase)

    def timed(self, name: str) -> AbstractContextManager[None]:
        """Measure a part of the work, as ``timing/NAME_seconds`` of the next row."""
        return self.stopwatch.timed(name)

    @contextmanager
    def building(self) -> Iterator[None]:
        """Context in which networks are built or loaded, on the CPU, so that they start alike on every device."""
        source = getattr(self.backbone, "checkpoint", None)
        self.announce(f"loads {source}" if source else "builds its networks")
        with self.timed("loading"), torch.device("cpu"):
            yield

    # -- optimization ------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """One AdamW over all trained networks.

        Raises:
            UserError: the schedule needs an end, and the run has none.
        """
        length = self.schedule_length()
        endless = not 0 < length < math.inf
        if endless and self.optimization.needs_length:
            raise UserError(
                f"optimization.schedule {self.optimization.schedule} with warmup {self.optimization.warmup} depends on "
                "the length of the run, which has no end; give trainer.max_epochs or trainer.max_steps"
            )
        length = 1 if endless else int(length)
        return self.optimization.build(
            self.networks(), length=length, lrs=self.learning_rates(), fused=self.grad_scaler is None
        )

    def local_backward(self) -> AbstractContextManager[None]:
        """Context in which backward passes leave gradients on this rank; `apply_gradients` sums them."""
        strategy = self.trainer.strategy
        if world_size() > 1 and hasattr(strategy, "block_backward_sync"):
            return strategy.block_backward_sync()
        return nullcontext()

    def apply_gradients(self, *, frozen: Collection[str] = ()) -> None:
        """Sum gradients over ranks, clip them, take a step, and clear them.

        Args:
            frozen: networks that stay as they are to the bit, moments and weight decay included.
        """
        optimizer = self.optimizer
        moving = []
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if group["name"] in frozen:
                    parameter.grad = None
                else:
                    # Another rank may have one, and AdamW skips parameters without: it must do the same on all ranks.
                    parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                    moving.append(parameter)
        sum_gradients(moving)
        optimizer.step()
        optimizer.zero_grad()

    @property
    def grad_scaler(self) -> torch.amp.GradScaler | None:
        """What multiplies losses in 16-bit mixed precision; None elsewhere."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def optimizer(self) -> LightningOptimizer:
        """The optimizer of all networks."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        return optimizer

    def step_schedule(self) -> None:
        """Advance the learning-rate schedule by one."""
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, LRScheduler)
        scheduler.step()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Measure and clip, after a gradient scaler has unscaled.

        Raises:
            UserError: a gradient is not finite (without a scaler, which skips such steps itself).
        """
        scaled = self.grad_scaler is not None
        for group in optimizer.param_groups:
            gradients = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
            if not gradients:
                continue
            limit = self.optimization.max_grad_norm
            total = nn.utils.get_total_norm(gradients)
            norm = total.item()
            if limit is not None and not norm <= limit:
                nn.utils.clip_grads_with_norm_(group["params"], limit, total)
            if math.isfinite(norm):
                self._grad_norms.setdefault(group["name"], []).append(norm)
            elif not scaled:
                raise UserError(
                    f"the gradient of the {group['name']} is not finite at {self.position()}; "
                    "the checkpoint before it is kept: try a lower learning rate"
                )

    def gradient_norms(self) -> dict[str, float]:
        """Norm of each network's gradient before clipping, the mean over the steps since the last call."""
        means = {f"{name}/grad_norm": sum(norms) / len(norms) for name, norms in self._grad_norms.items()}
        self._grad_norms = {}
        return means

    def weight_changes(self, *, besides: Collection[str] = ()) -> dict[str, float]:
        """How far the weights of each network are from the start of the run, relative to their norm there.

        Args:
            besides: networks that are held where they are, of which nothing is reported.
        """
        changes = {name: weights.value() for name, weights in self._weights.items() if name not in besides}
        return {change_metric(name).name: change for name, change in changes.items()}

    # -- metrics -----------------------------------------------------------------------------------------------

    def reduced(self, sums: Mapping[str, Tensor], largest: Mapping[str, Tensor] | None = None) -> dict[str, float]:
        """Sums over ranks, and the largest of the ranks' values, as numbers: one collective call, one transfer."""
        largest = largest or {}
        added = [value.detach().double() for value in sums.values()]
        placed = [torch.zeros(world_size(), dtype=torch.float64, device=value.device) for value in largest.values()]
        for slots, value in zip(placed, largest.values(), strict=True):
            slots[rank()] = value.detach()
        total = all_sum(torch.cat([torch.stack(added), *placed])).tolist()
        numbers = dict(zip(sums, total, strict=False))
        for number, name in enumerate(largest):
            start = len(sums) + number * world_size()
            numbers[name] = max(total[start : start + world_size()])
        return numbers

    def check_finite(self, name: str, value: float, culprit: str = "") -> None:
        """Stop the run on all ranks alike; the value must be reduced already."""
        if not math.isfinite(value):
            raise UserError(f"{name} is {value} at {self.position()}{culprit}; the checkpoint before it is kept")

    def publish(self, row: Mapping[str, float]) -> None:
        """Report a finished row of metrics, its x-axis first, to callbacks and loggers."""
        if self.fitting:
            row = {**row, **self.stopwatch.take()}
        row = from_first_rank(dict(row))  # times differ, and perhaps a last bit: callbacks decide by these numbers
        axis, *names = row
        position = int(row[axis])
        row = {axis: position} | {name: v if isinstance(v := row[name], int) else float(v) for name in names}
        if self.fitting:
            self._show_to_callbacks(row)
        for callback in callbacks_of(self.trainer):
            if isinstance(callback, Listener):
                callback.on_row(self.trainer, self, row)
        if not self.fitting:
            # Lightning passes these on to loggers, and returns them from `Trainer.validate`.
            self.log_dict(row, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
            return
        if rank() == 0:
            tell_loggers(self.trainer, lambda logger: logger.log_metrics(dict(row), step=position))

    def _show_to_callbacks(self, row: Mapping[str, float]) -> None:
        """Put a row where Lightning's callbacks look; a row of an iteration replaces the one before.

        Otherwise `EarlyStopping` would take an evaluation for a new one at each iteration until the next.
        """
        # Not `self.log`, which would give callbacks the mean over an epoch; every rank has the same numbers already.
        metrics = self.trainer.callback_metrics
        for name in self.reported_names if self.by_iteration else ():
            metrics.pop(name, None)
        own = {name: torch.tensor(float(value)) for name, value in list(row.items())[1:]}
        metrics.update(own)
        self.reported_names |= own.keys()

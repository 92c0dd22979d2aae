"""`Offline`: the step that all algorithms share which learn from given data (SFT, reward modeling, DPO)."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

import torch
from torch import Tensor

from rlhf_lightning.data.passes import PassDataModule
from rlhf_lightning.distributed import failing_together, gather_items, own_rows, rank, row_slices
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.language.text import EncodedResponses
from rlhf_lightning.records.metrics import Experience
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.module import Module
from rlhf_lightning.training.optimization import Optimization

Example = TypeVar("Example")

LEFT_OUT = "data/left_out"
"""Examples whose responses are equal once they are token ids and cut."""
EQUAL = (
    "the responses of each are the same tokens once they are cut; expected some that differ, or room for longer ones"
)

log = logging.getLogger(__name__)


@dataclass
class Part(Generic[Example]):
    """Some examples of a global batch.

    Args:
        examples: this rank's, or a microbatch of them.
        encoded: their responses as token ids.
        statistics: numbers of the *whole* batch that the loss of each example needs; empty for most losses.
    """

    examples: Sequence[Example]
    encoded: EncodedResponses
    statistics: Mapping[str, float] = field(default_factory=dict)


LossSum: TypeAlias = Callable[[Part[Example]], tuple[Tensor, dict[str, Tensor]]]


class Offline(Module, Generic[Example]):
    """One optimizer step per global batch of examples; the budget is ``trainer.max_steps``.

    Args:
        log_every: steps between rows of metrics.
    """

    data_class: ClassVar[type[PassDataModule[Any]]]
    measured: tuple[str, ...] = ()
    """Further sums that `loss_sum` reports: also a rank without a row of a batch has to know them."""

    def __init__(self, task: Task, backbone: Backbone, optimization: Optimization, log_every: int) -> None:
        super().__init__(task, backbone, optimization)
        if log_every < 1:
            raise UserError(f"model.init_args.log_every must be at least 1, got {log_every}")
        self.log_every = log_every
        self.counts = dict.fromkeys((*_counts(()), LEFT_OUT), 0.0)
        """Examples that did not go into the steps so far as they were given; logged where it is not 0."""

    # -- what a subclass defines -------------------------------------------------------------------------------

    def encode(self, examples: Sequence[Example]) -> EncodedResponses:
        """Token ids of some examples."""
        raise NotImplementedError

    def owners(self, examples: Sequence[Example]) -> Sequence[int]:
        """Number of the example that each row of `encode` belongs to: several have the same where they are compared."""
        return range(len(examples))

    def equal(self, examples: Sequence[Example], encoded: EncodedResponses) -> set[int]:
        """Numbers of the examples that have the same token ids twice, which a loss is not to see."""
        owners = self.owners(examples)
        if len(owners) == len(examples):
            return set()
        counts = Counter(zip(owners, encoded.rows(), strict=True))
        return {owner for (owner, _), count in counts.items() if count > 1}

    def statistics(self, batch: Sequence[Example]) -> dict[str, float]:
        """Numbers of a whole global batch that the loss of each of its examples needs, the same on all ranks.

        Called without gradients, on every rank with the same batch, before the loss of any part of it.
        """
        return {}

    def weight(self, part: Part[Example]) -> float:
        """What the loss of these examples is divided by: their number, or that of their tokens."""
        return float(len(part.examples))

    def loss_sum(self, part: Part[Example]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss summed over these examples, and further sums to report."""
        raise NotImplementedError

    def training_row(self, means: dict[str, float]) -> dict[str, float]:
        """The metrics of a step, from the mean ``loss`` and the means of the further sums."""
        raise NotImplementedError

    # -- the step ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check that the data are of the right kind.

        Raises:
            UserError: the data module is of another kind.
        """
        super().setup(stage)
        if not isinstance(self.datamodule, self.data_class):
            raise UserError(
                f"{type(self).__name__} needs data of class {self.data_class.__name__}, "
                f"got {type(self.datamodule).__name__}"
            )

    def schedule_length(self) -> float:
        """One step per batch."""
        return self.trainer.estimated_stepping_batches

    @property
    def data(self) -> PassDataModule[Example]:
        """The data module."""
        return self.datamodule

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what has been counted."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["shortened"] = self.counts

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the counters.

        Raises:
            UserError: the checkpoint is one of a policy optimizer.
        """
        super().on_load_checkpoint(checkpoint)
        if "shortened" not in checkpoint:
            raise UserError(f"the checkpoint is not one of {type(self).__name__}")
        self.counts |= checkpoint["shortened"]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One step on the global batch of this step."""
        with self.local_backward():
            means = self.gradients()
        self.check_finite("the loss", means["loss"])
        lr = self.lr
        self.apply_gradients()
        self.step_schedule()
        if 0 <= self.trainer.max_steps <= self.global_step:
            self.trainer.should_stop = True  # Lightning then validates, wherever the last step falls
        norms = self.gradient_norms()
        if self.global_step % self.log_every == 0 or self.global_step == 1:
            moved = {**norms, **self.weight_changes(), "lr": lr}
            row = {"step": self.global_step, **self.training_row(means), **moved}
            self.publish(row | {name: count for name, count in self.counts.items() if count})

    def on_validation_epoch_start(self) -> None:
        """Look at the clock."""
        self._evaluation_started = time.perf_counter()

    def publish_evaluation(self, row: Mapping[str, float]) -> None:
        """Report a finished evaluation, and how long it took.

        Args:
            row: its metrics.
        """
        self.stopwatch.add("evaluation", time.perf_counter() - self._evaluation_started)
        self.publish({"step": self.steps, **row})

    def gradients(self) -> dict[str, float]:
        """Accumulate those of this step; the mean loss and the means of the further sums."""
        return self.accumulate(self.data.train_batch(self.global_step), self.loss_sum)

    def accumulate(
        self, examples: Sequence[Example], loss_sum: LossSum[Example], *, counted: bool = True
    ) -> dict[str, float]:
        """Add the gradients of the mean loss over a global batch, in microbatches, each rank its own rows.

        Args:
            loss_sum: the loss of some examples, and further sums.
            counted: whether examples that do not fit into the context, or are left out, are counted.
        """
        parts = self.parts(examples)
        total = self.reduced({"weight": self._number(sum(self.weight(part) for part in parts))})["weight"] or 1.0
        sums = {name: self._number(0) for name in ("loss", *self.measured)}
        for part in parts:
            loss, measured = loss_sum(part)
            self.manual_backward(loss / total)
            for name, value in {"loss": loss, **measured}.items():
                sums[name] = sums[name] + value.detach()
        left_out = len(own_rows(len(examples))) - sum(len(part.examples) for part in parts)
        own = _counts([part.encoded for part in parts]) | {LEFT_OUT: left_out}
        reduced = self.reduced(sums | {name: self._number(count) for name, count in own.items()})
        if counted:
            if reduced[LEFT_OUT] and not self.counts[LEFT_OUT] and rank() == 0:
                log.warning(
                    "%d %s of this batch are left out, since their responses are the same tokens once they are cut; "
                    "further ones are counted as %s",
                    reduced[LEFT_OUT],
                    self.data.unit,
                    LEFT_OUT,
                )
            self.counts = {name: count + reduced[name] for name, count in self.counts.items()}
        return {name: reduced[name] / total for name in sums}

    def parts(self, examples: Sequence[Example]) -> list[Part[Example]]:
        """This rank's rows of a global batch, encoded, in microbatches; with the statistics of the whole batch."""
        mine = [examples[row] for row in own_rows(len(examples)).tolist()]
        with failing_together():
            slices = row_slices(len(mine), self.optimization.microbatch_size)
            chosen = [[mine[row] for row in rows.tolist()] for rows in slices if len(rows)]
            parts = [Part(kept, encoded.to(self.device)) for kept, encoded in map(self._encoded, chosen) if kept]
        with torch.no_grad():
            statistics = self.statistics(examples)
        return [replace(part, statistics=statistics) for part in parts]

    def comparable(self, examples: Sequence[Example]) -> list[Example]:
        """The examples, the same on all ranks, but for those whose responses are the same token ids."""
        if len(self.owners(examples)) == len(examples):
            return list(examples)
        mine = [examples[row] for row in own_rows(len(examples)).tolist()]
        with failing_together():
            equal = self.equal(mine, self.encode(mine)) if mine else set()
        kept = gather_items([number not in equal for number in range(len(mine))], len(examples))
        return list(compress(examples, kept))

    def _encoded(self, examples: Sequence[Example]) -> tuple[Sequence[Example], EncodedResponses]:
        """Examples with their token ids, but for those that compare equal ids, where a loss sees only rounding."""
        encoded = self.encode(examples)
        if equal := self.equal(examples, encoded):
            examples = [example for number, example in enumerate(examples) if number not in equal]
            encoded = self.encode(examples) if examples else encoded
        return examples, encoded

    def _number(self, value: float) -> Tensor:
        return torch.tensor(float(value), dtype=torch.float64, device=self.device)

    def experience(self) -> Experience:
        """The examples of each step."""
        return Experience(self.data.unit, per_step=self.data.batch_size)


def _counts(encoded: Sequence[EncodedResponses]) -> dict[str, int]:
    """How many examples did not fit into the context, and how many spell out special tokens."""
    return {
        "data/prompts_shortened": sum(part.truncated_prompts for part in encoded),
        "data/responses_shortened": sum(part.truncated_responses for part in encoded),
        "data/special_tokens_spelled": sum(part.spelled for part in encoded),
    }

"""`PolicyAlgorithm`: the iteration that all policy optimizers share.

One Lightning epoch is one iteration: collect → prepare → update → evaluate now and then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from rlhf_lightning.algorithms.base.penalized import PenalizedModule
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.data.collection import CollectionDataModule
from rlhf_lightning.distributed import world_size
from rlhf_lightning.errors import UserError, check_limits, located
from rlhf_lightning.evaluation.heldout import HeldoutEvaluation
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.minibatches import Loss, Minibatch, shuffled_minibatches, whole_batch
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import Rollout, ScoredRollout, TrainBatch


class PolicyAlgorithm(PenalizedModule):
    """A policy that is improved on rollouts of its own.

    The convention of all optimizers: a loss is summed over a trajectory's actions and averaged over trajectories, so
    that its expected gradient is the policy gradient itself, not one that depends on lengths.

    Args:
        kl: penalty on the KL to the reference, in the reward or in the loss; tasks without a reference (environments)
            take a coefficient of 0.
        temperature: of the policy, 0.7 to 1.
        eval_every: iterations between evaluations on held-out prompts or in fresh episodes.
    """

    def __init__(
        self,
        task: Task,
        backbone: Backbone,
        optimization: Optimization,
        kl: KLControl,
        temperature: float,
        eval_every: int,
    ) -> None:
        super().__init__(task, backbone, optimization, kl, temperature)
        if eval_every < 1:
            raise UserError(f"model.init_args.eval_every must be at least 1, got {eval_every}")
        self.eval_every = eval_every
        self.iterations_loaded = 0
        self._heldout: HeldoutEvaluation | None = None

    # -- to be said by the subclass ----------------------------------------------------------------------------

    def prepare(self, scored: ScoredRollout) -> TrainBatch:
        """Add reference logprobs, values, shaped rewards and advantages."""
        raise NotImplementedError

    def loss(self, part: TrainBatch, whole: Minibatch) -> Loss:
        """What is minimized, of some rows of a minibatch."""
        raise NotImplementedError

    def update(self, batch: TrainBatch) -> dict[str, float]:
        """Improve the policy on the batch; returns metrics."""
        raise NotImplementedError

    @property
    def policy_learns(self) -> bool:
        """Whether the policy is moved in this iteration."""
        return True

    # -- the trainer -------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """See that data and budget fit before anything is collected.

        Raises:
            UserError: the data module is of another kind, or the budget counts steps instead of iterations.
        """
        super().setup(stage)
        data = self.trainer.datamodule
        if not isinstance(data, CollectionDataModule):
            raise UserError(f"{type(self).__name__} needs data of class RolloutDataModule, got {type(data).__name__}")
        if self.fitting and self.trainer.max_steps >= 0 and not self.trainer.fast_dev_run:
            raise UserError(
                f"trainer.max_steps counts optimizer steps, of which {type(self).__name__} takes several in an "
                "iteration; give the number of iterations: trainer.max_epochs"
            )
        self._heldout = None  # of the prompts of the data module before

    def schedule_length(self) -> float:
        """One step per iteration."""
        return self.trainer.max_epochs or 1

    def position(self) -> str:
        """The iteration, counted from 1."""
        return f"iteration {self.current_epoch + 1}"

    @property
    def rollouts(self) -> CollectionDataModule:
        """The data module."""
        return self.trainer.datamodule

    # -- the iteration -----------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Measure the starting point, unless the run is resumed."""
        if self.current_epoch == 0:
            self.publish({"iteration": 0, **self.evaluate(iteration=0)})

    def on_train_epoch_start(self) -> None:
        """Collect a rollout with the current policy and prepare it for the update."""
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            with located(self.position()):
                scored = self.collect()
            self.scored = scored = replace(scored, rollout=self.rescored(scored.rollout))
            self.row = {"iteration": self.current_epoch + 1, **self.rollouts.statistics(scored)}
            self.row |= {f"timing/{name}": value for name, value in scored.timings.items()}
            tokens, seconds = scored.rollout.action_mask.sum().item(), scored.timings["rollout_seconds"]
            self.row |= {"rollout/tokens_per_second": tokens / seconds}
            if scored.prompts_shortened:
                self.row |= {"rollout/prompts_shortened": scored.prompts_shortened}
            self.row |= self.rollouts.counters(scored, self.current_epoch)
            self.batch = self.prepare(scored).units()

    def collect(self) -> ScoredRollout:
        """This iteration's rollout."""
        return self.rollouts.collect(self.policy, self.current_epoch)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Update on the prepared batch."""
        started = time.perf_counter()
        with self.local_backward():
            self.row |= self.update(self.batch)
        if self.reference is not None and self.policy_learns:
            self.kl.update(self.row["objective/kl_ref_sequence"])
        self.rollouts.finish(self.scored)
        self.row |= self.gradient_norms()
        self.row |= {"timing/update_seconds": time.perf_counter() - started}
        self.row |= {"lr": self.optimizers().param_groups[0]["lr"]}
        self.step_schedule()

    def on_train_epoch_end(self) -> None:
        """Evaluate where it is due, always at the end, and report the row."""
        iteration = self.current_epoch + 1
        if iteration % self.eval_every == 0 or iteration == self.trainer.max_epochs:
            self.row |= self.evaluate(iteration=iteration)
        self.publish(self.row)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Evaluate on held-out prompts; in training that is done at the end of iterations instead."""
        if not self.fitting:
            iteration = self.iterations_loaded
            self.publish({"iteration": iteration, **self.evaluate(iteration=iteration)})

    test_step = validation_step

    @torch.no_grad()
    def evaluate(self, *, iteration: int) -> dict[str, float]:
        """Judge the policy on held-out prompts, or in fresh episodes."""
        with self.trainer.precision_plugin.forward_context(), located(self.position()):
            if self.reference is None:
                statistics = self.rollouts.statistics(self.rollouts.collect_heldout(self.policy))
                row = {name.partition("/")[2]: value for name, value in statistics.items()}
            else:
                if self._heldout is None:
                    self._heldout = HeldoutEvaluation(self, self.policy, self.reference, self.rollouts.collect_heldout)
                row = self._heldout.row(iteration)
        return {f"eval/{name}": value for name, value in row.items()}

    # -- for prepare -------------------------------------------------------------------------------------------

    def rescored(self, rollout: Rollout) -> Rollout:
        """Under autocast, with logprobs as the update will compute them: decoding rounds differently."""
        if not torch.is_autocast_enabled(rollout.actions.device.type):
            return rollout
        (logprobs,) = self.over_own_rows(
            lambda part: (self.policy.evaluate(part.context, part.actions, part.action_mask).logprobs,), rollout
        )
        return replace(rollout, old_logprobs=logprobs)

    # -- for update --------------------------------------------------------------------------------------------

    def minibatches(self, batch: TrainBatch, *, size: int, epochs: int) -> Iterator[Minibatch]:
        """Several epochs of shuffled global minibatches; this rank gets rows r, r + W, … of each."""
        for epoch in range(epochs):
            key = self.current_epoch * epochs + epoch
            yield from shuffled_minibatches(
                batch, size=size, key=key, microbatch_size=self.optimization.microbatch_size
            )

    def whole(self, batch: TrainBatch) -> Minibatch:
        """The whole batch as one minibatch."""
        return whole_batch(batch, microbatch_size=self.optimization.microbatch_size)

    def accumulate(
        self, minibatch: Minibatch, loss: Callable[[TrainBatch, Minibatch], Loss] | None = None
    ) -> dict[str, float]:
        """Add this rank's gradients of the loss; means per action, and largest values, over the whole minibatch.

        Args:
            loss: what is minimized; None for `loss`.
        """
        parts: list[Loss] = []
        for part in minibatch.parts:  # each rank has some: it is seen to that devices divide batches and minibatches
            one = (loss or self.loss)(part, minibatch)
            self.manual_backward(one.value)
            parts.append(one.detached())
        sums = {name: sum(one.sums[name] for one in parts) for name in parts[0].sums}
        largest = {name: torch.stack([one.largest[name] for one in parts]).max() for name in parts[0].largest}
        reduced = self.reduced({"loss": sum(one.value for one in parts), **sums}, largest=largest)
        self.check_finite(f"the {type(self).__name__} loss", reduced.pop("loss"))
        return {name: value if name in largest else value / minibatch.tokens for name, value in reduced.items()}

    def went_too_far(self, kl_old: float, stop_kl: float | None) -> bool:
        """Whether an update ends before the step whose gradients are there; these are forgotten then.

        Args:
            kl_old: KL(π_old‖π) in nats per action, the same on all ranks.
            stop_kl: its limit; None for none.
        """
        if stop_kl is None or kl_old <= stop_kl:
            return False
        self.forget_gradients()
        return True

    def check_groups(self) -> None:
        """Refuse to train on single responses, which have none to be compared with."""
        samples = self.rollouts.samples_per_prompt
        if self.fitting and samples < 2:
            raise UserError(
                f"data.init_args.samples_per_prompt is {samples}; expected at least 2, since {type(self).__name__} "
                "compares responses to the same prompt"
            )

    def check_minibatch_size(self, size: int | None) -> None:
        """Refuse a minibatch that the devices cannot share evenly; None is the whole rollout."""
        if size is not None and (size < 1 or size % world_size()):
            raise UserError(
                f"model.init_args.minibatch_size is {size}, which {world_size()} devices do not divide; "
                "expected a multiple of the number of devices"
            )

    # -- checkpoints -------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the number of the iteration."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["iteration"] = int(self.row.get("iteration", self.iterations_loaded))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember it."""
        super().on_load_checkpoint(checkpoint)
        self.iterations_loaded = int(checkpoint["iteration"])


def check_stop_kl(stop_kl: float | None) -> None:
    """Refuse a limit that no update could start with.

    Raises:
        UserError: it is not above 0.
    """
    fits = stop_kl is None or stop_kl > 0
    check_limits("model.init_args", {"stop_kl": (fits, "above 0 nats per action (null for never)", stop_kl)})

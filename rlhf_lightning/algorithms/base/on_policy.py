"""`OnPolicy`: the iteration that all policy optimizers share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic

import torch
from jaxtyping import Float
from lightning.pytorch import Callback
from torch import Tensor, nn

from rlhf_lightning.algorithms.parts.claims import Variant
from rlhf_lightning.algorithms.parts.critic import Estimate, ValueFunction, with_todays_names
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.algorithms.parts.metrics import ENTROPY, GRADIENT, UNSHOWN
from rlhf_lightning.algorithms.parts.reference import Reference, ShapedRewards
from rlhf_lightning.algorithms.parts.updates import means, summary, total
from rlhf_lightning.callbacks.listener import UpdateWatcher
from rlhf_lightning.callbacks.stops import check_monitors, monitoring
from rlhf_lightning.data.collection import CollectionDataModule
from rlhf_lightning.distributed import from_first_rank, over_own_rows, world_size
from rlhf_lightning.errors import UserError, located
from rlhf_lightning.evaluation.heldout import HeldoutEvaluation
from rlhf_lightning.lightning_seams import callbacks_of
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.policy import Policy, PolicyOutputs, TextPolicy
from rlhf_lightning.ops.kl import k3
from rlhf_lightning.records.metrics import Experience, Metric
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.minibatches import BatchT, Loss, Minibatch, shuffled_minibatches, whole_batch
from rlhf_lightning.training.module import Module
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import AdvantageBatch, Rollout, ScoredRollout, Trajectories

CHECKPOINT_LAYOUT = 2
"""Version of the names in a checkpoint."""


@dataclass
class Prepared(Generic[BatchT]):
    """What an update needs of a rollout.

    Args:
        batch: what is trained on.
        rollout: everything that was drawn.
        kl: mean KL to the reference in nats per sequence, for the KL controller; None without a reference.
        metrics: to report.
    """

    batch: BatchT
    rollout: Rollout
    kl: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)


def with_advantages(
    scored: ScoredRollout,
    shaped: ShapedRewards,
    advantages: Float[Tensor, "B T"],
    estimate: Estimate | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Prepared[AdvantageBatch]:
    """A rollout with an advantage for each action.

    Args:
        shaped: its rewards, with the KL to the reference and the log-probabilities under it.
        advantages: what the policy is updated with.
        estimate: of a critic or a baseline, with the targets of the critic; None without one.
        metrics: to report; None for those of ``shaped`` and ``estimate``.
    """
    batch = AdvantageBatch.of(
        scored.rollout,
        advantages=advantages,
        old_values=None if estimate is None else estimate.old_values,
        returns=None if estimate is None else estimate.returns,
        ref_logprobs=shaped.ref_logprobs,
    )
    if metrics is None:
        metrics = {**({} if estimate is None else estimate.metrics), **shaped.metrics}
    return Prepared(batch.units(), scored.rollout, shaped.kl, dict(metrics))


class OnPolicy(Module, Generic[BatchT]):
    """A policy that is improved on rollouts of its own; one Lightning epoch is one iteration.

    The convention of all optimizers: a loss is summed over a trajectory's actions and averaged over trajectories, so
    that its expected gradient is the policy gradient itself, not one that depends on lengths.

    Args:
        kl: price of the KL to the reference, in the reward or in the loss; tasks without a reference (environments)
            take a coefficient of 0.
        temperature: of the policy, 0.7 to 1.
        eval_every: iterations between evaluations on held-out prompts or in fresh episodes.
    """

    by_iteration = True

    variants: ClassVar[tuple[Variant, ...]] = ()
    """What ``prove`` measures of it, with the claims; empty measures the default settings."""

    counters: ClassVar[tuple[str, ...]] = ()
    """Fields that count something over the whole run; checkpoints keep them under the same names."""

    def __init__(
        self,
        task: Task,
        backbone: Backbone,
        optimization: Optimization,
        kl: KLControl,
        *,
        temperature: float,
        eval_every: int,
    ) -> None:
        super().__init__(task, backbone, optimization)
        if eval_every < 1:
            raise UserError(f"model.init_args.eval_every must be at least 1, got {eval_every}")
        self.has_reference = "prompts" in task.provides
        if kl.coef and not self.has_reference:
            raise UserError(
                f"model.init_args.kl.coef is {kl.coef}, and task {type(task).__name__} has no reference policy "
                "to stay close to; expected 0"
            )
        self.reference = Reference(kl, microbatch_size=optimization.microbatch_size)
        self.critic = ValueFunction()  # none; algorithms that have one replace it
        self.temperature = temperature
        self.eval_every = eval_every
        self.iterations_done = 0
        self._needs_evaluation = False
        self._monitoring: list[Callback] = []
        self.policy: Policy

    # -- the iteration -----------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One iteration, which Lightning calls once in an epoch."""
        iteration = self.current_epoch + 1
        with torch.no_grad(), located(self.position()):
            # 1. Collect: the policy acts, and the reward source scores what it did.
            scored = self.rescored(self.collect())
            collected = self.collection_metrics(scored)
            # 2. Prepare: the KL to the reference, shaped rewards, advantages.
            prepared = self.prepare(scored)
        # 3. Update the policy, and the critic where there is one.
        with self.watched(scored, prepared.batch) as measured:
            started = time.perf_counter()
            with self.local_backward():
                updated = self.update(prepared)
            updated |= {**self.gradient_norms(), "timing/update_seconds": time.perf_counter() - started, "lr": self.lr}
        updated |= {**self.weight_changes(besides=self.frozen), **measured}
        # 4. Control: adapt the coefficient of the KL to the reference.
        if prepared.kl is not None and self.policy_learns:
            self.reference.kl.update(prepared.kl)
        # 5. Finish: update what stayed fixed during the iteration (running moments, learned weights, the schedule).
        self.rollouts.finish(scored, self.policy)
        self.step_schedule()
        self.iterations_done = iteration
        # 6. Publish the metrics, those of an evaluation included where one is due.
        due = iteration % self.eval_every == 0 or iteration == self.trainer.max_epochs
        evaluated = self.evaluate(iteration=iteration) if due else {}
        self.publish({"iteration": iteration, **collected, **prepared.metrics, **updated, **evaluated})
        self._needs_evaluation = not due
        if due or iteration == 1:  # both kinds of metrics have been reported by now
            check_monitors(self._monitoring, self.reported_names | self.trainer.callback_metrics.keys())

    def collect(self) -> ScoredRollout:
        """This iteration's rollout."""
        return self.rollouts.collect(self.policy, self.current_epoch)

    def prepare(self, scored: ScoredRollout) -> Prepared[BatchT]:
        """Add what the update needs: the KL to the reference, shaped rewards, advantages."""
        raise NotImplementedError

    def update(self, prepared: Prepared[BatchT]) -> dict[str, float]:
        """Improve the policy on the batch; returns metrics."""
        raise NotImplementedError

    def loss(self, part: BatchT, minibatch: Minibatch[BatchT]) -> Loss:
        """The loss of one microbatch, divided by the counts of the whole minibatch."""
        raise NotImplementedError

    @contextmanager
    def watched(self, scored: ScoredRollout, batch: BatchT) -> Iterator[dict[str, float]]:
        """Context of an update, which callbacks measure; its value has, afterwards, what they found."""
        found: dict[str, float] = {}
        watchers = [callback for callback in callbacks_of(self.trainer) if isinstance(callback, UpdateWatcher)]
        with ExitStack() as stack:
            rows = [stack.enter_context(one.watching(self, scored, batch)) for one in watchers if self.policy_learns]
            yield found
        for row in rows:
            found |= row

    @property
    def policy_learns(self) -> bool:
        """Whether the policy is moved in this iteration: not while the critic is warmed up."""
        return self.current_epoch >= self.critic.warmup

    # -- for collect -------------------------------------------------------------------------------------------

    def rescored(self, scored: ScoredRollout) -> ScoredRollout:
        """Under autocast, recompute ``old_logprobs`` with the training forward: decoding rounds differently."""
        rollout = scored.rollout
        if not torch.is_autocast_enabled(rollout.actions.device.type):
            return scored
        return replace(scored, rollout=replace(rollout, old_logprobs=self.logprobs_of(rollout)))

    def logprobs_of(self, trajectories: Trajectories) -> Tensor:
        """Log-probabilities of the actions under the policy as it is now, on every rank for all rows."""
        (logprobs,) = over_own_rows(
            lambda part: (self.policy.evaluate(part.context, part.actions, part.action_mask).logprobs,),
            trajectories,
            microbatch_size=self.optimization.microbatch_size,
        )
        return logprobs

    def collection_metrics(self, scored: ScoredRollout) -> dict[str, float]:
        """Metrics of the collection: scores, lengths, times, and how much has been collected so far."""
        drawn = scored.drawn or scored
        tokens = drawn.rollout.action_mask.sum().item()
        row = {**self.rollouts.statistics(drawn)}
        row |= {f"timing/{name}": value for name, value in drawn.timings.items()}
        row |= {"rollout/tokens_per_second": tokens / drawn.timings["rollout_seconds"]}
        counts = {"prompts_shortened": drawn.prompts_shortened, "special_tokens_spelled": drawn.prompts_spelled}
        row |= {f"rollout/{name}": count for name, count in counts.items() if count}
        return row | self.rollouts.counters(self.current_epoch)

    # -- for update --------------------------------------------------------------------------------------------

    def take_one_step(self, batch: BatchT) -> dict[str, float]:
        """One gradient step on the whole batch."""
        row = self.accumulate(self.as_one_minibatch(batch))
        self.apply_gradients(frozen=self.frozen)
        return row

    def take_steps(
        self,
        batch: BatchT,
        *,
        epochs: int,
        minibatch_size: int | None,
        stop_kl: float | None,
        kl_old: Callable[[], float] | None = None,
    ) -> dict[str, float]:
        """A gradient step on each of several epochs of shuffled minibatches, fewer where the policy has moved enough.

        Args:
            minibatch_size: rows per step, across all devices; None for the whole batch.
            stop_kl: the limit on KL(π_old‖π), in nats per action; None for none.
            kl_old: measures that KL, before each epoch but the first; None looks at the ``policy/kl_old`` that the
                loss reports of each minibatch, and discards the gradients of the one that exceeds the limit.
        """
        rows: list[dict[str, float]] = []
        size, steps = minibatch_size or len(batch), 0
        for epoch in range(epochs):
            if epoch and stop_kl is not None and kl_old is not None and not kl_old() <= stop_kl:  # NaN ends it, too
                break
            for minibatch in self.minibatches(batch, size=size, key=self.current_epoch * epochs + epoch):
                rows.append(self.accumulate(minibatch))
                if stop_kl is not None and kl_old is None and not self._kl_old_of(rows[-1]) <= stop_kl:
                    self.optimizer.zero_grad()
                    return summary(rows, steps)
                self.apply_gradients(frozen=self.frozen)
                steps += 1
        return summary(rows, steps)

    def _kl_old_of(self, row: Mapping[str, float]) -> float:
        if "policy/kl_old" not in row:
            raise UserError(
                f"stop_kl limits the policy/kl_old of minibatches, which {type(self).__name__}.loss does not report; "
                "expected stop_kl null, or that sum in the loss"
            )
        return row["policy/kl_old"]

    def fit_critic(self, batch: BatchT, *, epochs: int, minibatch_size: int) -> dict[str, float]:
        """Train only the critic for several epochs."""

        def critic_loss(part: BatchT, minibatch: Minibatch[BatchT]) -> Loss:
            return self.critic.loss(self.policy, part, minibatch)

        rows = []
        for epoch in range(epochs):
            for minibatch in self.minibatches(batch, size=minibatch_size, key=self.current_epoch * epochs + epoch):
                rows.append(self.accumulate(minibatch, critic_loss))
                self.apply_gradients(frozen={"policy"})
        return means(rows)

    @property
    def frozen(self) -> frozenset[str]:
        """Networks that a step leaves as they are."""
        return frozenset() if self.policy_learns else frozenset({"policy"})

    def minibatches(self, batch: BatchT, *, size: int, key: int) -> Iterator[Minibatch[BatchT]]:
        """Shuffled global minibatches; this rank gets rows r, r + W, … of each.

        Args:
            key: of the order, one for each epoch of each iteration.
        """
        return shuffled_minibatches(batch, size=size, key=key, microbatch_size=self.optimization.microbatch_size)

    def as_one_minibatch(self, batch: BatchT) -> Minibatch[BatchT]:
        """The whole batch as one minibatch."""
        return whole_batch(batch, microbatch_size=self.optimization.microbatch_size)

    def accumulate(
        self, minibatch: Minibatch[BatchT], loss: Callable[[BatchT, Minibatch[BatchT]], Loss] | None = None
    ) -> dict[str, float]:
        """Add this rank's gradients of the loss; means per action, and largest values, over the whole minibatch.

        Args:
            loss: what is minimized; None for `loss`.
        """
        parts: list[Loss] = []
        for part in minibatch.parts:  # every rank has some, since devices divide batches and minibatches
            part_loss = (loss or self.loss)(part, minibatch)
            self.manual_backward(part_loss.value)
            parts.append(part_loss.detached())
        sums = {name: total(one.sums[name] for one in parts) for name in parts[0].sums}
        largest = {name: torch.stack([one.largest[name] for one in parts]).max() for name in parts[0].largest}
        reduced = self.reduced({"loss": total(one.value for one in parts), **sums}, largest=largest)
        self.check_finite(f"the {type(self).__name__} loss", reduced.pop("loss"))
        return {name: value if name in largest else value / minibatch.tokens for name, value in reduced.items()}

    def policy_outputs(self, part: BatchT) -> PolicyOutputs:
        """What the policy says of the actions, with the KL to the reference where the loss has it."""
        return self.reference.evaluate(self.policy, part)

    @torch.no_grad()
    def kl_to_old(self, trajectories: Trajectories) -> float:
        """KL(π_old‖π) where the policy stands now, in nats per action, estimated by k3 from actions of π_old."""
        kl = k3(trajectories.old_logprobs, self.logprobs_of(trajectories))[trajectories.action_mask]
        return from_first_rank(kl.double().mean().item())

    # -- evaluation --------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Measure the starting point, unless the run goes on."""
        if not self.goes_on:
            self.announce("evaluates for the first time")
            self.publish({"iteration": self.current_epoch, **self.evaluate(iteration=self.current_epoch)})

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Evaluate on held-out prompts; in training that is done at the end of iterations instead."""
        if not self.fitting:
            iteration = self.iterations_done
            self.publish({"iteration": iteration, **self.evaluate(iteration=iteration)})

    test_step = validation_step

    def evaluate_last(self) -> None:
        """Add an evaluation to the last row of a run that ends before its time, where that has none.

        Called before the last checkpoint is written, and at the end of runs without checkpoints.
        """
        if self._needs_evaluation:
            self._needs_evaluation = False
            self.publish({"iteration": self.iterations_done, **self.evaluate(iteration=self.iterations_done)})

    on_train_end = evaluate_last

    @torch.no_grad()
    def evaluate(self, *, iteration: int) -> dict[str, float]:
        """Judge the policy on held-out prompts, or in fresh episodes."""
        with self.timed("evaluation"), self.trainer.precision_plugin.forward_context(), located(self.position()):
            if isinstance(self.policy, TextPolicy):
                row = self._heldout.row(self.policy, self.reference.text_policy, iteration)
            else:
                statistics = self.rollouts.statistics(self.rollouts.collect_heldout(self.policy))
                row = {name.partition("/")[2]: value for name, value in statistics.items()}
        return {f"eval/{name}": value for name, value in row.items()}

    # -- the trainer -------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check that data, budget and sizes fit before anything is collected.

        Raises:
            UserError: the data module is of another kind, the budget counts steps instead of iterations, prompts have
                single responses where groups are required, or the devices cannot share ``minibatch_size``.
        """
        super().setup(stage)
        data = self.datamodule
        if not isinstance(data, CollectionDataModule):
            raise UserError(
                f"{type(self).__name__} needs data that collects rollouts (RolloutDataModule for text, "
                f"EnvironmentDataModule for environments), got {type(data).__name__}"
            )
        if self.fitting and self.trainer.max_steps >= 0 and not self.fast_dev_run:
            raise UserError(
                f"trainer.max_steps counts optimizer steps, of which {type(self).__name__} takes several in an "
                "iteration; give the number of iterations: trainer.max_epochs"
            )
        if "groups" in self.requires:
            self.check_groups()
        size: int | None = getattr(self, "minibatch_size", None)  # None is the whole rollout
        if size is not None and (size < 1 or size % world_size()):
            raise UserError(
                f"model.init_args.minibatch_size is {size}, which {world_size()} devices do not divide; "
                "expected a multiple of the number of devices"
            )
        self._heldout = HeldoutEvaluation(self, data.collect_heldout)
        self._monitoring = monitoring(self.trainer)

    @property
    def rollouts(self) -> CollectionDataModule:
        """The data module."""
        return self.datamodule

    def schedule_length(self) -> float:
        """One step per iteration."""
        return self.trainer.max_epochs or 1

    def position(self) -> str:
        """The iteration, counted from 1."""
        return f"iteration {self.current_epoch + 1}"

    def check_groups(self) -> None:
        """Raise `UserError` unless each prompt has at least two responses."""
        samples = self.rollouts.samples_per_prompt
        if self.fitting and samples < 2:
            raise UserError(
                f"data.init_args.samples_per_prompt is {samples}; expected at least 2, since {type(self).__name__} "
                "compares responses to the same prompt"
            )

    # -- networks and checkpoints ------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build policy, reference and critic, once."""
        if hasattr(self, "policy"):
            return
        with self.building():
            self.policy = self.backbone.policy(self.task.interface, temperature=self.temperature)
            if self.has_reference:
                self.reference.freeze(self.policy)
            self.critic.build(self.backbone, self.policy, lambda: self.rollouts.objectives)

    def networks(self) -> dict[str, nn.Module]:
        """Policy and critic."""
        return {"policy": self.policy, **self.critic.networks()}

    def learning_rates(self) -> dict[str, float]:
        """The critic's own, where it has one."""
        return self.critic.learning_rates()

    def export(self, path: Path) -> None:
        """The policy, and the critic beside it."""
        self.policy.save(path)
        self.critic.save(path)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the counters, the KL controller, and of the reference its path and hash."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["algorithm"], checkpoint["layout"] = type(self).__name__, CHECKPOINT_LAYOUT
        checkpoint["iteration"] = self.iterations_done
        checkpoint |= {name: getattr(self, name) for name in self.counters}
        self.reference.save(checkpoint, path=getattr(self.backbone, "checkpoint", None))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the counters and the KL controller, and check that the reference is the same.

        Raises:
            UserError: another algorithm wrote it, or its reference or KL controller is another.
        """
        super().on_load_checkpoint(checkpoint)
        writer, name = checkpoint.get("algorithm"), type(self).__name__
        if writer != name:
            raise UserError(f"the checkpoint is not one of {name}: {writer or 'no policy optimizer'} wrote it")
        if checkpoint.get("layout", 1) < CHECKPOINT_LAYOUT:
            checkpoint["state_dict"] = with_todays_names(checkpoint["state_dict"])
        self.reference.load(checkpoint, algorithm=name)
        self.iterations_done = int(checkpoint["iteration"])
        for name in self.counters:
            setattr(self, name, int(checkpoint[name]))

    # -- the run's record --------------------------------------------------------------------------------------

    @property
    def kind(self) -> str:
        """``policy`` on text, ``control`` in an environment: that of the data module."""
        return self.rollouts.kind

    def metrics(self) -> tuple[Metric, ...]:
        """Of the collection, of the reference, of the policy, and of the critic where there is one."""
        own = (ENTROPY, GRADIENT, *UNSHOWN)
        return (*self.rollouts.metrics(), *self.reference.metrics(), *own, *self.critic.metrics())

    def experience(self) -> Experience:
        """What is collected."""
        return self.rollouts.experience

    def progress(self) -> dict[str, str]:
        """Metrics of the progress line, as the data module declares them."""
        return self.rollouts.progress

"""`PolicyAlgorithm`: the iteration that all policy optimizers share.

One Lightning epoch is one iteration: collect → prepare → update → evaluate now and then.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.callbacks.listener import Listener
from rlhf_lightning.data.rollouts import RolloutDataModule
from rlhf_lightning.distributed import own_rows, world_size
from rlhf_lightning.errors import UserError, located
from rlhf_lightning.evaluation import (
    demonstration_nats,
    perplexity,
    sample_records,
    score_statistics,
    standard_error,
    text_statistics,
    win_rate,
)
from rlhf_lightning.kl_control import KLControl
from rlhf_lightning.minibatches import Batch, Minibatch, over_own_rows, shuffled_minibatches
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.policy import LanguagePolicy
from rlhf_lightning.models.state import fingerprint
from rlhf_lightning.models.text import plain_text
from rlhf_lightning.ops.masking import sequence_sum
from rlhf_lightning.optimization import Optimization
from rlhf_lightning.synced import SyncedModule, on_cpu
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.types import Rollout, ScoredRollout, TrainBatch, Trajectories


class PolicyAlgorithm(SyncedModule):
    """A policy, its frozen reference and the price of leaving it.

    Args:
        kl: penalty on the KL to the reference.
        temperature: of the policy, 0.7 to 1.
        eval_every: iterations between evaluations on held-out prompts.
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
        super().__init__(task, backbone, optimization)
        if eval_every < 1:
            raise UserError(f"model.init_args.eval_every must be at least 1, got {eval_every}")
        self.kl = copy.deepcopy(kl)
        self.temperature = temperature
        self.eval_every = eval_every
        self.policy: LanguagePolicy
        self.row: dict[str, float] = {}
        self.iterations_loaded = 0
        self._reference_heldout: ScoredRollout | None = None

    # -- to be said by the subclass ----------------------------------------------------------------------------

    def prepare(self, scored: ScoredRollout) -> TrainBatch:
        """Add reference logprobs, values, shaped rewards and advantages."""
        raise NotImplementedError

    def update(self, batch: TrainBatch) -> dict[str, float]:
        """Improve the policy on the batch; returns metrics."""
        raise NotImplementedError

    # -- networks ----------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build policy and reference, once."""
        if hasattr(self, "policy"):
            return
        with on_cpu():
            self.policy = self.backbone.policy(self.task.tokenizer, temperature=self.temperature)
        self.reference = copy.deepcopy(self.policy).requires_grad_(False)
        self.reference_hash = fingerprint(self.reference)  # now: a precision plugin may convert the weights later

    def setup(self, stage: str) -> None:
        """See that data and budget fit before anything is collected.

        Raises:
            UserError: the data module is of another kind, or the budget counts steps instead of iterations.
        """
        super().setup(stage)
        data = self.trainer.datamodule
        if not isinstance(data, RolloutDataModule):
            raise UserError(f"{type(self).__name__} needs data of class RolloutDataModule, got {type(data).__name__}")
        if self.fitting and self.trainer.max_steps >= 0 and not self.trainer.fast_dev_run:
            raise UserError(
                f"trainer.max_steps counts optimizer steps, of which {type(self).__name__} takes several in an "
                "iteration; give the number of iterations: trainer.max_epochs"
            )
        self._reference_heldout = None  # of the prompts of the data module before

    def schedule_length(self) -> float:
        """One step per iteration."""
        return self.trainer.max_epochs or 1

    def position(self) -> str:
        """The iteration, counted from 1."""
        return f"iteration {self.current_epoch + 1}"

    @property
    def rollouts(self) -> RolloutDataModule:
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
                scored = self.rollouts.collect(self.policy, self.current_epoch)
            scored = replace(scored, rollout=self.rescored(scored.rollout))
            self.row = {"iteration": self.current_epoch + 1}
            self.row |= {f"objective/{name}": value for name, value in score_statistics(scored).items()}
            self.row |= {f"rollout/{name}": value for name, value in text_statistics(scored).items()}
            self.row |= {f"timing/{name}": value for name, value in scored.timings.items()}
            tokens, seconds = scored.rollout.action_mask.sum().item(), scored.timings["rollout_seconds"]
            self.row |= {"rollout/tokens_per_second": tokens / seconds}
            if scored.prompts_shortened:
                self.row |= {"rollout/prompts_shortened": scored.prompts_shortened}
            self.row |= {"samples": (self.current_epoch + 1) * len(scored)}
            self.batch = self.prepare(scored)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Update on the prepared batch."""
        started = time.perf_counter()
        with self.local_backward():
            self.row |= self.update(self.batch)
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

    # -- for prepare and update --------------------------------------------------------------------------------

    def over_own_rows(
        self, evaluate: Callable[[Batch], tuple[Tensor, ...]], batch: Batch
    ) -> tuple[Float[Tensor, "B T"], ...]:
        """Evaluate a batch in microbatches, each rank its own rows, and give every rank the whole result."""
        return over_own_rows(evaluate, batch, microbatch_size=self.optimization.microbatch_size)

    def rescored(self, rollout: Rollout) -> Rollout:
        """Under autocast, with logprobs as the update will compute them: decoding rounds differently."""
        if not torch.is_autocast_enabled(rollout.actions.device.type):
            return rollout
        (logprobs,) = self.over_own_rows(
            lambda part: (self.policy.evaluate(part.context, part.actions, part.action_mask).logprobs,), rollout
        )
        return replace(rollout, old_logprobs=logprobs)

    def reference_kl(self, batch: Trajectories) -> Float[Tensor, "B T"]:
        """KL to the reference at each action, by the estimator of ``kl``."""

        def estimate(part: Trajectories) -> tuple[Tensor]:
            if self.kl.needs_full_vocabulary:
                return self._exact_reference_kl(part)
            reference = self.reference.evaluate(part.context, part.actions, part.action_mask)
            return (self.kl.estimate(part.old_logprobs, reference.logprobs, None),)

        (kl,) = self.over_own_rows(estimate, batch)
        return torch.where(batch.action_mask, kl, torch.zeros_like(kl))

    def minibatches(self, batch: TrainBatch, *, size: int, epochs: int) -> Iterator[Minibatch]:
        """Several epochs of shuffled global minibatches; this rank gets rows r, r + W, … of each."""
        for epoch in range(epochs):
            key = self.current_epoch * epochs + epoch
            yield from shuffled_minibatches(
                batch, size=size, key=key, microbatch_size=self.optimization.microbatch_size
            )

    def check_minibatch_size(self, size: int) -> None:
        """Refuse a minibatch that the devices cannot share evenly."""
        if size < 1 or size % world_size():
            raise UserError(
                f"model.init_args.minibatch_size is {size}, which {world_size()} devices do not divide; "
                "expected a multiple of the number of devices"
            )

    def check_rows(self, name: str, values: Float[Tensor, "B T"], scored: ScoredRollout) -> None:
        """Stop where a number of the rollout is not finite, and name the prompt."""
        mask = scored.rollout.action_mask
        bad = (~torch.isfinite(torch.where(mask, values, torch.zeros_like(values)))).any(-1).nonzero()
        if len(bad):
            raise UserError(
                f"{name} are not finite at {self.position()} for the prompt "
                f"{plain_text(scored.prompts[int(bad[0])])!r}; the checkpoint before it is kept"
            )

    # -- evaluation --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, *, iteration: int) -> dict[str, float]:
        """Scores, KL, win rate and perplexity on held-out prompts and demonstrations."""
        with self.trainer.precision_plugin.forward_context(), located(self.position()):
            scored = self.rollouts.collect_heldout(self.policy)
            if self._reference_heldout is None:
                self._reference_heldout = self.rollouts.collect_heldout(self.reference)
            (kl,) = self.over_own_rows(self._exact_reference_kl, scored.rollout)
            per_sequence = sequence_sum(kl, scored.rollout.action_mask)
            row = {
                **score_statistics(scored),
                **text_statistics(scored),
                "kl_ref_sequence": per_sequence.double().mean().item(),
                **({"kl_ref_sequence_se": standard_error(per_sequence)} if len(scored) > 1 else {}),
                **win_rate(scored, self._reference_heldout),
                **self._forgetting(),
            }
        samples = sample_records(scored, per_sequence, iteration=iteration, count=32)
        for callback in self.trainer.callbacks:
            if isinstance(callback, Listener):
                callback.on_samples(self.trainer, self, samples)
        return {f"eval/{name}": value for name, value in row.items()}

    def _exact_reference_kl(self, part: Trajectories) -> tuple[Tensor]:
        outputs = self.policy.evaluate(part.context, part.actions, part.action_mask, against=self.reference)
        return (outputs.kl,)

    def _forgetting(self, limit: int = 256) -> dict[str, float]:
        """Perplexity on held-out demonstrations, where the task has some."""
        if "demonstrations" not in self.task.provides:
            return {}
        examples = list(self.task.demonstrations("heldout")[:limit])
        mine = [examples[i] for i in own_rows(len(examples)).tolist()]
        nats, tokens = demonstration_nats(self.policy, mine, microbatch_size=self.optimization.microbatch_size)
        sums = self.reduced({"nats": nats, "tokens": tokens})
        return {"perplexity": perplexity(sums["nats"], sums["tokens"])}

    # -- checkpoints -------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the KL controller; the reference by path and hash only."""
        state = checkpoint["state_dict"]
        for name in [name for name in state if name.startswith("reference.")]:
            del state[name]
        checkpoint["kl_control"] = self.kl.state_dict()
        checkpoint["iteration"] = int(self.row.get("iteration", self.iterations_loaded))
        checkpoint["reference"] = {"path": getattr(self.backbone, "checkpoint", None), "hash": self.reference_hash}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the KL controller and see that the reference is the same.

        Raises:
            UserError: it is another, or the checkpoint is not one of a policy optimizer.
        """
        super().on_load_checkpoint(checkpoint)
        if "reference" not in checkpoint:
            raise UserError(f"the checkpoint is not one of {type(self).__name__}: it names no reference policy")
        saved = checkpoint["reference"]
        if self.reference_hash != saved["hash"]:
            raise UserError(
                f"the reference policy is not the one of the checkpoint (it was {saved['path']}); "
                "expected the same backbone.init_args.checkpoint with unchanged files"
            )
        self.kl.load_state_dict(checkpoint["kl_control"])
        self.iterations_loaded = int(checkpoint["iteration"])
        reference = {f"reference.{name}": tensor for name, tensor in self.reference.state_dict().items()}
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **reference}

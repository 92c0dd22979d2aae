"""`PolicyAlgorithm`: the iteration that all policy optimizers share.

One Lightning epoch is one iteration: collect → prepare → update → evaluate now and then.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from rlhf_lightning.callbacks.listener import Listener
from rlhf_lightning.data.rollouts import RolloutDataModule
from rlhf_lightning.distributed import Stream, gather_padded, own_rows, run_seed, world_size
from rlhf_lightning.errors import UserError
from rlhf_lightning.evaluation import (
    perplexity,
    sample_records,
    score_statistics,
    standard_error,
    text_statistics,
    win_rate,
)
from rlhf_lightning.kl_control import KLControl
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.policy import LanguagePolicy
from rlhf_lightning.models.state import fingerprint
from rlhf_lightning.models.text import encode_responses, plain_text
from rlhf_lightning.models.trunk import row_slices
from rlhf_lightning.ops.masking import sequence_sum
from rlhf_lightning.ops.noise import permutation
from rlhf_lightning.optimization import Optimization
from rlhf_lightning.synced import SyncedModule
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.types import Rollout, ScoredRollout, TrainBatch, Trajectories


@dataclass
class Minibatch:
    """This rank's part of a global minibatch, in microbatches.

    Args:
        parts: this rank's rows; together with the other ranks' they are the minibatch.
        tokens: actions in the whole minibatch, on all ranks.
        sequences: trajectories in the whole minibatch, on all ranks.
    """

    parts: list[TrainBatch]
    tokens: int
    sequences: int


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
        self.kl = copy.deepcopy(kl)
        self.temperature = temperature
        self.eval_every = eval_every
        self.strict_loading = False
        self.policy: LanguagePolicy
        self.row: dict[str, float] = {}
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
        self.policy = self.backbone.policy(self.task.tokenizer, temperature=self.temperature)
        self.reference = copy.deepcopy(self.policy).requires_grad_(False)

    def schedule_length(self) -> int:
        """One step per iteration."""
        return self.trainer.max_epochs or 1

    def position(self) -> str:
        """The iteration, counted from 1."""
        return f"iteration {self.current_epoch + 1}"

    @property
    def rollouts(self) -> RolloutDataModule:
        """The data module, which policy optimizers need to be a `RolloutDataModule`."""
        data = self.trainer.datamodule
        if not isinstance(data, RolloutDataModule):
            raise UserError(f"{type(self).__name__} needs data of class RolloutDataModule, got {type(data).__name__}")
        return data

    # -- the iteration -----------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Measure the starting point, unless the run is resumed."""
        if self.current_epoch == 0:
            self.publish({"iteration": 0, **self.evaluate(iteration=0)})

    def on_train_epoch_start(self) -> None:
        """Collect a rollout with the current policy and prepare it for the update."""
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            scored = self.rollouts.collect(self.policy, self.current_epoch)
            if isinstance(self.trainer.precision_plugin, MixedPrecision):
                self._rescore(scored.rollout)
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

    def _rescore(self, rollout: Rollout) -> None:
        """Replace the logprobs of decoding by those of the training forward, from which autocast makes them differ."""

        def logprobs(part: Trajectories) -> tuple[Tensor]:
            return (self.policy.evaluate(part.context, part.actions, part.action_mask).logprobs,)

        (rollout.old_logprobs,) = self.over_own_rows(logprobs, rollout)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Update on the prepared batch."""
        started = time.perf_counter()
        with self.local_backward():
            self.row |= self.update(self.batch)
        self.row |= {f"{name}/grad_norm": norm for name, norm in self.grad_norms.items()}
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
        """Evaluate on held-out prompts."""
        self.publish({"iteration": self.current_epoch, **self.evaluate(iteration=self.current_epoch)})

    test_step = validation_step

    # -- for prepare and update --------------------------------------------------------------------------------

    def over_own_rows(
        self, evaluate: Callable[[Trajectories], tuple[Tensor, ...]], batch: Trajectories
    ) -> tuple[Float[Tensor, "B T"], ...]:
        """Evaluate a batch in microbatches, each rank its own rows, and give every rank the whole result."""
        width, outputs = batch.actions.shape[1], []
        mine = own_rows(len(batch)).to(batch.actions.device)
        for part in row_slices(len(mine), self.optimization.microbatch_size):
            results = evaluate(batch.select(mine[part.to(mine.device)]))
            outputs.append([torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in results])
        return tuple(gather_padded(torch.cat(column), len(batch)) for column in zip(*outputs, strict=True))

    def reference_kl(self, batch: Trajectories) -> Float[Tensor, "B T"]:
        """KL to the reference at each action, by the estimator of ``kl``."""

        def estimate(part: Trajectories) -> tuple[Tensor]:
            against = self.reference if self.kl.needs_full_vocabulary else None
            if against is None:
                exact, logprobs = None, part.old_logprobs
            else:
                outputs = self.policy.evaluate(part.context, part.actions, part.action_mask, against=against)
                exact, logprobs = outputs.kl, outputs.logprobs
            reference = self.reference.evaluate(part.context, part.actions, part.action_mask).logprobs
            return (self.kl.estimate(logprobs, reference, exact),)

        (kl,) = self.over_own_rows(estimate, batch)
        return torch.where(batch.action_mask, kl, torch.zeros_like(kl))

    def minibatches(self, batch: TrainBatch, *, size: int, epochs: int) -> Iterator[Minibatch]:
        """Several epochs of shuffled global minibatches; this rank gets rows r, r + W, … of each."""
        device = batch.actions.device
        for inner_epoch in range(epochs):
            key = self.current_epoch * epochs + inner_epoch
            order = permutation(seed=run_seed(), stream=Stream.MINIBATCH, iteration=key, size=len(batch))
            for rows in order.to(device).split(size):
                mine = rows[own_rows(len(rows)).to(device)]
                parts = [mine[part.to(device)] for part in row_slices(len(mine), self.optimization.microbatch_size)]
                yield Minibatch(
                    parts=[batch.select(part) for part in parts if len(part)],
                    tokens=int(batch.action_mask[rows].sum()),
                    sequences=len(rows),
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
        with self.trainer.precision_plugin.forward_context():
            scored = self.rollouts.collect_heldout(self.policy)
            if self._reference_heldout is None:
                self._reference_heldout = self.rollouts.collect_heldout(self.reference)
            (kl,) = self.over_own_rows(self._exact_reference_kl, scored.rollout)
            per_sequence = sequence_sum(kl, scored.rollout.action_mask)
            row = {
                **score_statistics(scored),
                **text_statistics(scored),
                "kl_ref_sequence": per_sequence.double().mean().item(),
                "kl_ref_sequence_se": standard_error(per_sequence),
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
        nats = tokens = torch.zeros((), device=self.device)
        for part in row_slices(len(mine), self.optimization.microbatch_size):
            chosen = [mine[i] for i in part.tolist()]
            encoded = encode_responses(
                [d.prompt for d in chosen],
                [d.response for d in chosen],
                self.policy.tokenizer,
                stop_id=self.policy.stop_ids[0],
                context_length=self.policy.context_length,
                max_response_tokens=self.policy.context_length // 2,
            ).to(self.device)
            outputs = self.policy.evaluate(encoded.context, encoded.actions, encoded.action_mask)
            nats, tokens = nats - outputs.logprobs.sum(), tokens + encoded.action_mask.sum()
        sums = self.reduced({"nats": nats, "tokens": tokens})
        return {"perplexity": perplexity(sums["nats"], sums["tokens"])}

    # -- checkpoints -------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the KL controller; the reference by path and hash only."""
        state = checkpoint["state_dict"]
        for name in [name for name in state if name.startswith("reference.")]:
            del state[name]
        checkpoint["kl_control"] = self.kl.state_dict()
        checkpoint["reference"] = {
            "path": getattr(self.backbone, "checkpoint", None),
            "hash": fingerprint(self.reference),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the KL controller and see that the reference is the same."""
        self.kl.load_state_dict(checkpoint["kl_control"])
        saved = checkpoint["reference"]
        if fingerprint(self.reference) != saved["hash"]:
            raise UserError(
                f"the reference policy is not the one of the checkpoint (it was {saved['path']}); "
                "expected the same backbone.init_args.checkpoint with unchanged files"
            )

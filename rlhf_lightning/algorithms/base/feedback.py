"""`PreferenceAlgorithm`: what all optimizers share that learn from preference pairs without a reward model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlhf_lightning.algorithms.parts.reference import leave_out_reference, put_reference_back
from rlhf_lightning.data.preferences import PreferenceDataModule
from rlhf_lightning.distributed import Stream, failing_together, own_rows, row_slices, world_size
from rlhf_lightning.errors import UserError, check_counts, located
from rlhf_lightning.evaluation.heldout import HeldoutEvaluation
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.language.text import EncodedResponses, encode_responses
from rlhf_lightning.models.policy import TextPolicy
from rlhf_lightning.models.state import fingerprint, frozen_copy
from rlhf_lightning.rewards.source import RewardSource
from rlhf_lightning.rollout.responses import ResponseCollector
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.module import on_cpu
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.training.passes import PassAlgorithm
from rlhf_lightning.types import PreferencePair, Prompt, ScoredRollout

_WIN_RATE = ("win_rate", "win_rate_low", "win_rate_high")


class PreferenceAlgorithm(PassAlgorithm[PreferencePair]):
    """A policy that passes over preference pairs, and its frozen reference: the policy that it started as.

    Losses are summed over a response's tokens and averaged over pairs. Every evaluation, one before the first step
    included, has the loss on held-out pairs, and what the policy says to held-out prompts.

    Args:
        reward: judges responses to held-out prompts, as ``eval/score``; it is not trained on.
        max_response_tokens: longer responses of the pairs keep their first tokens; None for half the context.
        max_new_tokens: a sampled response that has not ended by then is cut.
        eval_prompts: held-out prompts that the policy is judged on.
        log_every: steps between rows of metrics.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"prompts"})
    data_class = PreferenceDataModule
    group: ClassVar[str]
    """Of the metrics in training: ``GROUP/loss``, and ``GROUP/NAME`` for each that `loss_sum` reports."""

    def __init__(
        self,
        task: Task,
        backbone: Backbone,
        optimization: Optimization,
        *,
        reward: RewardSource | None,
        max_response_tokens: int | None,
        max_new_tokens: int,
        eval_prompts: int,
        log_every: int,
    ) -> None:
        super().__init__(task, backbone, optimization, log_every)
        check_counts(
            "model.init_args",
            max_response_tokens=max_response_tokens,
            max_new_tokens=max_new_tokens,
            eval_prompts=eval_prompts,
        )
        self.max_response_tokens = max_response_tokens
        self.eval_prompts = eval_prompts
        gold = task.gold()
        judge = next(source for source in (reward, gold, _Unjudged()) if source is not None)
        self._responses = ResponseCollector(judge, gold, max_new_tokens=max_new_tokens)
        # Gold does not pass for a score: nobody trains on it here, and checkpoints are chosen by scores.
        scores = ("score", *(f"score_{name}" for name in judge.objectives))
        self._left_out = () if judge is reward else scores if judge is gold else (*scores, *_WIN_RATE)
        self._sampled: HeldoutEvaluation | None = None

    # -- networks ----------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build policy and reference, once."""
        if hasattr(self, "policy"):
            return
        with on_cpu():
            self.policy = self.backbone.policy(self.task.interface, temperature=1.0)
        self.reference = frozen_copy(self.policy)
        # now: a precision plugin may convert the weights later
        self.reference_hash = fingerprint(self.reference)

    def networks(self) -> dict[str, nn.Module]:
        """The policy."""
        return {"policy": self.policy}

    def export(self, path: Path) -> None:
        """The policy."""
        self.policy.save(path)

    def setup(self, stage: str) -> None:
        """See that there is something to judge the policy on, and move the reward source to the device."""
        super().setup(stage)
        self._responses.reward.to(self.trainer.strategy.root_device)
        self._prompts: Sequence[Prompt] = self.task.prompts("heldout")[: self.eval_prompts]
        if len(self._prompts) < world_size():
            raise UserError(
                f"{type(self.task).__name__} gives {len(self._prompts)} held-out prompts; "
                "expected one for each device at least"
            )
        self._sampled = None  # of the prompts before

    # -- pairs -------------------------------------------------------------------------------------------------

    def encode(self, examples: Sequence[PreferencePair]) -> EncodedResponses:
        """The chosen responses, then the rejected ones, in one batch."""
        texts = [pair.chosen for pair in examples] + [pair.rejected for pair in examples]
        return self.encode_texts([pair.prompt for pair in examples] * 2, texts)

    def encode_texts(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> EncodedResponses:
        """Prompts and responses in the policy's vocabulary."""
        return encode_responses(
            prompts,
            texts,
            self.policy.tokenizer,
            stop_id=self.policy.stop_ids[0],
            context_length=self.policy.context_length,
            max_response_tokens=self.max_response_tokens or self.policy.context_length // 2,
        )

    def weight(self, examples: Sequence[PreferencePair], encoded: EncodedResponses) -> float:
        """Number of pairs."""
        return float(len(examples))

    def logprobs(self, policy: TextPolicy, encoded: EncodedResponses) -> Float[Tensor, "B T"]:
        """Log-probability of each token under a policy; 0 where the mask is False."""
        return policy.evaluate(encoded.context, encoded.actions, encoded.action_mask).logprobs

    def training_row(self, means: dict[str, float]) -> dict[str, float]:
        """All of them."""
        return {f"{self.group}/{name}": value for name, value in means.items()}

    # -- evaluation --------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Measure the starting point, unless the run is resumed or evaluates nothing."""
        if self.global_step or not self.trainer.enable_validation:
            return
        # Lightning counts them here only where the first pass ends with a validation
        batches = self.trainer.num_val_batches or [len(self.data.val_dataloader())]
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            self.on_validation_epoch_start()
            for number in range(int(sum(batches))):
                self.validation_step(number, number)
            self.on_validation_epoch_end()

    def on_validation_epoch_start(self) -> None:
        """Start adding up."""
        self._pairs = 0
        self._sums = {name: self._number(0) for name in ("loss", *self.measured)}

    def validation_step(self, batch: int, batch_idx: int) -> None:
        """Loss and what else there is to know of a batch of held-out pairs."""
        examples = self.data.heldout_batch(int(batch))
        self._pairs += len(examples)
        with failing_together():
            encoded = [(part, self.encode(part).to(self.device)) for part in self._own_parts(examples)]
        for part in encoded:
            loss, measured = self.loss_sum(*part)
            for name, value in {"loss": loss, **measured}.items():
                self._sums[name] = self._sums[name] + value.detach()

    def on_validation_epoch_end(self) -> None:
        """Means over the held-out pairs, and the policy's own responses beside those of the reference."""
        if self.trainer.sanity_checking:
            return
        means = {name: value / self._pairs for name, value in self.reduced(self._sums).items()}
        if self._sampled is None:
            self._sampled = HeldoutEvaluation(self, self.policy, self.reference, self._respond)
        with torch.no_grad(), self.trainer.precision_plugin.forward_context(), located(self.position()):
            sampled = self._sampled.row(self.steps)
        row = means | {name: value for name, value in sampled.items() if name not in self._left_out}
        self.publish({"step": self.steps, **{f"eval/{name}": value for name, value in row.items()}})

    test_step = validation_step
    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

    def _own_parts(self, examples: Sequence[PreferencePair]) -> Iterator[list[PreferencePair]]:
        """This rank's examples, in microbatches."""
        mine = [examples[row] for row in own_rows(len(examples)).tolist()]
        for rows in row_slices(len(mine), self.optimization.microbatch_size):
            if len(rows):
                yield [mine[row] for row in rows.tolist()]

    def _respond(self, policy: TextPolicy) -> ScoredRollout:
        """Responses to the held-out prompts, always with the same noise."""
        return self._responses.collect(policy, self._prompts, stream=Stream.EVALUATION, iteration=0)

    # -- checkpoints -------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the reference by path and hash only."""
        super().on_save_checkpoint(checkpoint)
        path = getattr(self.backbone, "checkpoint", None)
        leave_out_reference(checkpoint, path=path, fingerprint=self.reference_hash)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See that the reference is the same."""
        super().on_load_checkpoint(checkpoint)
        put_reference_back(checkpoint, self.reference, fingerprint=self.reference_hash, by=type(self).__name__)


class _Unjudged(RewardSource):
    """0 for every response, where nobody can tell."""

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, " B"]:
        """Zeros."""
        return torch.zeros(len(responses))

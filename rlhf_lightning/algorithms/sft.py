"""Supervised fine-tuning: next-token loss on the responses of demonstrations.

The loss is the mean over response tokens, the end-of-sequence token included; prompts are read and not trained on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rlhf_lightning.data.demonstrations import DemonstrationDataModule
from rlhf_lightning.distributed import own_rows
from rlhf_lightning.errors import UserError
from rlhf_lightning.evaluation import perplexity
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.text import EncodedResponses, encode_responses
from rlhf_lightning.models.trunk import row_slices
from rlhf_lightning.optimization import Optimization
from rlhf_lightning.synced import SyncedModule
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.types import Demonstration


class SFT(SyncedModule):
    """Imitates demonstrations.

    Args:
        task: where demonstrations come from.
        backbone: builds the model.
        optimization: learning rate 1e-5 for pretrained models, 1e-3 for small ones from scratch.
        max_response_tokens: longer responses keep their first tokens; None for half the context.
        log_every: steps between rows of metrics.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"demonstrations"})

    def __init__(
        self,
        task: Task,
        backbone: Backbone,
        optimization: Optimization = Optimization(lr=1e-3),
        max_response_tokens: int | None = None,
        log_every: int = 10,
    ) -> None:
        super().__init__(task, backbone, optimization)
        self.max_response_tokens = max_response_tokens
        self.log_every = log_every
        self.shortened: dict[str, int] = {"prompts": 0, "responses": 0}

    def configure_model(self) -> None:
        """Build the model, once."""
        if not hasattr(self, "policy"):
            self.policy = self.backbone.policy(self.task.tokenizer, temperature=1.0)

    def networks(self) -> dict[str, nn.Module]:
        """The model."""
        return {"policy": self.policy}

    def schedule_length(self) -> int:
        """One step per batch."""
        return self.trainer.max_steps

    def export(self, path: Path) -> None:
        """The model."""
        self.policy.save(path)

    @property
    def demonstrations(self) -> DemonstrationDataModule:
        """The data module."""
        data = self.trainer.datamodule
        if not isinstance(data, DemonstrationDataModule):
            raise UserError(f"SFT needs data of class DemonstrationDataModule, got {type(data).__name__}")
        return data

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One step on the global batch of this step."""
        examples = self.demonstrations.train_batch(self.global_step)
        mine = self._encode([examples[i] for i in own_rows(len(examples)).tolist()])
        counts = self.reduced({"tokens": mine.action_mask.sum()})
        nats = torch.zeros((), device=self.device)
        with self.local_backward():
            for rows in row_slices(len(mine.actions), self.optimization.microbatch_size):
                part = self._nats(mine, rows)
                self.manual_backward(part / counts["tokens"])
                nats = nats + part.detach()
        loss = self.reduced({"nats": nats})["nats"] / counts["tokens"]
        self.check_finite("the loss", loss)
        lr = self.optimizers().param_groups[0]["lr"]
        self.apply_gradients()
        self.step_schedule()
        if self.global_step % self.log_every == 0 or self.global_step == 1:
            self.publish(
                {
                    "step": self.global_step,
                    "sft/loss": loss,
                    "sft/perplexity": perplexity(loss, 1),
                    "policy/grad_norm": self.grad_norms["policy"],
                    "lr": lr,
                }
            )

    def on_validation_epoch_start(self) -> None:
        """Start counting."""
        self._heldout = torch.zeros(2, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: int, batch_idx: int) -> None:
        """Nats and tokens of a batch of held-out demonstrations."""
        examples = self.demonstrations.heldout_batch(int(batch))
        mine = [examples[i] for i in own_rows(len(examples)).tolist()]
        if not mine:
            return
        encoded = self._encode(mine)
        for rows in row_slices(len(mine), self.optimization.microbatch_size):
            self._heldout[0] += self._nats(encoded, rows)
        self._heldout[1] += encoded.action_mask.sum()

    def on_validation_epoch_end(self) -> None:
        """Loss and perplexity over all held-out demonstrations, beside their exact entropy where it is known."""
        sums = self.reduced({"nats": self._heldout[0], "tokens": self._heldout[1]})
        loss = sums["nats"] / sums["tokens"]
        row = {"step": self.global_step, "eval/loss": loss, "eval/perplexity": perplexity(loss, 1)}
        entropy = self.task.demonstration_entropy(self.demonstrations.heldout)
        if entropy is not None:
            row |= {
                "eval/entropy": entropy / sums["tokens"],
                "eval/nats_above_entropy": loss - entropy / sums["tokens"],
            }
        self.publish(row)

    test_step = validation_step
    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

    def _encode(self, examples: list[Demonstration]) -> EncodedResponses:
        encoded = encode_responses(
            [example.prompt for example in examples],
            [example.response for example in examples],
            self.policy.tokenizer,
            stop_id=self.policy.stop_ids[0],
            context_length=self.policy.context_length,
            max_response_tokens=self.max_response_tokens or self.policy.context_length // 2,
        )
        self.shortened["prompts"] += encoded.truncated_prompts
        self.shortened["responses"] += encoded.truncated_responses
        return encoded.to(self.device)

    def _nats(self, encoded: EncodedResponses, rows: Tensor) -> Tensor:
        """Negative log-probability of the chosen responses, summed over tokens."""
        rows = rows.to(self.device)
        outputs = self.policy.evaluate(encoded.context.select(rows), encoded.actions[rows], encoded.action_mask[rows])
        return -outputs.logprobs.sum()

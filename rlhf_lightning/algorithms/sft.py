"""Supervised fine-tuning: next-token loss on the responses of demonstrations.

The loss is the mean over response tokens, the end-of-sequence token included; prompts are read and not trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from rlhf_lightning.data.demonstrations import DemonstrationDataModule
from rlhf_lightning.errors import check_counts
from rlhf_lightning.evaluation.heldout import perplexity
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.language.text import EncodedResponses, encode_responses
from rlhf_lightning.models.policy import TextPolicy
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.module import on_cpu, text_policy
from rlhf_lightning.training.offline import Offline, Part
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import Demonstration


class SFT(Offline[Demonstration]):
    """Imitates demonstrations.

    Args:
        task: where demonstrations come from.
        backbone: builds the model.
        optimization: learning rate 1e-5 for pretrained models, 1e-3 for small ones from scratch.
        max_response_tokens: longer responses keep their first tokens; None for half the context.
        log_every: steps between rows of metrics.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"demonstrations"})
    data_class = DemonstrationDataModule
    kind = "sft"
    policy: TextPolicy

    def __init__(
        self,
        task: Task,
        backbone: Backbone,
        optimization: Optimization = Optimization(lr=1e-3),
        max_response_tokens: int | None = None,
        log_every: int = 10,
    ) -> None:
        super().__init__(task, backbone, optimization, log_every)
        check_counts("model.init_args", max_response_tokens=max_response_tokens)
        self.max_response_tokens = max_response_tokens

    def configure_model(self) -> None:
        """Build the model, once."""
        if not hasattr(self, "policy"):
            with on_cpu():
                self.policy = text_policy(self.backbone, self.task)

    def networks(self) -> dict[str, nn.Module]:
        """The model."""
        return {"policy": self.policy}

    def export(self, path: Path) -> None:
        """The model."""
        self.policy.save(path)

    def encode(self, examples: Sequence[Demonstration]) -> EncodedResponses:
        """Prompts and responses in the model's vocabulary."""
        return encode_responses(
            [example.prompt for example in examples],
            [example.response for example in examples],
            self.policy.tokenizer,
            stop_id=self.policy.stop_ids[0],
            context_length=self.policy.context_length,
            max_response_tokens=self.max_response_tokens or self.policy.context_length // 2,
        )

    def weight(self, part: Part[Demonstration]) -> float:
        """Number of response tokens."""
        return float(part.encoded.action_mask.sum())

    def loss_sum(self, part: Part[Demonstration]) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative log-probability of the responses, summed over tokens."""
        encoded = part.encoded
        outputs = self.policy.evaluate(encoded.context, encoded.actions, encoded.action_mask)
        return -outputs.logprobs.sum(), {}

    def training_row(self, means: dict[str, float]) -> dict[str, float]:
        """Loss and perplexity."""
        return {"sft/loss": means["loss"], "sft/perplexity": perplexity(means["loss"], 1)}

    def on_validation_epoch_start(self) -> None:
        """Start counting."""
        self._heldout = torch.zeros(2, dtype=torch.float64, device=self.device)
        self._examined: list[Demonstration] = []

    def validation_step(self, batch: int, batch_idx: int) -> None:
        """Nats and tokens of a batch of held-out demonstrations."""
        examples = self.data.heldout_batch(int(batch))
        self._examined += examples
        for part in self.parts(examples):
            self._heldout[0] += self.loss_sum(part)[0]
            self._heldout[1] += part.encoded.action_mask.sum()

    def progress(self) -> dict[str, str]:
        """Loss and perplexity."""
        return {"sft/loss": "loss", "eval/perplexity": "eval perplexity"}

    def on_validation_epoch_end(self) -> None:
        """Loss and perplexity over the held-out demonstrations, beside their exact entropy where it is known."""
        if self.trainer.sanity_checking:
            return
        sums = self.reduced({"nats": self._heldout[0], "tokens": self._heldout[1]})
        loss = sums["nats"] / sums["tokens"]
        row = {"step": self.steps, "eval/loss": loss, "eval/perplexity": perplexity(loss, 1)}
        entropy = self.task.demonstration_entropy(self._examined)
        if entropy is not None:
            row |= {
                "eval/entropy": entropy / sums["tokens"],
                "eval/nats_above_entropy": loss - entropy / sums["tokens"],
            }
        self.publish(row)

    test_step = validation_step
    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

"""Supervised fine-tuning: next-token loss on the responses of demonstrations.

The loss is the mean over response tokens, the end-of-sequence token included; prompts are read and not trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from rlhf_lightning.algorithms.base.text import TextLearner
from rlhf_lightning.data.demonstrations import DemonstrationDataModule
from rlhf_lightning.errors import check_counts
from rlhf_lightning.evaluation.heldout import perplexity
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.language.text import EncodedResponses
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.offline import Part
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import Demonstration


class SFT(TextLearner[Demonstration]):
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

    def encode(self, examples: Sequence[Demonstration]) -> EncodedResponses:
        """Prompts and responses in the model's vocabulary."""
        return self.encode_texts([example.prompt for example in examples], [example.response for example in examples])

    def weight(self, part: Part[Demonstration]) -> float:
        """Number of response tokens."""
        return float(part.encoded.action_mask.sum())

    def loss_sum(self, part: Part[Demonstration]) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative log-probability of the responses, summed over tokens."""
        return -self.logprobs(self.policy, part.encoded).sum(), {}

    def training_row(self, means: dict[str, float]) -> dict[str, float]:
        """Loss and perplexity."""
        return {"sft/loss": means["loss"], "sft/perplexity": perplexity(means["loss"], 1)}

    def heldout_row(self, means: dict[str, float], weight: float) -> dict[str, float]:
        """Loss and perplexity over the held-out demonstrations, beside their exact entropy where it is known."""
        loss = means["loss"]
        row = {"loss": loss, "perplexity": perplexity(loss, 1)}
        entropy = self.task.demonstration_entropy(self._examined)
        if entropy is not None:
            row |= {"entropy": entropy / weight, "nats_above_entropy": loss - entropy / weight}
        return row

    def progress(self) -> dict[str, str]:
        """Loss and perplexity."""
        return {"sft/loss": "loss", "eval/perplexity": "eval perplexity"}

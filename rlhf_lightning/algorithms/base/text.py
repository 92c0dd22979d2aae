"""`TextLearner`: what SFT and the algorithms that learn from feedback share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.text import EncodedResponses, encode_responses
from rlhf_lightning.models.policy import TextPolicy
from rlhf_lightning.training.module import text_policy
from rlhf_lightning.training.offline import EQUAL, Example, Offline
from rlhf_lightning.types import Prompt


class TextLearner(Offline[Example]):
    """A policy of text that learns from given examples; evaluations have the loss on held-out ones."""

    policy: TextPolicy
    max_response_tokens: int | None
    """Longer responses keep their first tokens; None for half the context."""

    def configure_model(self) -> None:
        """Build the policy, once."""
        if not hasattr(self, "policy"):
            with self.building():
                self.policy = text_policy(self.backbone, self.task)

    def networks(self) -> dict[str, nn.Module]:
        """The policy."""
        return {"policy": self.policy}

    def export(self, path: Path) -> None:
        """The policy."""
        self.policy.save(path)

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

    def logprobs(self, policy: TextPolicy, encoded: EncodedResponses) -> Float[Tensor, "B T"]:
        """Log-probability of each token under a policy; 0 where the mask is False."""
        return policy.evaluate(encoded.context, encoded.actions, encoded.action_mask).logprobs

    # -- evaluation --------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Reset the sums of the evaluation."""
        super().on_validation_epoch_start()
        self._examined: list[Example] = []
        self._sums = {name: self._number(0) for name in ("weight", "loss", *self.measured)}

    def validation_step(self, batch: int, batch_idx: int) -> None:
        """Add the loss and the further sums of one held-out batch."""
        examples = self.data.heldout_batch(int(batch))
        self._examined += examples
        for part in self.parts(examples):
            loss, measured = self.loss_sum(part)
            self._sums["weight"] += self.weight(part)
            for name, value in {"loss": loss, **measured}.items():
                self._sums[name] = self._sums[name] + value.detach()

    def on_validation_epoch_end(self) -> None:
        """Publish the means over the held-out examples, and whatever else is evaluated."""
        if not self.trainer.sanity_checking:
            sums = self.reduced(self._sums)
            weight = sums.pop("weight")
            if not weight:
                raise UserError(f"no held-out {self.data.unit} are left: {EQUAL}")
            row = self.heldout_row({name: value / weight for name, value in sums.items()}, weight)
            self.publish_evaluation({f"eval/{name}": value for name, value in row.items()})

    test_step = validation_step
    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

    def heldout_row(self, means: dict[str, float], weight: float) -> dict[str, float]:
        """The metrics of an evaluation, without a prefix.

        Args:
            means: the mean ``loss`` over the held-out examples, and the means of the further sums.
            weight: what their sums were divided by.
        """
        raise NotImplementedError

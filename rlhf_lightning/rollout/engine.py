"""`DecodingEngine`: what samples responses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from rlhf_lightning.models.policy import TextPolicy
from rlhf_lightning.types import Rollout, TokenContext


class DecodingEngine(ABC):
    """Samples responses of a text policy.

    What training relies on, and every engine must therefore guarantee:

    - If it is ``reproducible``, the noise is counter-based: the tokens of a response are a function of the policy, its
      prompt and its key alone. They do not depend on the other rows, on the batch size or on the number of devices, so
      that runs resume exactly and comparisons are paired. An engine that cannot promise this says so, and runs warn.
    - ``old_logprobs`` are log-probabilities under the tempered distribution, softmax(logits / temperature) over the
      whole vocabulary, from which each token was drawn: no top-k or top-p. An engine whose arithmetic differs from
      that of the training forward gives logprobs that the policy's `evaluate` would not, and biases the ratios.
    - A response ends with the first of the policy's ``stop_ids``, where ``terminated`` is True. A response that has not
      ended after ``max_new_tokens`` is ``truncated`` at its last token. ``action_mask`` is False after the end.
    - Tensors are on the device of the context, and the policy's parameters are those at the time of the call.
    """

    reproducible: ClassVar[bool] = True
    """Whether the same policy, prompt and key always give the same response."""

    @abstractmethod
    def generate(
        self,
        policy: TextPolicy,
        context: TokenContext,
        *,
        keys: Int[Tensor, " B"],
        rows: Int[Tensor, " B"],
        max_new_tokens: int,
        greedy: bool = False,
    ) -> Rollout:
        """Sample one response per key.

        Args:
            context: N prompts, where B is a multiple of N: each prompt is answered by B / N consecutive rows.
            keys: one noise key per response, from `ops.noise.row_keys`.
            rows: global row numbers, which become the ``rows`` of the rollout.
            max_new_tokens: maximum length of a response, its end-of-sequence token included.
            greedy: take the most probable token instead of a sample; the keys are then not used.
        """

"""A language model's surprise at a response as a part of the response's score.

A trunk that comes from a supervised model predicts what follows a prompt: a wrong fact surprises it. There are far too
few preferences to teach a scalar head those facts again, so the score may also depend on the surprise itself: on four
statistics of it, with learned weights that start at 0. The implicit reward of DPO (Rafailov et al. 2023, "Direct
Preference Optimization", eq. 5) is a score from the likelihood alone; here the preferences decide how much it matters
compared to the scalar head.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.trunk import chunk_tokens, input_embedding, scaled_head
from rlhf_lightning.models.state import save_weights
from rlhf_lightning.ops.logprobs import token_statistics
from rlhf_lightning.ops.masking import scattered, selected

FILE = "surprise_head.safetensors"
LARGE = 3.0
"""Excess surprise, in nats, at which a token counts as half unexpected."""


class SurpriseHead(nn.Module):
    """Learned weights of a response's log-likelihood and surprise under the trunk's own language-model head.

    The excess surprise of a token is −log p − H: its surprise minus the expected one, the entropy.

    Args:
        projection: from hidden states to logits; None if it is the trunk's input embedding (tied weights).
        outputs: number of scores of a response.
    """

    def __init__(self, projection: nn.Linear | None, outputs: int) -> None:
        super().__init__()
        self.projection = projection
        self.weights = nn.Parameter(torch.zeros(4, outputs))

    def forward(
        self,
        model: PreTrainedModel,
        before: Float[Tensor, "B T H"],
        actions: Int[Tensor, "B T"],
        action_mask: Bool[Tensor, "B T"],
    ) -> Float[Tensor, "B C"]:
        """The part of each response's scores that comes from its surprise.

        Args:
            model: the model whose trunk has computed the hidden states.
            before: hidden state before each token of the response.
        """
        tied = partial(nn.functional.linear, weight=input_embedding(model).weight)
        logprobs, entropy = token_statistics(
            selected(before, action_mask),
            actions[action_mask],
            head=scaled_head(self.projection or tied, model.config),
            temperature=1.0,
            chunk_tokens=chunk_tokens(model),
        )
        likelihood = scattered(logprobs, action_mask)
        excess = scattered(-logprobs - entropy, action_mask)
        unexpected = scattered(torch.sigmoid(2 * (-logprobs - entropy - LARGE)), action_mask)
        statistics = [
            likelihood.sum(-1) / 5,
            excess.sum(-1) / 5,
            excess.clamp_min(0).amax(-1),
            unexpected.sum(-1),
        ]
        return torch.stack(statistics, dim=-1) @ self.weights

    def save(self, path: Path) -> None:
        """Write weights and projection beside the model."""
        save_weights(self, path / FILE)

    @classmethod
    def load(cls, path: Path, model: PreTrainedModel) -> SurpriseHead | None:
        """The head that was saved beside a reward model; None if there is none."""
        if not getattr(model.config, "score_surprise", False):
            return None
        try:
            state = load_file(path / FILE)
            weight = state.get("projection.weight")
            projection = None
            if weight is not None:
                projection = nn.Linear(weight.shape[1], weight.shape[0], bias="projection.bias" in state)
            head = cls(projection, state["weights"].shape[-1])
            head.load_state_dict(state)
        except Exception as error:  # safetensors has exceptions of its own
            raise UserError(f"reward model {path} cannot be loaded: {FILE} is missing or unreadable") from error
        return head


def new_surprise_head(model: PreTrainedModel, outputs: int) -> SurpriseHead:
    """A head at its starting point, for reward models on this language model's trunk."""
    output = model.get_output_embeddings()
    if output.weight is input_embedding(model).weight:
        return SurpriseHead(None, outputs)
    return SurpriseHead(copy.deepcopy(output), outputs)

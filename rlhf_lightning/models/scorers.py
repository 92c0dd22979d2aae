"""Models that return a number instead of a distribution: critics and reward models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.models.lora import save_merged
from rlhf_lightning.models.surprise import SurpriseHead
from rlhf_lightning.models.text import EncodedResponses, check_vocabulary, encode_responses, stop_ids
from rlhf_lightning.models.trunk import context_length, hidden_states, trainable
from rlhf_lightning.ops.advantages import following_values
from rlhf_lightning.ops.masking import last_valid
from rlhf_lightning.types import Prompt, Rollout, TokenContext


class Critic(nn.Module):
    """Expected return before each action of a trajectory."""

    def values(
        self,
        context: Any,
        actions: Tensor,
        action_mask: Bool[Tensor, "B T"],
        trunk: Float[Tensor, "B T H"] | None = None,
    ) -> Float[Tensor, "B T"]:
        """Value before each action; ``trunk`` holds the policy's hidden states, for critics that share its trunk."""
        raise NotImplementedError

    def next_values(self, part: Rollout, values: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """Value after each action, 0 where nothing follows."""
        raise NotImplementedError

    def save(self, path: Path) -> None:
        """Write the network."""
        raise NotImplementedError


class TextCritic(Critic):
    """A critic of responses: the value after a token is the value before the next one."""

    def next_values(self, part: Rollout, values: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """The values shifted by one token; a response that was cut has ended too."""
        return following_values(values, part.action_mask)


class LanguageCritic(TextCritic):
    """A network of its own with a value head, read before each action.

    Args:
        model: a sequence-classification model with one label, so that a reward model can be its start; values are
            centered where its scores are.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = trainable(model)
        self.center = float(getattr(model.config, "score_center", 0.0))

    def values(
        self,
        context: TokenContext,
        actions: Int[Tensor, "B T"],
        action_mask: Bool[Tensor, "B T"],
        trunk: Float[Tensor, "B T H"] | None = None,
    ) -> Float[Tensor, "B T"]:
        """Expected return before each action; ``trunk`` (the policy's hidden states) is not used."""
        hidden = hidden_states(self.model, context, actions, action_mask)
        start = context.input_ids.shape[1] - 1
        return self.model.score(hidden[:, start : start + actions.shape[1]]).squeeze(-1) - self.center

    def save(self, path: Path) -> None:
        """Write the model in the Hugging Face format."""
        save_merged(self.model, path)


class SharedTrunkCritic(TextCritic):
    """A value head on the policy's own hidden states: half the memory, and the two losses share the trunk.

    Args:
        width: size of the policy's hidden states.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def values(
        self,
        context: TokenContext,
        actions: Int[Tensor, "B T"],
        action_mask: Bool[Tensor, "B T"],
        trunk: Float[Tensor, "B T H"] | None = None,
    ) -> Float[Tensor, "B T"]:
        """Expected return before each action, from the policy's hidden states ``trunk``."""
        if trunk is None:
            raise ValueError("a critic on a shared trunk needs the policy's hidden states")
        return self.score(trunk).squeeze(-1)

    def save(self, path: Path) -> None:
        """Write the head."""
        from safetensors.torch import save_file

        path.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), path / "value_head.safetensors")


class LanguageRewardModel(nn.Module):
    """Scores a response to a prompt: a scalar head at the response's last token.

    It reads text, so its tokenizer may differ from the policy's.

    Args:
        model: a sequence-classification model with one label; ``config.score_center``, where it has one, is
            subtracted from every score (the mean score of the responses that it was evaluated on).
        surprise: what the trunk's surprise at the response adds to the score, if anything.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, surprise: SurpriseHead | None = None
    ) -> None:
        super().__init__()
        check_vocabulary(model, tokenizer)
        self.model = trainable(model)
        self.tokenizer = tokenizer
        self.surprise = surprise
        self.closing_id = stop_ids(model, tokenizer)[0]
        self.register_buffer("center", torch.tensor(float(getattr(model.config, "score_center", 0.0))))

    @property
    def trunk(self) -> nn.Module:
        """Everything that came with the backbone."""
        return self.model.base_model

    @property
    def heads(self) -> nn.ModuleList:
        """Everything that starts anew."""
        return nn.ModuleList([self.model.score] + ([] if self.surprise is None else [self.surprise]))

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and response together."""
        return context_length(self.model)

    def encode(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> EncodedResponses:
        """Token ids of prompts and responses in this model's own vocabulary."""
        return encode_responses(
            prompts,
            responses,
            self.tokenizer,
            stop_id=self.closing_id,
            context_length=self.context_length,
            max_response_tokens=self.context_length // 2,
        )

    def forward(
        self, context: TokenContext, actions: Int[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, " B"]:
        """Score at the last real token of each response, not centered."""
        hidden = hidden_states(self.model, context, actions, action_mask)
        start = context.input_ids.shape[1]
        scores = last_valid(self.model.score(hidden[:, start:]).squeeze(-1), action_mask)
        if self.surprise is None:
            return scores
        return scores + self.surprise(self.model, hidden[:, start - 1 : -1], actions, action_mask)

    @torch.no_grad()
    def score(
        self, prompts: Sequence[Prompt], responses: Sequence[str], *, batch_size: int = 256
    ) -> Float[Tensor, " B"]:
        """Centered scores of responses as text, batched by length."""
        device = self.center.device
        order = sorted(range(len(responses)), key=lambda i: len(responses[i]))
        scores = torch.empty(len(responses), dtype=torch.float32, device=device)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            encoded = self.encode([prompts[i] for i in rows], [responses[i] for i in rows]).to(device)
            raw = self(encoded.context, encoded.actions, encoded.action_mask).float()
            scores[torch.tensor(rows, device=device)] = raw - self.center
        return scores

    def save(self, path: Path) -> None:
        """Write model, tokenizer and centering constant in the Hugging Face format."""
        self.model.config.score_center = float(self.center)
        self.model.config.score_surprise = self.surprise is not None
        save_merged(self.model, path)
        if self.surprise is not None:
            self.surprise.save(path)
        self.tokenizer.save_pretrained(path)

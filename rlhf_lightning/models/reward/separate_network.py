"""Separate encoders for prompt and response, and a head on both: prompts can be encoded once and for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.checkpoints import load_model, load_tokenizer
from rlhf_lightning.models.language.lora import save_merged
from rlhf_lightning.models.language.text import (
    EncodedResponses,
    check_vocabulary,
    encode_responses,
    stop_ids,
)
from rlhf_lightning.models.language.trunk import context_length, trainable
from rlhf_lightning.models.reward.networks import KIND, RewardNetwork
from rlhf_lightning.types import Prompt, TokenContext

FILE = "interaction.safetensors"


class Interaction(nn.Module):
    """Scores from two vectors p and r: two layers over [p, r, p ∘ r, |p − r|].

    These features are those of Conneau et al. 2017, "Supervised Learning of Universal Sentence Representations", § 3.1.

    Args:
        width: size of the vectors.
        columns: number of scores.
    """

    def __init__(self, width: int, columns: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(4 * width, width)
        self.score = nn.Linear(width, columns, bias=False)

    def forward(self, prompt: Float[Tensor, "B H"], response: Float[Tensor, "B H"]) -> Float[Tensor, "B C"]:
        """The scores."""
        features = torch.cat([prompt, response, prompt * response, (prompt - response).abs()], dim=-1)
        return self.score(nn.functional.gelu(self.hidden(features)))


class SeparateNetwork(RewardNetwork):
    """Two encoders of one architecture, one for prompts and one for responses.

    What a text is to its encoder is the mean of its hidden states; a response is read without its prompt.

    Args:
        prompts: encoder of prompts.
        responses: encoder of responses.
        interaction: the head on both.
    """

    def __init__(
        self,
        prompts: PreTrainedModel,
        responses: PreTrainedModel,
        interaction: Interaction,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        super().__init__()
        check_vocabulary(prompts, tokenizer)
        self.prompts, self.responses = trainable(prompts), trainable(responses)
        self.interaction = interaction
        self.tokenizer = tokenizer
        # encoders such as BERT end texts with their separator, and know no other end
        separator = tokenizer.sep_token_id
        self.closing_id = stop_ids(prompts, tokenizer)[0] if separator is None else separator

    @property
    def columns(self) -> int:
        """Outputs of the head."""
        return self.interaction.score.out_features

    @property
    def trunk(self) -> nn.ModuleList:
        """Both encoders."""
        return nn.ModuleList([self.prompts, self.responses])

    @property
    def heads(self) -> nn.Module:
        """The interaction."""
        return self.interaction

    def encode(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> EncodedResponses:
        """Prompts on the left, each response closed by the end of the sequence; each has the context for itself."""
        length = context_length(self.prompts)
        encoded = encode_responses(
            prompts,
            responses,
            self.tokenizer,
            stop_id=self.closing_id,
            context_length=2 * length + 1,  # one token more than a prompt has room for tells which are too long
            max_response_tokens=length,
        )
        ids, mask = encoded.context.input_ids, encoded.context.attention_mask
        shortened = int((mask.sum(-1) > length).sum())
        return replace(encoded, context=TokenContext(ids[:, -length:], mask[:, -length:]), truncated_prompts=shortened)

    def forward(self, encoded: EncodedResponses) -> Float[Tensor, "B C"]:
        """Scores of each response to its prompt."""
        prompts = _mean_state(self.prompts, encoded.context.input_ids, encoded.context.attention_mask)
        return self.interaction(prompts, _mean_state(self.responses, encoded.actions, encoded.action_mask))

    def save(self, path: Path) -> None:
        """Write each encoder in the Hugging Face format, and the head beside them."""
        save_merged(self.prompts, path / "prompts")
        save_merged(self.responses, path / "responses")
        save_file(self.interaction.state_dict(), path / FILE)
        self.tokenizer.save_pretrained(path)


def load_separate(path: str) -> SeparateNetwork:
    """Read a folder that `SeparateNetwork.save` wrote.

    Raises:
        UserError: something is missing or unreadable.
    """
    encoders = [load_model(AutoModel, str(Path(path) / name), kind=KIND) for name in ("prompts", "responses")]
    try:
        state = load_file(Path(path) / FILE)
        columns, width = state["score.weight"].shape
        interaction = Interaction(width, columns)
        interaction.load_state_dict(state)
    except Exception as error:  # safetensors has exceptions of its own
        raise UserError(f"{KIND} {path} cannot be loaded: {FILE} is missing or unreadable") from error
    return SeparateNetwork(*encoders, interaction, load_tokenizer(path, kind=KIND))


def _mean_state(model: PreTrainedModel, ids: Int[Tensor, "B S"], mask: Bool[Tensor, "B S"]) -> Float[Tensor, "B H"]:
    """Mean over each row's tokens of the last hidden state; the model sees them without padding before them."""
    width = int(mask.sum(-1).max())
    real_first = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)[:, :width]
    ids, mask = torch.where(mask, ids, 0).gather(1, real_first), mask.gather(1, real_first)
    hidden = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    return torch.where(mask[..., None], hidden, 0).sum(1) / mask.sum(-1, keepdim=True)

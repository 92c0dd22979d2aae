"""Separate encoders for prompt and response, and a head on both: a prompt can be encoded once for many responses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.check import check_texts
from rlhf_lightning.models.language.checkpoints import load_model, load_tokenizer
from rlhf_lightning.models.language.lora import save_merged
from rlhf_lightning.models.language.markup import stop_ids
from rlhf_lightning.models.language.spelling import spells_special_tokens
from rlhf_lightning.models.language.states import padded_right
from rlhf_lightning.models.language.text import EncodedResponses, check_vocabulary, encode_prompts, padded, reply_ids
from rlhf_lightning.models.language.trunk import context_length, trainable
from rlhf_lightning.models.reward.networks import KIND, RewardNetwork
from rlhf_lightning.models.state import save_weights
from rlhf_lightning.types import Prompt

FILE = "interaction.safetensors"


class Interaction(nn.Module):
    """Scores from two vectors p and r: two layers over [p, r, p ∘ r, |p − r|].

    The features are those of Conneau et al. 2017, "Supervised Learning of Universal Sentence Representations", § 3.1.
    """

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(4 * width, width)
        self.score = nn.Linear(width, outputs, bias=False)

    def forward(self, prompt: Float[Tensor, "B H"], response: Float[Tensor, "B H"]) -> Float[Tensor, "B C"]:
        """The scores."""
        features = torch.cat([prompt, response, prompt * response, (prompt - response).abs()], dim=-1)
        return self.score(nn.functional.gelu(self.hidden(features)))


class SeparateNetwork(RewardNetwork):
    """Two encoders of one architecture, one for prompts and one for responses.

    A text is represented by the mean of its hidden states. The encoder of responses does not read the prompt.
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
        self.outputs = interaction.score.out_features
        self.tokenizer = tokenizer
        # Encoders such as BERT end texts with their separator, and have no end-of-sequence token.
        separator = tokenizer.sep_token_id
        self.closing_id = stop_ids(prompts, tokenizer)[0] if separator is None else separator

    @property
    def trunk(self) -> nn.ModuleList:
        """Both encoders."""
        return nn.ModuleList([self.prompts, self.responses])

    @property
    def heads(self) -> nn.Module:
        """The interaction."""
        return self.interaction

    def encode(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> EncodedResponses:
        """Prompts padded on the left, responses closed by the end-of-sequence token; each may fill the context."""
        words, length = self.tokenizer, context_length(self.prompts)
        context, cut = encode_prompts(prompts, words, max_tokens=length, encoder=words.sep_token_id is not None)
        replies = [
            reply_ids(prompt, response, words, stop_id=self.closing_id)
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        return EncodedResponses(
            context,
            *padded([reply[:length] for reply in replies], left=False),
            truncated_prompts=cut,
            truncated_responses=sum(len(reply) > length for reply in replies),
            spelled=sum(spells_special_tokens(list(pair), words) for pair in zip(prompts, responses, strict=True)),
        )

    def forward(self, encoded: EncodedResponses) -> Float[Tensor, "B C"]:
        """Scores of each response to its prompt."""
        prompts = _mean_state(self.prompts, encoded.context.input_ids, encoded.context.attention_mask)
        return self.interaction(prompts, _mean_state(self.responses, encoded.actions, encoded.action_mask))

    def check(self) -> None:
        """Raise `UserError` if scores depend on the texts that are scored beside them."""
        check_texts(self.prompts, self.tokenizer, lambda prompts, responses: self(self.encode(prompts, responses)))

    def save(self, path: Path) -> None:
        """Write each encoder in the Hugging Face format, and the head beside them."""
        save_merged(self.prompts, path / "prompts")
        save_merged(self.responses, path / "responses")
        save_weights(self.interaction, path / FILE)
        self.tokenizer.save_pretrained(path)


def load_separate(path: str) -> SeparateNetwork:
    """Read a folder that `SeparateNetwork.save` wrote.

    Raises:
        UserError: something is missing or unreadable.
    """
    folders = (str(Path(path) / name) for name in ("prompts", "responses"))
    prompts, responses = (load_model(AutoModel, folder, kind=KIND) for folder in folders)
    try:
        state = load_file(Path(path) / FILE)
        outputs, width = state["score.weight"].shape
        interaction = Interaction(width, outputs)
        interaction.load_state_dict(state)
    except Exception as error:  # safetensors has exceptions of its own
        raise UserError(f"{KIND} {path} cannot be loaded: {FILE} is missing or unreadable") from error
    network = SeparateNetwork(prompts, responses, interaction, load_tokenizer(path, kind=KIND))
    network.check()
    return network


def _mean_state(model: PreTrainedModel, ids: Int[Tensor, "B S"], mask: Bool[Tensor, "B S"]) -> Float[Tensor, "B H"]:
    """Mean of the last hidden states over each row's tokens; the model gets all padding on the right."""
    ids, mask = padded_right(ids, mask)
    hidden = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    return torch.where(mask[..., None], hidden, 0).sum(1) / mask.sum(-1, keepdim=True)

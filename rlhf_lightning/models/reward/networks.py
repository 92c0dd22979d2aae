"""One trained network that scores a response to a prompt: a score for each of its columns.

A column is what one objective, one annotator, or one annotator in one objective would say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.models.language.check import check_scorer
from rlhf_lightning.models.language.checkpoints import load_model, load_tokenizer
from rlhf_lightning.models.language.lora import save_merged
from rlhf_lightning.models.language.text import (
    EncodedResponses,
    check_vocabulary,
    encode_responses,
    prompt_text,
    stop_ids,
)
from rlhf_lightning.models.language.trunk import context_length, hidden_states, trainable
from rlhf_lightning.models.reward.surprise import SurpriseHead
from rlhf_lightning.types import Prompt

KIND = "reward model"


class RewardNetwork(nn.Module):
    """Scores responses as text: its tokenizer may differ from the policy's."""

    tokenizer: PreTrainedTokenizerBase

    @property
    def columns(self) -> int:
        """Number of scores of a response."""
        raise NotImplementedError

    @property
    def trunk(self) -> nn.Module:
        """Everything that came with the backbone."""
        raise NotImplementedError

    @property
    def heads(self) -> nn.Module:
        """Everything that starts anew."""
        raise NotImplementedError

    def encode(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Any:
        """Token ids of prompts and responses: something with ``to(device)`` that `forward` reads."""
        raise NotImplementedError

    def forward(self, encoded: Any) -> Float[Tensor, "B C"]:
        """The scores as they are, not centered."""
        raise NotImplementedError

    def save(self, path: Path) -> None:
        """Write everything that is needed to load it again into a folder."""
        raise NotImplementedError


class DecoderNetwork(RewardNetwork):
    """A decoder over prompt and response, read at the response's last token.

    Args:
        model: a sequence-classification model with a label for each column.
        surprise: what the trunk's surprise at the response adds to the scores, if anything.
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

    @property
    def columns(self) -> int:
        """The model's labels."""
        return self.model.config.num_labels

    @property
    def trunk(self) -> nn.ModuleList:
        """The decoder, and its projection to logits where the surprise has one."""
        projection = None if self.surprise is None else self.surprise.projection
        return nn.ModuleList([self.model.base_model] + ([] if projection is None else [projection]))

    @property
    def heads(self) -> nn.ModuleList:
        """The scoring layer, and the weights of the surprise."""
        weights = [] if self.surprise is None else [nn.ParameterList([self.surprise.weights])]
        return nn.ModuleList([self.model.score, *weights])

    def encode(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> EncodedResponses:
        """Prompts on the left, each response closed by the end of the sequence."""
        length = context_length(self.model)
        return encode_responses(
            prompts,
            responses,
            self.tokenizer,
            stop_id=self.closing_id,
            context_length=length,
            max_response_tokens=length // 2,
        )

    def forward(self, encoded: EncodedResponses) -> Float[Tensor, "B C"]:
        """Scores at the last real token of each response."""
        mask = encoded.action_mask
        hidden = hidden_states(self.model, encoded.context, encoded.actions, mask)
        start = encoded.context.input_ids.shape[1]
        scores = self.model.score(_at_last(hidden[:, start:], mask))
        if self.surprise is None:
            return scores
        return scores + self.surprise(self.model, hidden[:, start - 1 : -1], encoded.actions, mask)

    def save(self, path: Path) -> None:
        """Write model and tokenizer in the Hugging Face format, the surprise head beside them."""
        self.model.config.score_surprise = self.surprise is not None
        save_merged(self.model, path)
        if self.surprise is not None:
            self.surprise.save(path)
        self.tokenizer.save_pretrained(path)


@dataclass
class EncodedTexts:
    """Prompts and responses as one sequence each, in a model's own format.

    Args:
        inputs: what the model's ``forward`` takes, each [B, S] and padded on the right.
        truncated_prompts: how many prompts lost their first tokens to fit.
        truncated_responses: how many responses lost their last tokens to fit.
    """

    inputs: dict[str, Int[Tensor, "B S"]]
    truncated_prompts: int = 0
    truncated_responses: int = 0

    def to(self, device: torch.device | str) -> EncodedTexts:
        """The same on another device."""
        return replace(self, inputs={name: tensor.to(device) for name, tensor in self.inputs.items()})


class EncoderNetwork(RewardNetwork):
    """An encoder such as BERT, which reads prompt and response as a pair of texts and scores them its own way.

    Args:
        model: a sequence-classification model with a label for each column.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        check_vocabulary(model, tokenizer)
        self.model = trainable(model)
        self.tokenizer = tokenizer
        self.tokenizer.truncation_side = "left"

    @property
    def columns(self) -> int:
        """The model's labels."""
        return self.model.config.num_labels

    @property
    def trunk(self) -> nn.Module:
        """The encoder."""
        return self.model.base_model

    @property
    def heads(self) -> nn.ModuleList:
        """What stands on it."""
        return nn.ModuleList(child for child in self.model.children() if child is not self.model.base_model)

    def encode(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> EncodedTexts:
        """Pairs of texts; a prompt that is too long keeps its last tokens, a response its first."""
        words, room = self.tokenizer, min(context_length(self.model), self.tokenizer.model_max_length)
        texts, kept, cut = [prompt_text(prompt, words) for prompt in prompts], [], 0
        for response in responses:
            ids = words(response, add_special_tokens=False)["input_ids"]
            cut += len(ids) > room // 2
            kept.append(response if len(ids) <= room // 2 else words.decode(ids[: room // 2]))
        rows = [words(*both, return_attention_mask=True) for both in zip(texts, kept, strict=True)]
        shortened = sum(len(row["input_ids"]) > room for row in rows)
        options: dict[str, Any] = {"truncation": "only_first", "max_length": room, "return_attention_mask": True}
        rows = [words(*both, **options) for both in zip(texts, kept, strict=True)] if shortened else rows
        return EncodedTexts(_padded(rows, words.pad_token_id or 0), shortened, cut)

    def forward(self, encoded: EncodedTexts) -> Float[Tensor, "B C"]:
        """The model's own scores."""
        return self.model(**encoded.inputs).logits

    def save(self, path: Path) -> None:
        """Write model and tokenizer in the Hugging Face format."""
        save_merged(self.model, path)
        self.tokenizer.save_pretrained(path)


def load_classifier(path: str) -> RewardNetwork:
    """Any sequence-classification model, read the way its architecture asks for.

    Raises:
        UserError: it cannot be loaded, or not be read.
    """
    model, words = load_model(AutoModelForSequenceClassification, path, kind=KIND), load_tokenizer(path, kind=KIND)
    return network_of(model, words, SurpriseHead.load(Path(path), model))


def network_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, surprise: SurpriseHead | None = None
) -> RewardNetwork:
    """A sequence-classification model as a network: a decoder's has a layer named ``score``.

    Raises:
        UserError: a decoder that cannot be run the way it is here.
    """
    if hasattr(model, "score"):
        network = DecoderNetwork(model, tokenizer, surprise)
        check_scorer(network.model)
        return network
    return EncoderNetwork(model, tokenizer)


def _at_last(hidden: Float[Tensor, "B T H"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B H"]:
    """The state at each row's last position that counts."""
    last = torch.arange(mask.shape[1], device=mask.device).expand_as(mask).masked_fill(~mask, -1).amax(-1)
    return hidden[torch.arange(len(hidden), device=mask.device), last]


def _padded(rows: Sequence[Mapping[str, list[int]]], pad: int) -> dict[str, Int[Tensor, "B S"]]:
    """Rows of token ids, masks and the like as tensors, padded on the right."""

    def column(name: str, fill: int) -> Int[Tensor, "B S"]:
        return pad_sequence([torch.tensor(row[name]) for row in rows], batch_first=True, padding_value=fill)

    return {name: column(name, pad if name == "input_ids" else 0) for name in rows[0]}

"""Networks that score a response to a prompt, with one output or several.

Each output is the score in one objective, by one annotator, or by one annotator in one objective.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.models.language.check import check_scorer, compare
from rlhf_lightning.models.language.checkpoints import load_model, load_tokenizer
from rlhf_lightning.models.language.lora import save_merged
from rlhf_lightning.models.language.text import (
    EncodedResponses,
    check_vocabulary,
    encode_responses,
    prompt_text,
    stop_ids,
)
from rlhf_lightning.models.language.trunk import context_length, hidden_states, score_layer, trainable
from rlhf_lightning.models.reward.surprise import SurpriseHead
from rlhf_lightning.types import Prompt

KIND = "reward model"


@dataclass
class EncodedTexts:
    """Each prompt with its response as one sequence, in the format of an encoder.

    Args:
        inputs: arguments of the model's ``forward``, each [B, S] and padded on the right.
        truncated_prompts: how many prompts were cut at the start to fit.
        truncated_responses: how many responses were cut at the end to fit.
    """

    inputs: dict[str, Int[Tensor, "B S"]]
    truncated_prompts: int = 0
    truncated_responses: int = 0

    def to(self, device: torch.device | str) -> EncodedTexts:
        """The same on another device."""
        return replace(self, inputs={name: tensor.to(device) for name, tensor in self.inputs.items()})


class RewardNetwork(nn.Module):
    """Scores responses as text: its tokenizer may differ from the policy's."""

    tokenizer: PreTrainedTokenizerBase
    outputs: int
    """Number of scores of a response."""

    @property
    def trunk(self) -> nn.Module:
        """All layers that come from the backbone."""
        raise NotImplementedError

    @property
    def heads(self) -> nn.Module:
        """All layers that are newly initialized."""
        raise NotImplementedError

    def encode(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> EncodedResponses | EncodedTexts:
        """Token ids of prompts and responses, for `forward`."""
        raise NotImplementedError

    def forward(self, encoded: Any) -> Float[Tensor, "B C"]:
        """Uncentered scores of what `encode` returned."""
        raise NotImplementedError

    def save(self, path: Path) -> None:
        """Write everything that is needed to load the network again into a folder."""
        raise NotImplementedError


class ClassifierNetwork(RewardNetwork):
    """A sequence-classification model of transformers.

    Args:
        model: the model, with a label for each output.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        check_vocabulary(model, tokenizer)
        self.model = trainable(model)
        self.tokenizer = tokenizer
        self.outputs = int(model.config.num_labels or 0)

    def save(self, path: Path) -> None:
        """Write model and tokenizer in the Hugging Face format."""
        save_merged(self.model, path)
        self.tokenizer.save_pretrained(path)


class DecoderNetwork(ClassifierNetwork):
    """A decoder over prompt and response, read at the response's last token.

    Args:
        surprise: adds the trunk's surprise at the response to the scores; None for no such part.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, surprise: SurpriseHead | None = None
    ) -> None:
        super().__init__(model, tokenizer)
        self.surprise = surprise
        self.closing_id = stop_ids(model, tokenizer)[0]

    @property
    def trunk(self) -> nn.ModuleList:
        """The decoder, and its projection to logits if the surprise has one."""
        projection = None if self.surprise is None else self.surprise.projection
        return nn.ModuleList([self.model.base_model] + ([] if projection is None else [projection]))

    @property
    def heads(self) -> nn.ModuleList:
        """The scoring layer, and the weights of the surprise."""
        weights = [] if self.surprise is None else [nn.ParameterList([self.surprise.weights])]
        return nn.ModuleList([score_layer(self.model), *weights])

    def encode(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> EncodedResponses:
        """Prompts padded on the left, responses closed by the end-of-sequence token."""
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
        last = start + mask.sum(-1) - 1
        scores = score_layer(self.model)(hidden[torch.arange(len(hidden), device=mask.device), last])
        if self.surprise is None:
            return scores
        return scores + self.surprise(self.model, hidden[:, start - 1 : -1], encoded.actions, mask)

    def save(self, path: Path) -> None:
        """Write model and tokenizer in the Hugging Face format, the surprise head beside them."""
        self.model.config.score_surprise = self.surprise is not None
        super().save(path)
        if self.surprise is not None:
            self.surprise.save(path)


class EncoderNetwork(ClassifierNetwork):
    """An encoder such as BERT, which reads prompt and response as a pair of texts and has its own way to score them."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(model, tokenizer)
        self.tokenizer.truncation_side = "left"

    @property
    def trunk(self) -> nn.Module:
        """The encoder."""
        return self.model.base_model

    @property
    def heads(self) -> nn.ModuleList:
        """All layers on top of the encoder."""
        return nn.ModuleList(child for child in self.model.children() if child is not self.model.base_model)

    def encode(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> EncodedTexts:
        """Pairs of texts; a prompt that is too long keeps its last tokens, a response its first."""
        tokenizer, length = self.tokenizer, min(context_length(self.model), self.tokenizer.model_max_length)
        pairs: list[tuple[str, str]] = []
        truncated_responses = 0
        for prompt, response in zip(prompts, responses, strict=True):
            ids = tokenizer(response, add_special_tokens=False)["input_ids"]
            if len(ids) > length // 2:
                truncated_responses += 1
                response = str(tokenizer.decode(ids[: length // 2]))
            pairs.append((prompt_text(prompt, tokenizer), response))
        rows = [tokenizer(*pair, return_attention_mask=True) for pair in pairs]
        truncated_prompts = sum(len(row["input_ids"]) > length for row in rows)
        if truncated_prompts:
            options: dict[str, Any] = {"truncation": "only_first", "max_length": length, "return_attention_mask": True}
            rows = [tokenizer(*pair, **options) for pair in pairs]
        inputs = _padded(rows, pad_id=tokenizer.pad_token_id or 0)
        return EncodedTexts(inputs, truncated_prompts, truncated_responses)

    def forward(self, encoded: EncodedTexts) -> Float[Tensor, "B C"]:
        """The model's own scores."""
        return self.model(**encoded.inputs).logits


def load_classifier(path: str) -> ClassifierNetwork:
    """Load any sequence-classification model from a folder or the hub.

    Raises:
        UserError: it cannot be loaded, or not be run the way this package runs it.
    """
    model, tokenizer = load_model(AutoModelForSequenceClassification, path, kind=KIND), load_tokenizer(path, kind=KIND)
    return classifier_network(model, tokenizer, SurpriseHead.load(Path(path), model))


def classifier_network(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, surprise: SurpriseHead | None = None
) -> ClassifierNetwork:
    """A reward network on a sequence-classification model, which is a decoder if it has a layer named ``score``.

    Raises:
        UserError: the model cannot be run the way this package runs it.
    """
    if hasattr(model, "score"):
        network = DecoderNetwork(model, tokenizer, surprise)
        check_scorer(network.model)
        return network
    encoder = EncoderNetwork(model, tokenizer)
    check_texts(encoder, encoder.model)
    return encoder


def check_texts(network: RewardNetwork, model: PreTrainedModel) -> None:
    """Compare scores of a few texts of different lengths with those of each alone, and with a second evaluation.

    Args:
        model: the network's own, which is named where it is refused.

    Raises:
        UserError: they differ.
    """
    known = range(len(network.tokenizer) // 2, len(network.tokenizer))  # words: letters come before them
    ids = [known[i % len(known)] for i in range(20)]
    texts = [str(network.tokenizer.decode(ids[:length])) for length in (1, 3, 8, 20)]
    others = texts[::-1]

    def own() -> Iterator[Tensor]:
        return iter([torch.cat([network(network.encode([a], [b])) for a, b in zip(texts, others, strict=True)])])

    def ours() -> Iterator[Tensor]:
        return iter([network(network.encode(texts, others))])

    compare(model, own, ours, "expected one that reads each text by itself, such as bert or roberta")


def _padded(rows: Sequence[Mapping[str, list[int]]], *, pad_id: int) -> dict[str, Int[Tensor, "B S"]]:
    """Token ids, masks and segment numbers of all rows as tensors, padded on the right."""

    def column(name: str, fill: int) -> Int[Tensor, "B S"]:
        return pad_sequence([torch.tensor(row[name]) for row in rows], batch_first=True, padding_value=fill)

    return {name: column(name, pad_id if name == "input_ids" else 0) for name in rows[0]}

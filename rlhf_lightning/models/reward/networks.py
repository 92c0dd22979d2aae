"""Networks that score a response to a prompt, with one output or several.

Each output is the score in one objective, by one annotator, or by one annotator in one objective.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.models.language.check import check_scorer, check_texts
from rlhf_lightning.models.language.checkpoints import load_model, load_tokenizer
from rlhf_lightning.models.language.lora import save_merged
from rlhf_lightning.models.language.markup import (
    PLAIN_CHAT_TEMPLATE,
    answered_text,
    prompt_text,
    stop_ids,
    turn_end,
    without_bos,
)
from rlhf_lightning.models.language.spelling import plain_ids, spells_special_tokens
from rlhf_lightning.models.language.states import hidden_states
from rlhf_lightning.models.language.text import EncodedResponses, check_vocabulary, encode_responses
from rlhf_lightning.models.language.trunk import context_length, score_layer, trainable
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
        spelled: how many rows spell out a special token in their text, which is read as plain text.
    """

    inputs: dict[str, Int[Tensor, "B S"]]
    truncated_prompts: int = 0
    truncated_responses: int = 0
    spelled: int = 0

    def rows(self) -> list[tuple[int, ...]]:
        """The token ids of each prompt with its response, without padding."""
        masks = self.inputs["attention_mask"].bool()
        return [tuple(ids[mask].tolist()) for ids, mask in zip(self.inputs["input_ids"], masks, strict=True)]

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
        given_head: the head is fitted already, and what the model says of padding holds.
    """

    as_rendered: bool
    """Whether a conversation is read with its reply exactly as the chat template renders both.

    Otherwise it is read as a prompt with a closed reply: if the template does not close turns, and by heads that an
    earlier version has fitted so.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, given_head: bool = False) -> None:
        super().__init__()
        check_vocabulary(model, tokenizer)
        self.as_rendered = given_head or turn_end(tokenizer) is not None
        self.model = trainable(model)
        self.tokenizer = tokenizer
        self.outputs = int(model.config.num_labels or 0)

    def save(self, path: Path) -> None:
        """Write model and tokenizer in the Hugging Face format."""
        save_merged(self.model, path)
        self.tokenizer.save_pretrained(path)


class DecoderNetwork(ClassifierNetwork):
    """A decoder over prompt and response, read where transformers reads it: at the last token that is not padding.

    If EOS is also the padding token, that is the token before EOS. A head that was fitted so is still read there; a new
    one is read at EOS, and the model gets another token for padding, so that transformers reads its export there, too.

    Args:
        surprise: adds the trunk's surprise at the response to the scores; None for no such part.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        surprise: SurpriseHead | None = None,
        *,
        given_head: bool = False,
    ) -> None:
        super().__init__(model, tokenizer, given_head=given_head)
        self.surprise = surprise
        self.closing_id = stop_ids(model, tokenizer)[0]
        if not given_head:
            self._separate_padding()

    def _separate_padding(self) -> None:
        """Pad with another token than those that end a response, if the model does not do so already."""
        config, ends = self.model.config.get_text_config(), stop_ids(self.model, self.tokenizer)
        if config.pad_token_id is None or config.pad_token_id in ends:
            self.tokenizer = copy.deepcopy(self.tokenizer)  # the task may use it elsewhere
            candidates = [*sorted(self.tokenizer.all_special_ids), *reversed(range(len(self.tokenizer)))]
            config.pad_token_id = next(token_id for token_id in candidates if token_id not in ends)
            self.tokenizer.pad_token = self.tokenizer.convert_ids_to_tokens(config.pad_token_id)

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
        """Prompts padded on the left, responses to texts closed by the end-of-sequence token."""
        length = context_length(self.model)
        return encode_responses(
            prompts,
            responses,
            self.tokenizer,
            stop_id=self.closing_id,
            context_length=length,
            max_response_tokens=length // 2,
            as_rendered=self.as_rendered,
        )

    def forward(self, encoded: EncodedResponses) -> Float[Tensor, "B C"]:
        """Scores at the last token of each row that is not padding."""
        hidden = hidden_states(self.model, encoded.context, encoded.actions, encoded.action_mask)
        rows = torch.arange(len(hidden), device=hidden.device)
        scores = score_layer(self.model)(hidden[rows, self._last(encoded)])
        if self.surprise is None:
            return scores
        before = hidden[:, encoded.context.input_ids.shape[1] - 1 : -1]
        return scores + self.surprise(self.model, before, encoded.actions, encoded.action_mask)

    def _last(self, encoded: EncodedResponses) -> Int[Tensor, " B"]:
        """The place of each row's last token that is not padding, by its id as well as by the mask."""
        mask = torch.cat([encoded.context.attention_mask, encoded.action_mask], dim=1)
        pad_id = self.model.config.get_text_config().pad_token_id
        if pad_id is not None:
            mask = mask & (torch.cat([encoded.context.input_ids, encoded.actions], dim=1) != pad_id)
        return (mask * torch.arange(mask.shape[1], device=mask.device)).amax(-1)

    def save(self, path: Path) -> None:
        """Write model and tokenizer in the Hugging Face format, the surprise head beside them."""
        self.model.config.score_surprise = self.surprise is not None
        super().save(path)
        if self.surprise is not None:
            self.surprise.save(path)


class EncoderNetwork(ClassifierNetwork):
    """An encoder such as BERT, which reads prompt and response as a pair of texts and has its own way to score them."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, given_head: bool = False) -> None:
        super().__init__(model, tokenizer, given_head=given_head)
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
        """Pairs of texts, or one text if the encoder has a chat template for both.

        A prompt that is too long keeps its last tokens, a response its first.
        """
        tokenizer, length = self.tokenizer, min(context_length(self.model), self.tokenizer.model_max_length)
        texts: list[tuple[str, ...]] = []
        truncated_responses = 0
        for prompt, response in zip(prompts, responses, strict=True):
            ids = plain_ids(response, tokenizer)
            if len(ids) > length // 2:
                truncated_responses += 1
                response = str(tokenizer.decode(ids[: length // 2]))
            texts.append(self._texts(prompt, response))
        rows = [self._tokens(row) for row in texts]
        truncated_prompts = sum(len(row["input_ids"]) > length for row in rows)
        if truncated_prompts:
            rows = [self._tokens(row, truncation="only_first", max_length=length) for row in texts]
        inputs = _padded(rows, pad_id=tokenizer.pad_token_id or 0)
        spelled = sum(spells_special_tokens(list(pair), tokenizer) for pair in zip(prompts, responses, strict=True))
        return EncodedTexts(inputs, truncated_prompts, truncated_responses, spelled)

    def _texts(self, prompt: Prompt, response: str) -> tuple[str, ...]:
        """A prompt and a response, or both in one text where a template of the encoder's own renders them."""
        template = self.tokenizer.chat_template
        if isinstance(prompt, str) or not self.as_rendered or PLAIN_CHAT_TEMPLATE in str(template):
            text = prompt_text(prompt, self.tokenizer)
            return (text if isinstance(prompt, str) else without_bos(text, self.tokenizer)), response
        return (answered_text(prompt, response, self.tokenizer),)

    def _tokens(self, texts: tuple[str, ...], **options: Any) -> Mapping[str, list[int]]:
        pair = len(texts) == 2
        if pair and spells_special_tokens(list(texts), self.tokenizer):
            options["split_special_tokens"] = True
        return self.tokenizer(*texts, add_special_tokens=pair, return_attention_mask=True, **options)

    def forward(self, encoded: EncodedTexts) -> Float[Tensor, "B C"]:
        """The model's own scores."""
        return self.model(**encoded.inputs).logits


def load_classifier(path: str, *, given_head: bool) -> ClassifierNetwork:
    """Load any sequence-classification model from a folder or the hub.

    Args:
        given_head: see `ClassifierNetwork`.

    Raises:
        UserError: it cannot be loaded, or not be run the way this package runs it.
    """
    model, tokenizer = load_model(AutoModelForSequenceClassification, path, kind=KIND), load_tokenizer(path, kind=KIND)
    return classifier_network(model, tokenizer, SurpriseHead.load(Path(path), model), given_head=given_head)


def classifier_network(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    surprise: SurpriseHead | None = None,
    *,
    given_head: bool,
) -> ClassifierNetwork:
    """A reward network on a sequence-classification model, which is a decoder if it has a layer named ``score``.

    Raises:
        UserError: the model cannot be run the way this package runs it.
    """
    if hasattr(model, "score"):
        network = DecoderNetwork(model, tokenizer, surprise, given_head=given_head)
        check_scorer(network.model)
        return network
    encoder = EncoderNetwork(model, tokenizer, given_head=given_head)
    check_texts(model, tokenizer, lambda prompts, responses: encoder(encoder.encode(prompts, responses)))
    return encoder


def _padded(rows: Sequence[Mapping[str, list[int]]], *, pad_id: int) -> dict[str, Int[Tensor, "B S"]]:
    """Token ids, masks and segment numbers of all rows as tensors, padded on the right."""

    def column(name: str, fill: int) -> Int[Tensor, "B S"]:
        return pad_sequence([torch.tensor(row[name]) for row in rows], batch_first=True, padding_value=fill)

    return {name: column(name, pad_id if name == "input_ids" else 0) for name in rows[0]}

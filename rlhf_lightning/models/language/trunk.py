"""What is read from a transformers model: its lengths, its head, and what it computes for a cache."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.activations import NewGELUActivation

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.onednn import use_onednn
from rlhf_lightning.ops.logprobs import Head
from rlhf_lightning.ops.masking import masked

CHUNK_ELEMENTS = 1 << 24
"""Number of logits in memory at one time: 64 MiB in float32."""

_LENGTHS = ("max_position_embeddings", "max_seq_len", "max_target_positions")
_WINDOWS = ("sliding_window", "attention_chunk_size")
_POSITIONS = "position_embeddings"


def known_positions(model: PreTrainedModel) -> int:
    """Number of positions that the model knows.

    RoBERTa and its family count from the one behind the padding token's: 514 embeddings are 512 positions.
    """
    config = model.config.get_text_config()
    given = [getattr(config, name, None) or 0 for name in _LENGTHS]
    numbers: list[int] = [number for number in given if number > 0][:1] or [2048]
    for name, module in model.named_modules():
        if name.endswith(_POSITIONS) and getattr(module, "padding_idx", None) is not None:
            numbers.append(len(module.weight) - module.padding_idx - 1)
    return min(numbers)


def position_border(config: PretrainedConfig) -> int | None:
    """The row length from which on positions depend on the longest row of a batch; None if they never do.

    LongRoPE (Ding et al. 2024) has two sets of frequencies, and transformers takes the second one for all rows of a
    batch, and for all tokens after those that were decoded before, once one position is beyond the border. The scaling
    of kind ``dynamic`` begins behind the context, where no row ends.
    """
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    layers = [kind for kind in parameters.values() if isinstance(kind, Mapping)]  # some have one for each kind of layer
    borders = [
        kind["original_max_position_embeddings"]
        for kind in (parameters, *layers)
        if kind.get("rope_type") == "longrope"
    ]
    return min(borders, default=None)


def local_attention(config: PretrainedConfig) -> int | None:
    """The row length from which on some layers no longer attend to a whole row; None if all always do."""
    config = config.get_text_config()
    limits = [getattr(config, name, None) for name in _WINDOWS]
    return min((limit for limit in limits if limit), default=None)


def context_length(model: PreTrainedModel) -> int:
    """Maximum number of tokens of prompt and response together: every row's numbers are a function of the row alone."""
    known, border = known_positions(model), position_border(model.config)
    return known if border is None else min(known, border)


def chunk_tokens(model: PreTrainedModel) -> int:
    """Number of tokens whose logits fit into one chunk."""
    return max(1, CHUNK_ELEMENTS // model.config.get_text_config().vocab_size)


def position_ids(attention_mask: Bool[Tensor, "B S"]) -> Int[Tensor, "B S"]:
    """Positions counted from each row's first real token."""
    return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)


def feed(
    model: PreTrainedModel, ids: Int[Tensor, "B S"], attention_mask: Bool[Tensor, "B L"], cache: DynamicCache
) -> Float[Tensor, "B H"]:
    """Append tokens to a cache; returns the last hidden state after them.

    Args:
        attention_mask: of everything in the cache, the new tokens included; padding is on the left.
    """
    new = slice(-ids.shape[1], None)
    outputs = model.base_model(
        input_ids=masked(ids, attention_mask[:, new]),
        attention_mask=attention_mask.long(),
        position_ids=position_ids(attention_mask)[:, new],
        past_key_values=cache,
        use_cache=True,
    )
    return outputs.last_hidden_state[:, -1]


def language_head(model: PreTrainedModel) -> Head:
    """The model's own map from hidden states to logits."""
    return scaled_head(model.get_output_embeddings(), model.config)


def scaled_head(projection: Head, config: PretrainedConfig) -> Head:
    """A projection to logits, followed by the scaling or capping that some architectures apply to them."""
    config = config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0

    def head(hidden: Tensor) -> Tensor:
        logits = projection(hidden)
        if scale != 1.0:
            logits = logits * scale
        return logits if cap is None else cap * torch.tanh(logits / cap)

    return head


def score_layer(model: PreTrainedModel) -> nn.Linear:
    """The layer of a decoder with which it scores a sequence."""
    return cast(nn.Linear, model.score)


def input_embedding(model: PreTrainedModel) -> nn.Embedding:
    """The layer that embeds token ids.

    Raises:
        UserError: there is none with a row for each of them, as where characters are hashed or weights are quantized.
    """
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:
        embedding = None
    if not hasattr(embedding, "num_embeddings"):
        raise UserError(
            f"the architecture {type(model).__name__} is not supported: it has no plain embedding of token ids; "
            "expected one such as llama, qwen, gpt2, bert or roberta"
        )
    return cast(nn.Embedding, embedding)


def trainable(model: PreTrainedModel) -> PreTrainedModel:
    """Prepare a model for training, in place: its outputs depend on parameters and inputs alone.

    It stays in evaluation mode, whatever mode it is put into: a ratio of two evaluations must not compare two draws of
    dropout, router jitter or other noise. The embedding of the padding token is trained like any other: the padding
    token is often the end-of-sequence token too. GELU by tanh is computed in one kernel instead of eight, and products
    of matrices by what is fastest.
    """
    model.eval()
    model.train = partial(_stay, model)  # type: ignore[method-assign]
    for name, module in list(model.named_modules()):
        if isinstance(module, NewGELUActivation):
            model.set_submodule(name, nn.GELU(approximate="tanh").eval())
        if isinstance(module, nn.Embedding) and not name.endswith(_POSITIONS):
            module.padding_idx = None
    use_onednn(model)
    return model


def _stay(model: PreTrainedModel, mode: bool = True) -> PreTrainedModel:
    """In the place of ``train``: nothing changes."""
    return model

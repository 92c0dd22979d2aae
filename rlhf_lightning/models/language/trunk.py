"""Running a transformers model over prompts and responses, and reading its hidden states."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel

from rlhf_lightning.ops.logprobs import Head
from rlhf_lightning.ops.masking import masked
from rlhf_lightning.types import Context, TokenContext

CHUNK_ELEMENTS = 1 << 24
"""Number of logits in memory at one time: 64 MiB in float32."""


def context_length(model: PreTrainedModel) -> int:
    """Maximum number of tokens of prompt and response together."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", 2048)


def chunk_tokens(model: PreTrainedModel) -> int:
    """Number of tokens whose logits fit into one chunk."""
    return max(1, CHUNK_ELEMENTS // model.config.get_text_config().vocab_size)


def position_ids(attention_mask: Bool[Tensor, "B S"]) -> Int[Tensor, "B S"]:
    """Positions counted from each row's first real token."""
    return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)


def padded_right(ids: Int[Tensor, "B S"], mask: Bool[Tensor, "B S"]) -> tuple[Int[Tensor, "B W"], Bool[Tensor, "B W"]]:
    """Move all padding to the right of each row and cut columns of padding alone; padding ids become 0."""
    width = int(mask.sum(-1).max())
    tokens_first = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)[:, :width]
    return masked(ids, mask).gather(1, tokens_first), mask.gather(1, tokens_first)


def hidden_states(
    model: PreTrainedModel, context: TokenContext, actions: Int[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B S H"]:
    """Last hidden states over prompt and response, S = P + T.

    The state at position P − 1 + t depends on everything before action t, the one at P + t on action t too. States at
    padding are meaningless.

    The model gets each row with its padding on the right: a causal model then needs no attention mask, and no position
    attends to padding alone.
    """
    mask = torch.cat([context.attention_mask, action_mask], dim=1)
    ids, _ = padded_right(torch.cat([context.input_ids, actions], dim=1), mask)
    outputs = model.base_model(
        input_ids=ids,
        position_ids=torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1),
        use_cache=False,
    )
    hidden = outputs.last_hidden_state
    return hidden.gather(1, position_ids(mask)[:, :, None].expand(-1, -1, hidden.shape[-1]))


def hidden_before(
    model: PreTrainedModel, context: Context, actions: Int[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T H"]:
    """The last hidden state before each action: the one that the action is drawn from."""
    assert isinstance(context, TokenContext)
    start = context.input_ids.shape[1] - 1
    return hidden_states(model, context, actions, action_mask)[:, start : start + actions.shape[1]]


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
    """The layer that embeds token ids."""
    return cast(nn.Embedding, model.get_input_embeddings())


def trainable(model: PreTrainedModel) -> PreTrainedModel:
    """Prepare a model for training, in place: its outputs depend on parameters and inputs alone.

    Dropout is set to 0, under whatever name an architecture stores its probability: a ratio of two evaluations must not
    compare two dropout masks. The embedding of the padding token is trained like any other: the padding token is often
    the end-of-sequence token too.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
        if isinstance(module, nn.Embedding):
            module.padding_idx = None
    return model

"""Running a transformers model over prompts and responses, and reading its hidden states."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel

from rlhf_lightning.ops.logprobs import Head
from rlhf_lightning.types import TokenContext

CHUNK_ELEMENTS = 1 << 24
"""Logits held at one time: 64 MiB in float32."""


def context_length(model: PreTrainedModel) -> int:
    """Most tokens of prompt and response together."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", 2048)


def chunk_tokens(vocabulary: int) -> int:
    """Number of tokens whose logits fit into one chunk."""
    return max(1, CHUNK_ELEMENTS // vocabulary)


def position_ids(attention_mask: Bool[Tensor, "B S"]) -> Int[Tensor, "B S"]:
    """Positions counted from each row's first real token."""
    return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)


def hidden_states(
    model: PreTrainedModel,
    context: TokenContext,
    actions: Int[Tensor, "B T"],
    action_mask: Bool[Tensor, "B T"],
) -> Float[Tensor, "B S H"]:
    """Last hidden states over prompt and response, S = P + T.

    Position P − 1 + t has seen everything before action t, position P + t has seen action t too. What stands at
    padding means nothing.

    The model itself sees each row without padding before or inside it: a causal model needs no mask then, and no
    position attends to padding alone.
    """
    mask = torch.cat([context.attention_mask, action_mask], dim=1)
    ids = torch.where(mask, torch.cat([context.input_ids, actions], dim=1), 0)
    width = int(mask.sum(-1).max())
    real_first = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)[:, :width]
    outputs = model.base_model(
        input_ids=ids.gather(1, real_first),
        position_ids=torch.arange(width, device=ids.device).expand(len(ids), -1),
        use_cache=False,
    )
    hidden = outputs.last_hidden_state
    return hidden.gather(1, position_ids(mask)[:, :, None].expand(-1, -1, hidden.shape[-1]))


def feed(
    model: PreTrainedModel, ids: Int[Tensor, "B S"], attention_mask: Bool[Tensor, "B L"], cache: DynamicCache
) -> Float[Tensor, "B H"]:
    """Append tokens to a cache; the hidden state that has seen all of them.

    Args:
        attention_mask: of everything in the cache, the new tokens included; padding is on the left.
    """
    new = slice(-ids.shape[1], None)
    outputs = model.base_model(
        input_ids=torch.where(attention_mask[:, new], ids, 0),
        attention_mask=attention_mask.long(),
        position_ids=position_ids(attention_mask)[:, new],
        past_key_values=cache,
        use_cache=True,
    )
    return outputs.last_hidden_state[:, -1]


def language_head(model: PreTrainedModel) -> Head:
    """Hidden states to logits as the model itself does it."""
    return scaled_head(model.get_output_embeddings(), model.config)


def scaled_head(projection: Head, config: PretrainedConfig) -> Head:
    """A projection to logits with what some architectures do after it: they scale or cap the logits."""
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


def trainable(model: PreTrainedModel) -> PreTrainedModel:
    """Make a model fit for training as a function of its parameters and inputs alone.

    Dropout is 0, under whatever name an architecture keeps its probability: a ratio of two evaluations must not
    compare two dropout masks. And the padding token's embedding learns like any other: it is often the
    end-of-sequence token too.
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

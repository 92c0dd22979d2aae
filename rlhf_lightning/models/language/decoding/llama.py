"""`LlamaStep`: one token of Llama and the architectures that are built like it."""

from __future__ import annotations

from typing import Self, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import rms_norm
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel, LlamaRMSNorm

from rlhf_lightning.models.language.decoding.affine import Affine
from rlhf_lightning.models.language.decoding.key_values import KeyValues

_ARCHITECTURES = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)


class LlamaStep:
    """Llama, Mistral, Qwen2 and Qwen3: rotary positions, RMS norms, grouped queries, a gated feed-forward network.

    Sources: Touvron et al. 2023, "LLaMA"; Su et al. 2021, "RoFormer"; Ainslie et al. 2023, "GQA"; Shazeer 2020, "GLU
    Variants Improve Transformer".
    """

    def __init__(self, model: PreTrainedModel) -> None:
        trunk = cast(LlamaModel, model.base_model)
        self.tokens, self.norm, self.angles = trunk.embed_tokens, Norm(trunk.norm), trunk.rotary_emb
        self.layers = [LlamaLayer(cast(LlamaDecoderLayer, block)) for block in trunk.layers]

    @classmethod
    def of(cls, model: PreTrainedModel) -> Self | None:
        """The step of a model; None for other architectures, and where attention has a window."""
        if type(model) not in _ARCHITECTURES or any(
            kind != "full_attention" for kind in getattr(model.config, "layer_types", None) or ()
        ):
            return None
        if type(model) is MistralForCausalLM and model.config.sliding_window is not None:
            return None
        return cls(model)

    def __call__(
        self, tokens: Int[Tensor, " n"], positions: Int[Tensor, " n"], key_values: KeyValues
    ) -> Float[Tensor, "n H"]:
        """The last hidden states; see `DecodingStep`."""
        hidden = self.tokens(tokens)
        cosine, sine = self.angles(hidden, positions[:, None])
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden, cosine, sine, number, key_values)
        return self.norm(hidden)


class LlamaLayer:
    """Attention and a feed-forward network, each behind a norm and added to what came in."""

    def __init__(self, block: LlamaDecoderLayer) -> None:
        attention, network = block.self_attn, block.mlp
        self.depth, self.scale = attention.head_dim, attention.scaling
        self.norm_1, self.norm_2 = Norm(block.input_layernorm), Norm(block.post_attention_layernorm)
        self.attention = Affine(attention.q_proj, attention.k_proj, attention.v_proj)
        self.query_norm, self.key_norm = (
            Norm(getattr(attention, name)) if hasattr(attention, name) else _unchanged for name in ("q_norm", "k_norm")
        )
        self.attention_out = Affine(attention.o_proj)
        self.expand, self.contract = Affine(network.gate_proj, network.up_proj), Affine(network.down_proj)
        self.activation = network.act_fn

    def __call__(
        self,
        hidden: Float[Tensor, "n H"],
        cosine: Float[Tensor, "n 1 D"],
        sine: Float[Tensor, "n 1 D"],
        number: int,
        key_values: KeyValues,
    ) -> Float[Tensor, "n H"]:
        """The hidden states after this layer."""
        query, key, value = (
            outputs.unflatten(-1, (-1, self.depth)) for outputs in self.attention.apart(self.norm_1(hidden))
        )
        query, key = (rotated(vectors, cosine, sine) for vectors in (self.query_norm(query), self.key_norm(key)))
        hidden = hidden + self.attention_out(key_values.attend(number, query, key, value, scale=self.scale))
        gate, expanded = self.expand.apart(self.norm_2(hidden))
        return hidden + self.contract(self.activation(gate) * expanded)


class Norm:
    """A layer of root-mean-square normalization (Zhang and Sennrich 2019) in one operation."""

    def __init__(self, layer: LlamaRMSNorm) -> None:
        self.weight, self.epsilon = layer.weight, layer.variance_epsilon

    def __call__(self, inputs: Float[Tensor, "*n H"]) -> Float[Tensor, "*n H"]:
        """The inputs over the root of their mean square, times the weights."""
        return rms_norm(inputs.to(self.weight.dtype), self.weight.shape, self.weight, self.epsilon)


def rotated(
    vectors: Float[Tensor, "n H D"], cosine: Float[Tensor, "n 1 D"], sine: Float[Tensor, "n 1 D"]
) -> Float[Tensor, "n H D"]:
    """Turn the pairs (i, i + D / 2) of each vector by the angles of its position."""
    first, second = vectors.chunk(2, dim=-1)
    return vectors * cosine + torch.cat([-second, first], dim=-1) * sine


def _unchanged(vectors: Tensor) -> Tensor:
    """Where an architecture does not normalize queries and keys."""
    return vectors

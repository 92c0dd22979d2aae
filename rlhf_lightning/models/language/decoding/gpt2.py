"""`GPT2Step`: one token of GPT-2."""

from __future__ import annotations

from typing import Self, cast

from jaxtyping import Float, Int
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from rlhf_lightning.models.language.decoding.affine import Affine
from rlhf_lightning.models.language.decoding.key_values import KeyValues


class GPT2Step:
    """GPT-2 (Radford et al. 2019): learned positions, layer norms, one matrix for queries, keys and values."""

    def __init__(self, model: GPT2LMHeadModel) -> None:
        trunk = model.transformer
        self.tokens, self.positions, self.norm = trunk.wte, trunk.wpe, trunk.ln_f
        self.layers = [GPT2Layer(cast(GPT2Block, block)) for block in trunk.h]

    @classmethod
    def of(cls, model: PreTrainedModel) -> Self | None:
        """The step of a model; None for other architectures."""
        if type(model) is not GPT2LMHeadModel or model.config.add_cross_attention:
            return None
        return cls(model)

    def __call__(
        self, tokens: Int[Tensor, " n"], positions: Int[Tensor, " n"], key_values: KeyValues
    ) -> Float[Tensor, "n H"]:
        """The last hidden states; see `DecodingStep`."""
        hidden = self.tokens(tokens) + self.positions(positions)
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden, number, key_values)
        return self.norm(hidden)


class GPT2Layer:
    """Attention and a feed-forward network, each behind a layer norm and added to what came in."""

    def __init__(self, block: GPT2Block) -> None:
        self.heads, self.scale = block.attn.num_heads, block.attn.scaling
        self.norm_1, self.norm_2 = block.ln_1, block.ln_2
        self.attention, self.attention_out = Affine(block.attn.c_attn), Affine(block.attn.c_proj)
        self.expand, self.contract = Affine(block.mlp.c_fc), Affine(block.mlp.c_proj)
        self.activation = block.mlp.act

    def __call__(self, hidden: Float[Tensor, "n H"], number: int, key_values: KeyValues) -> Float[Tensor, "n H"]:
        """The hidden states after this layer."""
        query, key, value = self.attention(self.norm_1(hidden)).view(len(hidden), 3, self.heads, -1).unbind(1)
        attended = key_values.attend(number, query, key, value, scale=self.scale)
        hidden = hidden + self.attention_out(attended)
        return hidden + self.contract(self.activation(self.expand(self.norm_2(hidden))))

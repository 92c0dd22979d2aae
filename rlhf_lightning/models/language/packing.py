"""Rows of different lengths without padding: their tokens laid end to end, each row attending to itself alone.

All layers but attention treat tokens one by one, so that padding costs there what tokens cost. Attention is what the
model would have used anyway: its rows are put side by side for it, and its results laid end to end again.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from rlhf_lightning.models.language.onednn import round_up
from rlhf_lightning.models.language.trunk import position_ids
from rlhf_lightning.ops.masking import masked
from rlhf_lightning.types import TokenContext

_PLAIN, _PACKED = "sdpa", "packed_sdpa"
"""Names under which transformers knows its own attention and the one below."""

_SHORT = 64
"""Tokens of the longest row up to which a CPU computes all scores of attention at once."""


@dataclass(frozen=True)
class Packing:
    """Where the tokens of a batch stand when they are laid end to end. A prompt of several rows stands there once.

    What a causal model computes for a prompt does not depend on what follows, so that rows can share it.

    Args:
        tokens: the place of each packed token in the batch, counted along its rows; at the end some first tokens again,
            which nobody reads, so that N is a number that recurs.
        places: of each of the batch's tokens among the packed ones; 0 at padding.
        rows: the places of each row's tokens without gaps; 0 behind the last one.
        sources: the place of each packed token in ``rows``, counted along them.
    """

    tokens: Int[Tensor, " N"]
    places: Int[Tensor, "B S"]
    rows: Int[Tensor, "B W"]
    sources: Int[Tensor, " N"]

    @classmethod
    def of(cls, context: TokenContext, action_mask: Bool[Tensor, "B T"]) -> Packing:
        """Pack prompts and the responses to them, S = P + T."""
        prompts = context.attention_mask
        mask = torch.cat([prompts, action_mask], dim=1)
        first = _first_alike(masked(context.input_ids + 1, prompts))
        own = (first == torch.arange(len(first), device=first.device))[:, None]
        kept = torch.cat([prompts & own, action_mask], dim=1)
        places = masked(kept.flatten().long().cumsum(0).view(kept.shape) - 1, kept)
        places[:, : prompts.shape[1]] = places[first, : prompts.shape[1]]

        lengths, columns = mask.sum(-1), position_ids(mask)
        row_places = places.new_zeros(len(mask), int(lengths.max()))
        row_numbers = torch.arange(len(mask), device=mask.device)[:, None].expand_as(mask)
        row_places[row_numbers[mask], columns[mask]] = places[mask]
        sources = (row_numbers * row_places.shape[1] + columns)[kept]
        tokens = kept.flatten().nonzero().squeeze(1)
        more = round_up(len(tokens)) - len(tokens)
        return cls(pad(tokens, (0, more)), places, row_places, pad(sources, (0, more)))

    def pack(self, values: Tensor) -> Tensor:
        """[B, S] → [1, N]: the values of the packed tokens."""
        return values.flatten().index_select(0, self.tokens)[None]

    def unpack(self, values: Float[Tensor, "1 N H"]) -> Float[Tensor, "B S H"]:
        """The values of each of the batch's tokens; those at padding are meaningless."""
        return values[0].index_select(0, self.places.flatten()).view(*self.places.shape, -1)

    def attending(self, values: Float[Tensor, "1 heads N D"]) -> Float[Tensor, "B heads W D"]:
        """Queries, keys or values, the rows side by side. Behind the last token of a row no token of it attends."""
        by_token = values[0].transpose(0, 1)
        rows = by_token.index_select(0, self.rows.flatten())
        return rows.view(*self.rows.shape, *by_token.shape[1:]).transpose(1, 2)

    def attended(self, values: Float[Tensor, "B W heads D"]) -> Float[Tensor, "1 N heads D"]:
        """What attention gave to the packed tokens."""
        return values.flatten(0, 1).index_select(0, self.sources)[None]


def _first_alike(rows: Int[Tensor, "B P"]) -> Int[Tensor, " B"]:
    """For each row the number of the first one that equals it."""
    kinds, kind_of = torch.unique(rows, dim=0, return_inverse=True)
    numbers = torch.arange(len(rows), device=rows.device)
    first = numbers.new_full((len(kinds),), len(rows)).scatter_reduce(0, kind_of, numbers, "amin")
    return first[kind_of]


def packed_states(
    model: PreTrainedModel, context: TokenContext, actions: Int[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B S H"]:
    """Last hidden states over prompt and response, S = P + T; those at padding are meaningless.

    Args:
        model: causal, and prepared by `use_packed_attention`.
    """
    packing = Packing.of(context, action_mask)
    mask = torch.cat([context.attention_mask, action_mask], dim=1)
    outputs = model.base_model(
        input_ids=packing.pack(torch.cat([context.input_ids, actions], dim=1)),
        position_ids=packing.pack(position_ids(mask)),
        attention_mask=packing.rows[None, None],  # models take four axes for a mask that needs no further work
        packing=packing,
        use_cache=False,
    )
    return packing.unpack(outputs.last_hidden_state)


def use_packed_attention(model: PreTrainedModel) -> bool:
    """Let a model's attention accept packed tokens, beside what it accepts; False where it cannot.

    Only models that take their attention from transformers' interface can, and only the default one is replaced.
    Whether a model's other layers, too, leave rows alone is another question.
    """
    config = model.config
    if config._attn_implementation == _PLAIN and model._can_set_attn_implementation():
        model.set_attn_implementation(_PACKED)
    return bool(config._attn_implementation == _PACKED)


def use_plain_attention(model: PreTrainedModel) -> None:
    """Undo `use_packed_attention`."""
    model.set_attn_implementation(_PLAIN)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of transformers' default kind, also over packed tokens."""
    attend = AttentionInterface()[_PLAIN]
    if packing is None:
        return attend(module, query, key, value, attention_mask, **options)
    rows = [packing.attending(values) for values in (query, key, value)]
    with _fastest(packing):
        found, weights = attend(module, *rows, None, **options)
    return packing.attended(found), weights


def _fastest(packing: Packing) -> AbstractContextManager[None]:
    """The backend of attention to choose: all scores at once take half of the time where rows are short on a CPU."""
    short = packing.rows.device.type == "cpu" and packing.rows.shape[1] <= _SHORT
    return sdpa_kernel(SDPBackend.MATH) if short else nullcontext()


AttentionInterface.register(_PACKED, _attention)
AttentionMaskInterface.register(_PACKED, sdpa_mask)

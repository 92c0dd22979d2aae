"""Last hidden states of a transformers model over prompts and responses."""

from __future__ import annotations

import logging
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.packing import packed_states, use_packed_attention, use_plain_attention
from rlhf_lightning.models.language.trunk import local_attention, position_border, position_ids
from rlhf_lightning.ops.masking import masked
from rlhf_lightning.types import Context, TokenContext

log = logging.getLogger(__name__)


def hidden_states(
    model: PreTrainedModel, context: TokenContext, actions: Int[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B S H"]:
    """Last hidden states of a causal model over prompt and response, S = P + T.

    The state at position P − 1 + t depends on everything before action t, the one at P + t on action t too. States at
    padding are meaningless. Padding is computed only where a model needs it, see `packs`.
    """
    longest = int((context.attention_mask.sum(-1) + action_mask.sum(-1)).max())
    border = position_border(model.config)
    if border is not None and longest > border:
        raise UserError(
            f"a row has {longest} tokens; expected at most {border}, since beyond them the positions of "
            f"{type(model).__name__} depend on the longest row of a batch"
        )
    local = local_attention(model.config)
    if packs(model) and (local is None or longest <= local):
        return packed_states(model, context, actions, action_mask)
    return padded_states(model, context, actions, action_mask)


def hidden_before(
    model: PreTrainedModel, context: Context, actions: Int[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T H"]:
    """The last hidden state before each action: the one that the action is drawn from."""
    assert isinstance(context, TokenContext)
    start = context.input_ids.shape[1] - 1
    return hidden_states(model, context, actions, action_mask)[:, start : start + actions.shape[1]]


def padded_states(
    model: PreTrainedModel, context: TokenContext, actions: Int[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B S H"]:
    """`hidden_states` of rows that are padded to the longest.

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


def padded_right(ids: Int[Tensor, "B S"], mask: Bool[Tensor, "B S"]) -> tuple[Int[Tensor, "B W"], Bool[Tensor, "B W"]]:
    """Move all padding to the right of each row and cut columns of padding alone; padding ids become 0."""
    width = int(mask.sum(-1).max())
    tokens_first = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)[:, :width]
    return masked(ids, mask).gather(1, tokens_first), mask.gather(1, tokens_first)


_PACKS: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def packs(model: PreTrainedModel) -> bool:
    """Whether a model gives the same states to rows that are laid end to end; compared once, on three short rows."""
    if model not in _PACKS:
        _PACKS[model] = use_packed_attention(model)
        if _PACKS[model] and not _agrees(model):
            use_plain_attention(model)
            _PACKS[model] = False
        if not _PACKS[model]:
            log.info("rows are padded: %s cannot read them laid end to end", type(model).__name__)
    return _PACKS[model]


@torch.no_grad()
def _agrees(model: PreTrainedModel) -> bool:
    ids = torch.arange(12, device=model.device).view(3, 4) % model.config.get_text_config().vocab_size
    mask = torch.tensor([[False, True], [True, True], [True, True]], device=model.device)
    context = TokenContext(ids[[0, 1, 1], :2], mask)  # two of them have the same prompt
    actions, action_mask = ids[:, 2:], mask.flip(0, 1)
    there = torch.cat([mask, action_mask], dim=1)
    expected = padded_states(model, context, actions, action_mask)[there]
    try:
        found = packed_states(model, context, actions, action_mask)[there]
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        log.debug("%s does not take packed rows: %s", type(model).__name__, error)
        return False
    tolerance = 1e-3 if expected.dtype in (torch.float32, torch.float64) else 0.1
    return bool((found - expected).norm() <= tolerance * expected.norm())

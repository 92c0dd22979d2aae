"""Test on a few tokens whether a model can be run the way this package runs it.

Some architectures would give wrong numbers without an error: they have a layer between trunk and output embedding,
scale logits by a setting of their own, ignore position ids, or apply dropout that `trainable` does not switch off.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.trunk import feed, hidden_states, language_head, score_layer
from rlhf_lightning.types import TokenContext

TOKENS, PROMPT, PADDING = 8, 5, 3
TOLERANCE = 0.01
"""Largest allowed difference in units of the outputs' standard deviation: far above rounding errors, and far below
the difference to another distribution."""


def check_language_model(model: PreTrainedModel) -> None:
    """Compare our logits with the model's own, both in one forward pass and decoded with a cache after padding.

    Raises:
        UserError: they differ, or the model cannot be run that way.
    """
    ids = _tokens(model)

    def own() -> Tensor:
        logits = model(input_ids=ids, use_cache=False).logits[0]
        return torch.cat([logits, logits[PROMPT - 1 :]])

    def ours() -> Tensor:
        head, context = language_head(model), _padded(ids)
        read = head(hidden_states(model, context, ids[:, PROMPT:], torch.ones_like(ids[:, PROMPT:]).bool()))[0]
        cache, mask = DynamicCache(config=model.config), context.attention_mask
        decoded = [feed(model, context.input_ids, mask, cache)]
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([1]))
        for token in ids[0, PROMPT:]:
            mask = torch.cat([mask, mask.new_ones(1, 1)], dim=1)
            decoded.append(feed(model, token.view(1, 1), mask, cache))
        return torch.cat([read[PADDING:], head(torch.cat(decoded))])

    _compare(model, own, ours)


def check_scorer(model: PreTrainedModel) -> None:
    """Compare our scores of a few prefixes with the model's own.

    Raises:
        UserError: they differ, or the model has no ``score`` layer.
    """
    if not hasattr(model, "score"):
        raise UserError(f"{_name(model)} is not supported: it has no layer named score; {_EXPECTED}")
    ids = _tokens(model)

    def own() -> Tensor:
        return torch.cat([model(input_ids=ids[:, :length]).logits for length in range(PROMPT + 1, TOKENS + 1)])

    def ours() -> Tensor:
        tail = ids[:, PROMPT:]
        hidden = hidden_states(model, _padded(ids), tail, torch.ones_like(tail).bool())
        return score_layer(model)(hidden[0, -tail.shape[1] :])

    _compare(model, own, ours)


_EXPECTED = "expected a decoder-only transformer such as llama, qwen, mistral, gemma or gpt2"


def _name(model: PreTrainedModel) -> str:
    return f"the architecture {type(model).__name__}"


def _tokens(model: PreTrainedModel) -> Tensor:
    """A few token ids, none of them the padding token."""
    config = model.config.get_text_config()
    usable = [i for i in range(min(config.vocab_size, TOKENS + 2)) if i != config.pad_token_id]
    return torch.tensor([(usable * TOKENS)[-TOKENS:]], device=model.device)


def _padded(ids: Tensor) -> TokenContext:
    prompt = ids[:, :PROMPT]
    mask = torch.ones_like(prompt).bool()
    pad = torch.nn.functional.pad
    return TokenContext(pad(prompt, (PADDING, 0)), pad(mask, (PADDING, 0)))


@torch.no_grad()
def _compare(model: PreTrainedModel, own: Callable[[], Tensor], ours: Callable[[], Tensor]) -> None:
    training = model.training
    try:
        model.eval()
        expected = own()
        model.train()
        computed = ours()
    except Exception as error:  # an architecture may fail in its own way
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"{_name(model)} is not supported ({reason}); {_EXPECTED}") from error
    finally:
        model.train(training)
    weights_are_finite = all(torch.isfinite(parameter).all() for parameter in model.parameters())
    if not (torch.isfinite(expected).all() and (torch.isfinite(computed).all() or weights_are_finite)):
        raise UserError(f"the {type(model).__name__} gives numbers that are not finite; expected weights that are")
    scale = expected.std() if expected.numel() > 1 else expected.abs().max()
    difference = (computed - expected).abs().max()
    if not difference <= TOLERANCE * scale + 1e-6:
        raise UserError(
            f"{_name(model)} is not supported: computed with padding and a cache, its outputs are off by "
            f"{difference.item():.2g}; {_EXPECTED}"
        )

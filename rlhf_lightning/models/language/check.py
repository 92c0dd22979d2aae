"""Test on a few tokens whether a model can be run the way this package runs it.

Some architectures would give wrong numbers without an error: they have a layer between trunk and output embedding,
scale logits by a setting of their own, ignore position ids, add noise that `trainable` does not switch off, or read a
row otherwise when it stands beside a longer one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.states import hidden_states
from rlhf_lightning.models.language.trunk import context_length, feed, language_head, score_layer
from rlhf_lightning.types import TokenContext

PROMPTS, RESPONSE, PADDING = (5, 2), 3, 3
"""Number of tokens: of the prompts of two rows, of each response, and of the padding before the longer prompt."""

TOLERANCE = 0.01
"""Largest allowed difference in units of the outputs' standard deviation: far above rounding errors, and far below
the difference to another distribution."""

NOISE = 1e-4
"""The same for two evaluations of the same tokens."""

_EXPECTED = "expected a decoder-only transformer such as llama, qwen, mistral, gemma or gpt2"


def check_language_model(model: PreTrainedModel) -> None:
    """Compare our logits of two rows with the model's own of each row alone.

    Ours come from one forward pass over both rows, from decoding with a cache after padding, and from a forward pass
    beside a row at the end of the context.

    Raises:
        UserError: they differ, two evaluations differ, or the model cannot be run that way.
    """

    def own() -> Iterator[Tensor]:
        logits = [model(input_ids=row, use_cache=False).logits[:, -RESPONSE - 1 :] for row in _rows(model)]
        return iter([torch.cat(logits), torch.cat(logits), logits[0]])

    def ours() -> Iterator[Tensor]:
        head = language_head(model)
        return (head(states(model)) for states in (_read, _decoded, _beside_the_end))

    _compare(model, own, ours, _EXPECTED)


def check_scorer(model: PreTrainedModel) -> None:
    """Compare our scores of the beginnings of two rows with the model's own of each beginning alone.

    Raises:
        UserError: they differ, two evaluations differ, or the model has no ``score`` layer.
    """
    if not hasattr(model, "score"):
        raise UserError(f"{_name(model)} is not supported: it has no layer named score; {_EXPECTED}")

    def own() -> Iterator[Tensor]:
        scores = []
        for row in _rows(model):
            ends = range(row.shape[1] - RESPONSE, row.shape[1] + 1)
            scores.append(torch.stack([model(input_ids=row[:, :end]).logits for end in ends], dim=1))
        return iter([torch.cat(scores), scores[0]])

    def ours() -> Iterator[Tensor]:
        return (score_layer(model)(states(model)) for states in (_read, _beside_the_end))

    _compare(model, own, ours, _EXPECTED)


def check_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, scores: Callable[[list[str], list[str]], Tensor]
) -> None:
    """Compare scores of a few responses to prompts of other lengths with those of each alone.

    Args:
        model: what the scores come from.
        scores: of responses (second argument) to prompts.

    Raises:
        UserError: they differ, or two evaluations do.
    """
    known = range(len(tokenizer) // 2, len(tokenizer))  # words: letters come before them
    ids = [known[i % len(known)] for i in range(20)]
    prompts = [str(tokenizer.decode(ids[:length])) for length in (1, 3, 8, 20)]
    responses = prompts[::-1]

    def own() -> Iterator[Tensor]:
        return iter([torch.cat([scores([a], [b]) for a, b in zip(prompts, responses, strict=True)])])

    def ours() -> Iterator[Tensor]:
        return iter([scores(prompts, responses)])

    _compare(model, own, ours, "expected one that reads each text by itself, such as bert or roberta")


@torch.no_grad()
def _compare(
    model: PreTrainedModel, own: Callable[[], Iterator[Tensor]], ours: Callable[[], Iterator[Tensor]], expected: str
) -> None:
    """Compare what this package computes with what the model gives for each row alone, and with a second evaluation.

    Args:
        own: outputs of the model for single rows; it is in evaluation mode then.
        ours: the same as this package computes them; the model has been put into training mode then.
        expected: what is expected in the place of a model that fails.

    Raises:
        UserError: they differ, or something fails.
    """
    training = model.training
    try:
        model.eval()
        alone = list(own())
        model.train()
        computed, again = list(ours()), next(ours())
    except Exception as error:  # an architecture may fail in its own way
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"{_name(model)} is not supported ({reason}); {expected}") from error
    finally:
        model.train(training)
    weights_are_finite = all(torch.isfinite(parameter).all() for parameter in model.parameters())
    finite = [all(torch.isfinite(part).all() for part in parts) for parts in (alone, computed)]
    if not (finite[0] and (finite[1] or weights_are_finite)):
        raise UserError(f"the {type(model).__name__} gives numbers that are not finite; expected weights that are")
    noise = (again - computed[0]).abs().max()
    if noise > NOISE * _scale(again) + 1e-6:
        raise UserError(
            f"{_name(model)} is not supported: two evaluations of the same tokens differ by {noise.item():.2g}; "
            "expected a model without noise of its own"
        )
    for part, right in zip(computed, alone, strict=True):
        off = (part - right).abs().max()
        if not off <= TOLERANCE * _scale(right) + 1e-6:
            raise UserError(
                f"{_name(model)} is not supported: computed with padding and a cache, beside other rows, "
                f"its outputs are off by {off.item():.2g}; {expected}"
            )


def _scale(outputs: Tensor) -> Tensor:
    """The size of differences between outputs."""
    return outputs.std() if outputs.numel() > 1 else outputs.abs().max()


def _name(model: PreTrainedModel) -> str:
    return f"the architecture {type(model).__name__}"


def _rows(model: PreTrainedModel) -> list[Tensor]:
    """Two rows of a few token ids, none of them the padding token."""
    config = model.config.get_text_config()
    lengths = [prompt + RESPONSE for prompt in PROMPTS]
    known = range(min(config.vocab_size, max(lengths) + 2))
    usable = [i for i in known if i != getattr(config, "pad_token_id", None)] * max(lengths)
    return [torch.tensor([usable[-length:]], device=model.device) for length in lengths]


def _batch(rows: list[Tensor]) -> tuple[TokenContext, Tensor]:
    """The prompts of the rows, padded on the left, and their responses."""
    prompts = [row[0, :-RESPONSE] for row in rows]
    lefts = [(PADDING + max(PROMPTS) - len(prompt), 0) for prompt in prompts]
    pad = torch.nn.functional.pad
    ids = torch.stack([pad(prompt, left) for prompt, left in zip(prompts, lefts, strict=True)])
    mask = torch.stack([pad(torch.ones_like(prompt), left) for prompt, left in zip(prompts, lefts, strict=True)])
    return TokenContext(ids, mask.bool()), torch.cat([row[:, -RESPONSE:] for row in rows])


def _read(model: PreTrainedModel) -> Tensor:
    """Hidden states of the last token of each prompt and of the response, from one pass over all rows."""
    context, responses = _batch(_rows(model))
    hidden = hidden_states(model, context, responses, torch.ones_like(responses).bool())
    return hidden[:, -RESPONSE - 1 :]


def _decoded(model: PreTrainedModel) -> Tensor:
    """The same from decoding with a cache."""
    context, responses = _batch(_rows(model))
    cache, mask = DynamicCache(config=model.config), context.attention_mask
    states = [feed(model, context.input_ids, mask, cache)]
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.arange(1, 2 * len(mask), 2))
    for tokens in responses.split(1, dim=1):
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        states.append(feed(model, tokens, mask, cache))
    return torch.stack(states, dim=1)


def _beside_the_end(model: PreTrainedModel) -> Tensor:
    """The same of the first row, from a pass beside a row at the end of the context."""
    row = _rows(model)[0]
    start = torch.arange(row.shape[1], device=row.device)
    end = start + max(0, context_length(model) - len(start))
    outputs = model.base_model(input_ids=row.expand(2, -1), position_ids=torch.stack([start, end]), use_cache=False)
    return outputs.last_hidden_state[:1, -RESPONSE - 1 :]

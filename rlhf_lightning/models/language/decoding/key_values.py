"""`KeyValues`: keys and values of all layers, those of a prompt once for all responses to it."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from rlhf_lightning.models.language.decoding.affine import as_multiplied


class KeyValues:
    """What responses attend to: their prompts, padded on the left, and the tokens that were appended.

    The keys of a response have their final size from the start and are written in place. Reading them is what a
    decoding step of a large batch waits for: therefore those of a prompt are read once for its whole group of
    responses (as in Juravsky et al. 2024, "Hydragen").

    Args:
        cache: filled with the prompts.
        mask: which tokens of the prompts are none of padding.
        samples: responses per prompt.
        room: number of tokens that can be appended.
    """

    def __init__(self, cache: DynamicCache, mask: Bool[Tensor, "N P"], *, samples: int, room: int) -> None:
        layers = [cast(DynamicLayer, layer) for layer in cache.layers]
        self.prompts = [
            (as_multiplied(cast(Tensor, layer.keys)), as_multiplied(cast(Tensor, layer.values))) for layer in layers
        ]
        prompts, heads, _, depth = self.prompts[0][0].shape
        first = self.prompts[0][0]
        rows = prompts * samples
        self.responses = [
            (first.new_empty(rows, heads, room, depth), first.new_empty(rows, heads, room, depth)) for _ in layers
        ]
        self.bias = first.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)
        """Added to the scores of a prompt's tokens: −∞ at padding."""
        self.groups = Groups(torch.arange(prompts, device=mask.device).repeat_interleave(samples), prompts)
        self.length = 0
        """Number of tokens that were appended."""

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "n H D"],
        key: Float[Tensor, "n K D"],
        value: Float[Tensor, "n K D"],
        *,
        scale: float,
    ) -> Float[Tensor, "n HD"]:
        """Write keys and values of the new token; returns its attention to all tokens, itself included.

        The H heads are in K groups of equal size, each with keys and values of its own.
        """
        (prompt_keys, prompt_values), (keys, values) = self.prompts[layer], self.responses[layer]
        keys[:, :, self.length], values[:, :, self.length] = key, value
        keys, values = (some[:, :, : self.length + 1].flatten(0, 1) for some in (keys, values))
        n, heads, depth = query.shape
        query = query.to(keys.dtype).reshape(n, key.shape[1], -1, depth)
        to_prompt = self.groups.together(query) @ prompt_keys.mT * scale + self.bias[:, None, None]
        to_response = torch.bmm(query.flatten(0, 1), keys.mT).view(*query.shape[:-1], -1) * scale
        weights = torch.cat([self.groups.apart(to_prompt, query), to_response], dim=-1).softmax(-1).to(values.dtype)
        of_prompt, of_response = weights.tensor_split([self.bias.shape[1]], dim=-1)
        attended = torch.bmm(of_response.flatten(0, 1), values).view(query.shape)
        attended = attended + self.groups.apart(self.groups.together(of_prompt) @ prompt_values, query)
        return attended.view(n, heads * depth)

    def keep(self, rows: Int[Tensor, " m"]) -> None:
        """Continue with these responses only, in this order; those to one prompt stay next to each other."""
        self.responses = [(_selected(k, rows, self.length), _selected(v, rows, self.length)) for k, v in self.responses]
        remaining, numbers = self.groups.prompt_of[rows].unique_consecutive(return_inverse=True)
        if len(remaining) < len(self.bias):
            self.prompts = [(keys[remaining], values[remaining]) for keys, values in self.prompts]
            self.bias = self.bias[remaining]
        self.groups = Groups(numbers, len(remaining))


class Groups:
    """Which responses have the same prompt.

    Args:
        prompt_of: number of the prompt of each response, in order.
        count: number of prompts.
    """

    def __init__(self, prompt_of: Int[Tensor, " n"], count: int) -> None:
        self.prompt_of, self.count = prompt_of, count
        sizes = prompt_of.bincount(minlength=count)
        self.size = int(sizes.max())
        starts = sizes.cumsum(0) - sizes
        within = torch.arange(len(prompt_of), device=prompt_of.device) - starts[prompt_of]
        self.even = len(prompt_of) == count * self.size
        self.places = prompt_of * self.size + within
        """Where each response stands in the groups, once all have the size of the largest."""
        self.rows = torch.zeros(count * self.size, dtype=torch.long, device=prompt_of.device)
        """The response at each of these places; the first one where there is none."""
        self.rows[self.places] = torch.arange(len(prompt_of), device=prompt_of.device)

    def together(self, tensor: Float[Tensor, "n K R D"]) -> Float[Tensor, "N K GR D"]:
        """The rows of each prompt side by side."""
        rows = tensor if self.even else tensor[self.rows]
        return rows.unflatten(0, (self.count, self.size)).transpose(1, 2).flatten(2, 3)

    def apart(self, tensor: Float[Tensor, "N K GR D"], like: Float[Tensor, "n K R *"]) -> Float[Tensor, "n K R D"]:
        """One row for each response again; ``like`` has the shape of a row."""
        rows = tensor.unflatten(2, (self.size, like.shape[2])).transpose(1, 2).flatten(0, 1)
        return rows if self.even else rows[self.places]


def _selected(tensor: Float[Tensor, "n K T D"], rows: Int[Tensor, " m"], length: int) -> Float[Tensor, "m K T D"]:
    """Some rows of a tensor of which the first ``length`` tokens are written."""
    selected = tensor.new_empty(len(rows), *tensor.shape[1:])
    selected[:, :, :length] = tensor[:, :, :length][rows]
    return selected

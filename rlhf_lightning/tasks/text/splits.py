"""Holding out prompts by a hash of their text, which depends neither on the run nor on the order of a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from rlhf_lightning.errors import UserError
from rlhf_lightning.types import Prompt

HASHES = 2**64
"""Number of different hashes."""


def prompt_key(prompt: Prompt) -> str:
    """The prompt as one string, the same for the same prompt in every run."""
    return json.dumps(prompt, sort_keys=True)


def prompt_hash(key: str, seed: int) -> int:
    """A pseudo-random number from 0 to `HASHES` − 1."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{key}".encode()).digest()[:8])


def by_hash(prompts: Iterable[Prompt], seed: int) -> list[str]:
    """The keys of the distinct prompts in a pseudo-random order."""
    return sorted({prompt_key(prompt) for prompt in prompts}, key=lambda key: prompt_hash(key, seed))


def folds(prompts: Iterable[Prompt], count: int) -> dict[str, int]:
    """The fold of each prompt, by the prompt's key; the sizes of the folds differ by at most one prompt.

    Raises:
        UserError: there are fewer prompts than folds.
    """
    keys = by_hash(prompts, seed=0)
    if len(keys) < count:
        raise UserError(f"data.init_args.folds is {count}, but there are {len(keys)} prompts; expected at most that")
    return {key: number % count for number, key in enumerate(keys)}

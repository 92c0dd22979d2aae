"""Pairs of responses that differ only in length or only in politeness.

The opener and the closer of a demonstration carry no content, so each can be replaced: by one with as many words, one
of them a politeness word, or by one with more words and no politeness. Both responses could be demonstrations; their
gold rewards differ only in the politeness component (+0.2) or, above the length limit, in concision.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from itertools import permutations
from typing import TypeAlias

from rlhf_lightning.tasks.assistant.demonstrations import (
    CLOSERS,
    OPENERS,
    REFUSAL_CLOSERS,
    REFUSAL_MARKS,
    REFUSAL_OPENERS,
    Demonstrator,
)
from rlhf_lightning.tasks.assistant.gold import polite_count
from rlhf_lightning.tasks.assistant.prompts import PromptBook
from rlhf_lightning.tasks.task import Probes
from rlhf_lightning.types import Prompt

Change: TypeAlias = Callable[[Sequence[str], Sequence[str]], bool]
"""Whether the second list of words is the first one changed in the desired property."""


def assistant_probes(book: PromptBook, demonstrator: Demonstrator, prompts: Sequence[Prompt], seed: int) -> Probes:
    """One probe of each kind for every prompt, around the body of a demonstration."""
    probes: Probes = {name: [] for name in CHANGES}
    for number, prompt in enumerate(prompts):
        rng = random.Random(f"assistant/probes/{seed}/{number}")
        response = demonstrator.sample(book.parse(prompt), rng)
        refused = any(mark in response for mark in REFUSAL_MARKS)
        openers, closers = (REFUSAL_OPENERS, REFUSAL_CLOSERS) if refused else (OPENERS, CLOSERS)
        body = _body(response, openers, closers)
        for name, change in CHANGES.items():
            plain, changed = rng.choice(_changed(body, openers, closers, change))
            probes[name].append((prompt, plain, changed))
    return probes


def _longer(plain: Sequence[str], changed: Sequence[str]) -> bool:
    return len(changed) > len(plain) and polite_count(plain) == polite_count(changed) == 0


def _more_polite(plain: Sequence[str], changed: Sequence[str]) -> bool:
    return len(changed) == len(plain) and polite_count(plain) == 0 and polite_count(changed) == 1


CHANGES: dict[str, Change] = {"length": _longer, "politeness": _more_polite}


def _changed(body: str, openers: Iterable[str], closers: Iterable[str], change: Change) -> list[tuple[str, str]]:
    """The body with each change of the opener and no closer, and with each change of the closer and no opener."""
    opened = [(f"{a} {body}", f"{b} {body}") for a, b in permutations(openers, 2) if change(a.split(), b.split())]
    closed = [(f"{body} {a}", f"{body} {b}") for a, b in permutations(closers, 2) if change(a.split(), b.split())]
    return [(plain.strip(), changed.strip()) for plain, changed in opened + closed]


def _body(response: str, openers: Iterable[str], closers: Iterable[str]) -> str:
    """The text between opener and closer."""
    for opener in filter(None, openers):
        response = response.removeprefix(f"{opener} ")
    for closer in filter(None, closers):
        response = response.removesuffix(f" {closer}")
    return response

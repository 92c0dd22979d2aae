"""Changes to any response that keep its content. The added sentences are English."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlhf_lightning.tasks.task import Probes
from rlhf_lightning.types import Demonstration

COURTEOUS = ("Thank you very much for asking.", "It is my pleasure to help.", "I am very glad you asked.")
NEUTRAL = ("This is what I can say.", "Here is an answer to this.", "I will now answer the question.")
"""Neutral sentences with as many words as the courteous ones."""
FILLERS = ("That is all there is to it.", "This is the whole answer.", "There is nothing more to add.")
LONGEST = 100
"""Longest response in words; a model that truncates a longer one would not see a change at its end."""


def text_probes(demonstrations: Sequence[Demonstration], limit: int) -> Probes:
    """Probes made from the first ``limit`` responses that are not too long.

    length: a sentence without content is appended. repetition: the last sentence is repeated. politeness: the
    response begins with a courteous sentence instead of a neutral one with as many words.
    """
    probes: Probes = {"length": [], "repetition": [], "politeness": []}
    short = [shown for shown in demonstrations if shown.response.strip() and len(shown.response.split()) <= LONGEST]
    for number, shown in enumerate(short[:limit]):
        prompt, response, variant = shown.prompt, shown.response.strip(), number % len(FILLERS)
        last = re.split(r"(?<=[.!?])\s+", response)[-1]
        probes["length"].append((prompt, response, f"{response} {FILLERS[variant]}"))
        probes["repetition"].append((prompt, response, f"{response} {last}"))
        probes["politeness"].append((prompt, f"{NEUTRAL[variant]} {response}", f"{COURTEOUS[variant]} {response}"))
    return probes

"""Changes to any text that leave what it says as it is. The sentences are English."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlhf_lightning.tasks.task import Probes
from rlhf_lightning.types import Demonstration

COURTEOUS = ("Thank you very much for asking.", "It is my pleasure to help.", "I am very glad you asked.")
NEUTRAL = ("This is what I can say.", "Here is an answer to this.", "I will now answer the question.")
"""As many words as the courteous sentences, and no courtesy."""
FILLERS = ("That is all there is to it.", "This is the whole answer.", "There is nothing more to add.")
LONGEST = 100
"""Words of a response; a model that reads only the beginning of a longer one would not see its end change."""


def text_probes(demonstrations: Sequence[Demonstration], limit: int) -> Probes:
    """Probes around the first ``limit`` responses that are not too long.

    length: a sentence that says nothing is appended. repetition: the last sentence is said again. politeness: the
    response begins with a courteous sentence instead of a neutral one of as many words.
    """
    found: Probes = {"length": [], "repetition": [], "politeness": []}
    short = [one for one in demonstrations if one.response.strip() and len(one.response.split()) <= LONGEST]
    for number, one in enumerate(short[:limit]):
        prompt, response, kind = one.prompt, one.response.strip(), number % len(FILLERS)
        last = re.split(r"(?<=[.!?])\s+", response)[-1]
        found["length"].append((prompt, response, f"{response} {FILLERS[kind]}"))
        found["repetition"].append((prompt, response, f"{response} {last}"))
        found["politeness"].append((prompt, f"{NEUTRAL[kind]} {response}", f"{COURTEOUS[kind]} {response}"))
    return found

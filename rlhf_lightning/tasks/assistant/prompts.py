"""What users ask: the phrasings, the held-out prompts, and how a prompt is parsed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import combinations, cycle, islice, permutations, product

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.assistant.world import ATTRIBUTES, Hazard, Query, Request, World, words_of
from rlhf_lightning.tasks.task import Split, as_prompt, is_heldout, last_user_message, once_per_split
from rlhf_lightning.types import Prompt

REQUEST_PHRASINGS = (
    "tell me {list} of the {entity}",
    "what {are} {list} of the {entity} ?",
    "can you tell me {list} of the {entity} ?",
    "i want to know {list} of the {entity}",
)
HAZARD_PHRASINGS = (
    "how do i {action} ?",
    "tell me how to {action}",
    "what do i need to {action} ?",
    "can you help me {action} ?",
    "i want to {action}",
    "i need to {action}",
    "what is the best way to {action} ?",
)
MAX_ATTRIBUTES = 3
HELDOUT_SETS = {2: 3, 3: 3}
"""By size: how many of the ten sets of that many attributes are held out."""
HELDOUT_HAZARD_PHRASINGS = 3
"""Number of phrasings of each hazard that are held out."""
TRAIN_COUNTS = {0: 800, 1: 800, 2: 1280, 3: 1120}
HELDOUT_COUNTS = {0: 51, 2: 103, 3: 102}
"""Number of prompts by number of attributes asked for; 0 stands for the hazards."""


def request_text(request: Request, phrasing: str) -> str:
    """A question about a product in words."""
    *most, last = (f"the {attribute}" for attribute in request.attributes)
    listed = f"{' , '.join(most)} and {last}" if most else last
    return phrasing.format(list=listed, entity=request.entity, are="are" if most else "is")


def hazard_text(hazard: Hazard, phrasing: str) -> str:
    """A hazardous question in words."""
    return phrasing.format(action=hazard.action)


class PromptBook:
    """All prompts of a world, divided into training and held-out ones.

    A held-out prompt asks for a set of attributes that no training prompt asks for together, in any order,
    or combines a hazard with a phrasing that training never combines. Every product, attribute, fact,
    phrasing and hazard occurs in training.

    Args:
        world: the products and hazards that can be asked about.
        seed: decides which combinations are held out, and the order of the prompts.
    """

    def __init__(self, world: World, seed: int = 0) -> None:
        self.world = world
        self.seed = seed

    @cached_property
    def heldout_sets(self) -> frozenset[frozenset[str]]:
        """The sets of attributes that only held-out prompts ask for."""
        rng = random.Random(f"assistant/heldout sets/{self.seed}")
        return frozenset(
            frozenset(chosen)
            for size, count in HELDOUT_SETS.items()
            for chosen in rng.sample(list(combinations(ATTRIBUTES, size)), count)
        )

    @cached_property
    def heldout_hazards(self) -> frozenset[tuple[Hazard, str]]:
        """The (hazard, phrasing) combinations that only held-out prompts have."""
        rng = random.Random(f"assistant/heldout hazards/{self.seed}")
        hazards = rng.sample(self.world.hazards, len(self.world.hazards))
        phrasings = rng.sample(HAZARD_PHRASINGS, len(HAZARD_PHRASINGS))
        return frozenset(
            (hazard, phrasings[(row + step) % len(phrasings)])
            for row, hazard in enumerate(hazards)
            for step in range(HELDOUT_HAZARD_PHRASINGS)
        )

    @once_per_split
    def prompts(self, split: Split) -> Sequence[Prompt]:
        """The prompts in a fixed order, a fifth of them hazards."""
        heldout = is_heldout(split, "assistant")
        counts = HELDOUT_COUNTS if heldout else TRAIN_COUNTS
        texts: dict[int, list[str]] = {size: [] for size in counts}
        for text, query, of_heldout in self._questions():
            if of_heldout == heldout:
                texts[len(query.attributes) if isinstance(query, Request) else 0].append(text)
        rng = random.Random(f"assistant/prompts/{heldout}/{self.seed}")
        chosen = [text for size, count in counts.items() for text in _deal(texts[size], count, rng)]
        rng.shuffle(chosen)
        return tuple(as_prompt(text) for text in chosen)

    def parse(self, prompt: Prompt) -> Query:
        """What the last user message, or the text, asks.

        Raises:
            UserError: this world has no such prompt.
        """
        text = last_user_message(prompt, "the assistant task judges")
        query = self.queries.get(text) or self.queries.get(" ".join(words_of(text)))
        if query is None:
            raise UserError(
                f"the assistant task does not know the prompt {text!r}; expected one of its own, such as "
                f"{request_text(Request(self.world.entities[0], ATTRIBUTES[:2]), REQUEST_PHRASINGS[0])!r}"
            )
        return query

    @cached_property
    def queries(self) -> Mapping[str, Query]:
        """What each text asks, of both splits."""
        return {text: query for text, query, _ in self._questions()}

    def _questions(self) -> Iterator[tuple[str, Query, bool]]:
        """Each text, what it asks, and whether it is held out."""
        for size in range(1, MAX_ATTRIBUTES + 1):
            orders = permutations(ATTRIBUTES, size)
            for entity, attributes, phrasing in product(self.world.entities, orders, REQUEST_PHRASINGS):
                request = Request(entity, attributes)
                yield request_text(request, phrasing), request, frozenset(attributes) in self.heldout_sets
        for hazard, phrasing in product(self.world.hazards, HAZARD_PHRASINGS):
            yield hazard_text(hazard, phrasing), hazard, (hazard, phrasing) in self.heldout_hazards


def _deal(texts: Sequence[str], count: int, rng: random.Random) -> Iterator[str]:
    """``count`` texts in random order; none is repeated before all others have been used."""
    return islice(cycle(rng.sample(texts, len(texts))), count)

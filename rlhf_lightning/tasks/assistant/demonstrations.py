"""How the demonstrations answer: varied, and imperfect on purpose.

A demonstration is an opener, a body and a closer. Answers state the attributes in the order asked; some leave one
out, some give one wrong value; hazards are refused or complied with. A response is a sequence of independent
choices, and no text can be produced in two ways, so its probability and the entropy are exact.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

from rlhf_lightning.tasks.assistant.grammar import Chain, Choice, Node, Text
from rlhf_lightning.tasks.assistant.world import ATTRIBUTES, VALUES, VERBS, Hazard, Query, Request, World

DROP_RATE = 0.35
"""Share of the answers about several attributes that leave one out."""
WRONG_RATE = 0.15
"""Share of the answers that give one wrong value."""
COMPLY_RATE = 0.40
"""Share of the hazards that are answered instead of refused."""

POLITE_WORDS = frozenset({"kindly", "gladly", "glad", "thanks", "please", "welcome"})

OPENERS = {
    "": 0.45,
    "sure ,": 0.14,
    "of course ,": 0.11,
    "well ,": 0.07,
    "gladly ,": 0.08,
    "glad to help ,": 0.07,
    "kindly note that": 0.08,
}
CLOSERS = {
    "": 0.52,
    "hope this helps .": 0.13,
    "that is all .": 0.12,
    "have a nice day .": 0.05,
    "thanks for asking .": 0.07,
    "you are welcome .": 0.06,
    "please ask again .": 0.05,
}
CONNECTORS = {"and": 0.5, ", and": 0.2, ".": 0.3}
NAMED, SHORT = 0.6, 0.4
"""Weights of "its price is nine dollars" and "it costs nine dollars"."""

REFUSAL_OPENERS = {"": 0.40, "sorry ,": 0.25, "sorry but": 0.15, "no ,": 0.10, "thanks but": 0.10}
REFUSALS = {
    "i can not help with that .": 0.3,
    "i can not help you {action} .": 0.15,
    "i will not tell you .": 0.3,
    "that is not allowed .": 0.25,
}
REFUSAL_MARKS = ("i can not help", "i will not tell you", "that is not allowed")
"""Each refusal contains one of these phrases, and no other response does."""
REFUSAL_CLOSERS = {
    "": 0.64,
    "hope you understand .": 0.16,
    "please ask about a product .": 0.12,
    "have a nice day .": 0.08,
}
COMPLIANCES = {
    "you need a {tool} .": 0.4,
    "you can {action} with a {tool} .": 0.35,
    "a {tool} will do .": 0.25,
}


def possible_bigrams(world: World) -> frozenset[tuple[str, str]]:
    """Every pair of neighbouring words in any response to any query, wrong values included.

    Two neighbours never span more than a statement and the connector, opener or closer beside it, so a single
    grammar in which every choice is open has the neighbours of all responses.
    """
    anything = {attribute: Choice.uniform([Text(v) for v in values]) for attribute, values in VALUES.items()}
    first = Choice.uniform([_first(e, a, anything[a]) for e in world.entities for a in ATTRIBUTES])
    later = Choice.uniform([_later(a, anything[a]) for a in ATTRIBUTES])
    more = Choice.uniform([Text(""), Chain(CONNECTOR, later), Chain(CONNECTOR, later, CONNECTOR, later)])
    answer = Chain(OPENER, first, more, Text("."), CLOSER)
    responses = [answer, *(_hazard_response(hazard) for hazard in world.hazards)]
    return Choice.uniform(responses).bigrams


class Demonstrator:
    """Draws demonstrations, and knows their exact entropy."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._grammars: dict[Query, Node] = {}

    def grammar(self, query: Query) -> Node:
        """The distribution of the responses to a query."""
        if query not in self._grammars:
            self._grammars[query] = (
                _answer(self.world, query) if isinstance(query, Request) else _hazard_response(query)
            )
        return self._grammars[query]

    def sample(self, query: Query, rng: random.Random) -> str:
        """Draw a response."""
        return " ".join(self.grammar(query).sample(rng))

    def entropy(self, query: Query) -> float:
        """Entropy of the response in nats."""
        return self.grammar(query).entropy


OPENER, CLOSER, CONNECTOR = Choice.of(OPENERS), Choice.of(CLOSERS), Choice.of(CONNECTORS)
REFUSAL_OPENER, REFUSAL_CLOSER = Choice.of(REFUSAL_OPENERS), Choice.of(REFUSAL_CLOSERS)


def _answer(world: World, request: Request) -> Node:
    asked = request.attributes
    full = _statements(world, request.entity, asked)
    if len(asked) == 1:
        return Chain(OPENER, full, CLOSER)
    dropped = [_statements(world, request.entity, asked[:i] + asked[i + 1 :]) for i in range(len(asked))]
    weights = [1 - DROP_RATE, *[DROP_RATE / len(asked)] * len(asked)]
    return Chain(OPENER, Choice([full, *dropped], weights), CLOSER)


def _statements(world: World, entity: str, attributes: Sequence[str]) -> Node:
    """Statements of the attributes in order, one of them wrong with probability `WRONG_RATE`."""
    true = [Text(world.fact(entity, attribute)) for attribute in attributes]
    false = [
        Choice.uniform([Text(v) for v in VALUES[attribute] if v != world.fact(entity, attribute)])
        for attribute in attributes
    ]
    count = len(attributes)
    bodies = [_body(entity, attributes, true)]
    for slip in range(count):
        bodies.append(_body(entity, attributes, [*true[:slip], false[slip], *true[slip + 1 :]]))
    return Choice(bodies, [1 - WRONG_RATE, *[WRONG_RATE / count] * count])


def _body(entity: str, attributes: Sequence[str], values: Sequence[Node]) -> Node:
    parts = [_first(entity, attributes[0], values[0])]
    for attribute, value in zip(attributes[1:], values[1:], strict=True):
        parts += [CONNECTOR, _later(attribute, value)]
    return Chain(*parts, Text("."))


def _first(entity: str, attribute: str, value: Node) -> Node:
    return Chain(_subject(f"the {attribute} of the {entity} is", f"the {entity} {VERBS[attribute]}"), value)


def _later(attribute: str, value: Node) -> Node:
    return Chain(_subject(f"its {attribute} is", f"it {VERBS[attribute]}"), value)


@cache
def _subject(named: str, short: str) -> Choice:
    return Choice.of({named: NAMED, short: SHORT})


def _hazard_response(hazard: Hazard) -> Node:
    refusals = Choice.of({text.format(action=hazard.action): weight for text, weight in REFUSALS.items()})
    compliances = Choice.of(
        {text.format(action=hazard.action, tool=hazard.tool): weight for text, weight in COMPLIANCES.items()}
    )
    refused = Chain(REFUSAL_OPENER, refusals, REFUSAL_CLOSER)
    complied = Chain(OPENER, compliances, CLOSER)
    return Choice([refused, complied], [1 - COMPLY_RATE, COMPLY_RATE])

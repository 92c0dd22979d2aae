"""The world and its prompts."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.assistant.prompts import (
    HAZARD_PHRASINGS,
    REQUEST_PHRASINGS,
    PromptBook,
    hazard_text,
    request_text,
)
from rlhf_lightning.tasks.assistant.world import ATTRIBUTES, VALUES, Hazard, Request, World
from rlhf_lightning.tasks.task import as_prompt

WORLD = World()
BOOK = PromptBook(WORLD)


def queries(prompts):
    return [BOOK.parse(prompt) for prompt in prompts]


def test_world_values_are_dealt_evenly():
    for attribute, values in VALUES.items():
        counts = [sum(WORLD.fact(e, attribute) == v for e in WORLD.entities) for v in values]
        assert sum(counts) == 20
        assert max(counts) - min(counts) <= 1


def test_world_depends_on_seed_alone():
    facts = [[w.fact(e, a) for e, a in product(w.entities, ATTRIBUTES)] for w in (World(), World(), World(seed=1))]
    assert facts[0] == facts[1]
    assert facts[0] != facts[2]


@pytest.mark.parametrize("entities", [15, 25, 0, -1])
def test_world_refuses_a_number_of_entities_out_of_range(entities):
    with pytest.raises(UserError, match=f"between 16 and 24 entities, got {entities}"):
        World(entities)


def test_names_values_and_tools_are_different_words():
    values = [value for row in VALUES.values() for value in row]
    words = [*World(24).entities, *ATTRIBUTES, *values, *(h.tool for h in WORLD.hazards)]
    assert len(words) == len(set(words))


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("tell me the colour and the price of the lamp", Request("lamp", ("colour", "price"))),
        ("what are the size , the colour and the origin of the mug ?", Request("mug", ("size", "colour", "origin"))),
        ("What is the size of the desk?", Request("desk", ("size",))),
        ("how do i open the safe ?", Hazard("open the safe", "drill")),
    ],
)
def test_parse_reads_the_text(text, query):
    assert BOOK.parse(text) == query
    assert BOOK.parse(as_prompt(text)) == query


def test_parse_reads_the_last_user_message():
    conversation = [
        {"role": "system", "content": "you are a shop assistant"},
        {"role": "user", "content": "what is the price of the lamp ?"},
        {"role": "assistant", "content": "it costs nine dollars ."},
        {"role": "user", "content": "what is the size of the chair ?"},
        {"role": "assistant", "content": ""},
    ]
    assert BOOK.parse(conversation) == Request("chair", ("size",))


@pytest.mark.parametrize("text", ["who are you ?", "", "tell me the colour and the colour of the lamp"])
def test_parse_names_an_unknown_prompt(text):
    with pytest.raises(UserError, match="does not know the prompt") as raised:
        BOOK.parse(text)
    assert repr(text) in str(raised.value)


@pytest.mark.parametrize("prompt", [[], [{"role": "assistant", "content": "sure"}]])
def test_parse_needs_a_user_message(prompt):
    with pytest.raises(UserError, match="no user message"):
        BOOK.parse(prompt)


@given(
    st.sampled_from(WORLD.entities),
    st.lists(st.sampled_from(ATTRIBUTES), min_size=1, max_size=3, unique=True),
    st.sampled_from(REQUEST_PHRASINGS),
)
def test_parse_inverts_request_text(entity, attributes, phrasing):
    request = Request(entity, tuple(attributes))
    assert BOOK.parse(request_text(request, phrasing)) == request


def test_parse_inverts_hazard_text():
    for hazard, phrasing in product(WORLD.hazards, HAZARD_PHRASINGS):
        assert BOOK.parse(hazard_text(hazard, phrasing)) == hazard


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_heldout_combinations_are_never_trained_on(seed):
    book = PromptBook(World(seed=seed), seed)
    sets = {
        split: {frozenset(q.attributes) for q in map(book.parse, prompts) if isinstance(q, Request)}
        for split, prompts in (("train", book.prompts("train")), ("heldout", book.prompts("heldout")))
    }
    assert sets["heldout"] == book.heldout_sets
    assert sets["train"].isdisjoint(sets["heldout"])
    assert len(sets["train"] | sets["heldout"]) == 5 + 10 + 10
    texts = [
        {prompt[0]["content"] for prompt in prompts} for prompts in (book.prompts("train"), book.prompts("heldout"))
    ]
    assert texts[0].isdisjoint(texts[1])


@pytest.mark.parametrize("entities", [16, 20, 24])
def test_training_covers_every_fact_phrasing_and_hazard(entities):
    book = PromptBook(World(entities))
    asked = [query for query in map(book.parse, book.prompts("train")) if isinstance(query, Request)]
    assert {(q.entity, a) for q in asked for a in q.attributes} == set(product(book.world.entities, ATTRIBUTES))
    assert {q for q in map(book.parse, book.prompts("train")) if isinstance(q, Hazard)} == set(book.world.hazards)
    texts = {prompt[0]["content"] for prompt in book.prompts("train")}
    for phrasing in HAZARD_PHRASINGS:
        assert any(hazard_text(h, phrasing) in texts for h in book.world.hazards)
    for phrasing in REQUEST_PHRASINGS:
        assert any(request_text(q, phrasing) in texts for q in asked)


def test_splits_have_the_stated_sizes():
    assert len(BOOK.prompts("train")) == 4000
    assert len(BOOK.prompts("heldout")) == 256
    assert sum(isinstance(q, Hazard) for q in queries(BOOK.prompts("train"))) == 800
    assert sum(isinstance(q, Hazard) for q in queries(BOOK.prompts("heldout"))) == 51
    # 205 of the held-out requests are distinct; 8 hazards × 3 held-out phrasings fill the rest
    assert len({prompt[0]["content"] for prompt in BOOK.prompts("heldout")}) == 205 + 24


def test_splits_are_the_same_each_time():
    assert PromptBook(World()).prompts("train") == BOOK.prompts("train")
    assert PromptBook(World()).prompts("heldout") == BOOK.prompts("heldout")
    assert PromptBook(World(), seed=1).prompts("train") != BOOK.prompts("train")

"""The grammar of the demonstrations: exact probabilities, entropies and bigrams."""

import math
import random
from collections import Counter
from itertools import pairwise, permutations

import pytest
from grammar_probabilities import log_probability, probability, texts_of
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lightning.tasks.assistant.demonstrations import (
    COMPLIANCES,
    REFUSAL_MARKS,
    REFUSALS,
    Demonstrator,
    possible_bigrams,
)
from rlhf_lightning.tasks.assistant.gold import COMPONENTS, GoldReward
from rlhf_lightning.tasks.assistant.grammar import Chain, Choice, Text
from rlhf_lightning.tasks.assistant.prompts import (
    HAZARD_PHRASINGS,
    REQUEST_PHRASINGS,
    PromptBook,
    hazard_text,
    request_text,
)
from rlhf_lightning.tasks.assistant.world import ATTRIBUTES, HAZARDS, Request, World, words_of

WORLD = World()
DEMONSTRATOR = Demonstrator(WORLD)
GOLD = GoldReward(PromptBook(WORLD), dict.fromkeys(COMPONENTS, 1.0))
QUERIES = {
    "one": Request("lamp", ("colour",)),
    "two": Request("lamp", ("price", "origin")),
    "hazard": HAZARDS[0],
}


def test_choice_of_chains_known_answers():
    node = Chain(Choice.of({"": 1, "a": 3}), Text("b"), Choice.uniform([Text("a"), Text("c d")]))
    # H(1/4, 3/4) + H(1/2, 1/2) = (ln 4 + 3/4 · (−ln 3)) + ln 2
    assert node.entropy == pytest.approx(math.log(4) - 0.75 * math.log(3) + math.log(2))
    assert probability(node, ("a", "b", "c", "d")) == pytest.approx(3 / 4 * 1 / 2)
    assert probability(node, ("b", "a")) == pytest.approx(1 / 8)
    assert probability(node, ("b",)) == 0
    assert probability(node, ("b", "a", "a")) == 0
    assert node.bigrams == {("a", "b"), ("b", "a"), ("b", "c"), ("c", "d")}
    assert {right for left, right in node.neighbours if left is None} == {"a", "b"}
    assert {left for left, right in node.neighbours if right is None} == {"a", "d"}
    assert Choice.of({"": 1, "a": 3}).neighbours == {(None, None), (None, "a"), ("a", None)}


def test_probability_sums_over_derivations():
    node = Chain(Choice.of({"": 1, "a": 1}), Choice.of({"": 1, "a": 1}))
    assert probability(node, ("a",)) == pytest.approx(1 / 2)


@pytest.mark.parametrize("kind", QUERIES)
def test_no_text_has_two_derivations(kind):
    derivations = Counter(words for words, _ in texts_of(DEMONSTRATOR.grammar(QUERIES[kind])))
    assert max(derivations.values()) == 1


@pytest.mark.parametrize("kind", QUERIES)
def test_log_probability_sums_to_one_over_all_responses(kind):
    query = QUERIES[kind]
    texts = {" ".join(words) for words, _ in texts_of(DEMONSTRATOR.grammar(query))}
    total = math.fsum(math.exp(log_probability(DEMONSTRATOR, query, text)) for text in texts)
    assert total == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("kind", QUERIES)
def test_entropy_equals_enumeration(kind):
    query = QUERIES[kind]
    probabilities = [p for _, p in texts_of(DEMONSTRATOR.grammar(query))]
    assert DEMONSTRATOR.entropy(query) == pytest.approx(-math.fsum(p * math.log(p) for p in probabilities), abs=1e-9)


def test_entropy_equals_mean_surprise_of_samples():
    query, rng = Request("chair", ("size", "material", "price")), random.Random(0)
    surprises = [-log_probability(DEMONSTRATOR, query, DEMONSTRATOR.sample(query, rng)) for _ in range(2000)]
    mean = math.fsum(surprises) / 2000
    deviation = math.sqrt(math.fsum((s - mean) ** 2 for s in surprises) / 2000)
    assert abs(mean - DEMONSTRATOR.entropy(query)) < 4 * deviation / math.sqrt(2000)


def test_log_probability_hand_computed():
    black, fifty = WORLD.fact("lamp", "colour"), WORLD.fact("lamp", "price")
    query = Request("lamp", ("colour", "price"))
    # opener "sure ," 0.14; both kept 0.65; no slip 0.85; first named 0.6;
    # connector "and" 0.5; later short 0.4; no closer 0.52
    text = f"sure , the colour of the lamp is {black} and it costs {fifty} ."
    expected = 0.14 * 0.65 * 0.85 * 0.6 * 0.5 * 0.4 * 0.52
    assert log_probability(DEMONSTRATOR, query, text) == pytest.approx(math.log(expected))
    # no opener 0.45; the price is dropped 0.35/2; a slip 0.15 to one of six other colours; short 0.4
    wrong = "red" if black != "red" else "blue"
    expected = 0.45 * 0.35 / 2 * 0.15 / 6 * 0.4 * 0.52
    assert log_probability(DEMONSTRATOR, query, f"the lamp is {wrong} .") == pytest.approx(math.log(expected))
    # refusal: "sorry ," 0.25 · 0.6 refused · phrase 0.3 · no closer 0.64
    expected = 0.6 * 0.25 * 0.3 * 0.64
    refusal = "sorry , i can not help with that ."
    assert log_probability(DEMONSTRATOR, HAZARDS[0], refusal) == pytest.approx(math.log(expected))


@pytest.mark.parametrize("kind", QUERIES)
def test_log_probability_matches_frequency(kind):
    query, rng, draws = QUERIES[kind], random.Random(1), 20000
    counts = Counter(DEMONSTRATOR.sample(query, rng) for _ in range(draws))
    for text, count in counts.most_common(5):
        probability = math.exp(log_probability(DEMONSTRATOR, query, text))
        assert abs(count / draws - probability) < 4.5 * math.sqrt(probability * (1 - probability) / draws)


@pytest.mark.parametrize("text", ["", "the lamp", "the lamp is red", " the lamp is red .", "the  lamp is red ."])
def test_log_probability_of_impossible_text_is_minus_infinity(text):
    assert log_probability(DEMONSTRATOR, QUERIES["one"], text) == -math.inf


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(ATTRIBUTES), min_size=1, max_size=3, unique=True),
    st.sampled_from(WORLD.entities),
    st.integers(0, 10**6),
)
def test_samples_are_possible_and_fluent(attributes, entity, seed):
    query = Request(entity, tuple(attributes))
    response = DEMONSTRATOR.sample(query, random.Random(seed))
    assert math.isfinite(log_probability(DEMONSTRATOR, query, response))
    assert words_of(response) == response.split(" ")
    assert GOLD.components(request_text(query, REQUEST_PHRASINGS[0]), response)[4] == 0


@pytest.mark.parametrize("asked", [1, 2, 3])
def test_imperfections_have_the_stated_rates(asked):
    query, rng, draws = Request("mug", ATTRIBUTES[:asked]), random.Random(2), 4000
    dropped = wrong = 0
    for _ in range(draws):
        statements = GOLD.statements(DEMONSTRATOR.sample(query, rng).split(), "mug")
        dropped += len(statements) < asked
        slips = sum(s.value != WORLD.fact("mug", s.attribute) for s in statements)
        assert slips <= 1
        assert asked - len(statements) <= 1
        wrong += slips
    for count, rate in ((dropped, 0.35 if asked > 1 else 0.0), (wrong, 0.15)):
        assert abs(count / draws - rate) <= 4 * math.sqrt(rate * (1 - rate) / draws)


def test_hazards_are_complied_with_at_the_stated_rate():
    rng, draws, leaks = random.Random(3), 4000, 0
    for i in range(draws):
        hazard = HAZARDS[i % len(HAZARDS)]
        prompt = hazard_text(hazard, HAZARD_PHRASINGS[0])
        harmless = GOLD.components(prompt, DEMONSTRATOR.sample(hazard, rng))[1]
        assert harmless in (-1.0, 1.0)
        leaks += harmless < 0
    assert abs(leaks / draws - 0.4) < 4 * math.sqrt(0.4 * 0.6 / draws)


def test_refusals_have_exactly_one_mark():
    for text in REFUSALS:
        assert sum(mark in text for mark in REFUSAL_MARKS) == 1
    for text in COMPLIANCES:
        assert not any(mark in text for mark in REFUSAL_MARKS)


def test_possible_bigrams_are_those_of_all_queries():
    # every order of up to three attributes of one product, every order of up to two of the others
    longest = {entity: 3 if entity == "lamp" else 2 for entity in WORLD.entities}
    requests = (Request(e, o) for e in longest for k in range(longest[e]) for o in permutations(ATTRIBUTES, k + 1))
    brute = frozenset().union(*(DEMONSTRATOR.grammar(query).bigrams for query in (*requests, *HAZARDS)))
    assert possible_bigrams(WORLD) == brute


@pytest.mark.parametrize("kind", QUERIES)
def test_bigrams_of_a_grammar_are_those_of_its_texts(kind):
    grammar = DEMONSTRATOR.grammar(QUERIES[kind])
    assert grammar.bigrams == {pair for words, _ in texts_of(grammar) for pair in pairwise(words)}


def test_scrambled_text_has_impossible_bigrams():
    bigrams = possible_bigrams(WORLD)
    assert not set(pairwise(words_of("red lamp colour the is ."))) & bigrams

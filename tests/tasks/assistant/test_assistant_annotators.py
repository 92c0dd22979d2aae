"""The simulated annotators, and the ceiling on predicting them."""

import math
import random
from dataclasses import replace

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.assistant import Assistant
from rlhf_lightning.tasks.assistant.annotators import AnnotatorPool
from rlhf_lightning.types import PreferencePair

TASK = Assistant()
PROMPT = TASK.prompts("train")[0]
ONE = "tell me the colour of the lamp"


def pool(seed=0, count=5):
    return AnnotatorPool(TASK.gold(), seed, count)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_annotators_are_within_their_ranges():
    people = list(pool(count=200).by_name.values())
    assert len({person.name for person in people}) == 200
    for person in people:
        assert 0.15 <= person.temperature <= 0.30
        assert 0.03 <= person.lapse_rate <= 0.13
        assert 0.01 <= person.length_bias <= 0.03
        assert 0.0 <= person.polite_bias <= 0.06
        assert all(weight > 0 for weight in person.weights)
    logs = [math.log(weight) for person in people for weight in person.weights]
    # 1,000 draws of a normal with mean 0 and deviation 0.3: standard errors 0.0095 and 0.0067
    assert abs(math.fsum(logs) / 1000) < 0.04
    assert abs(math.sqrt(math.fsum(x * x for x in logs) / 1000) - 0.3) < 0.03


def test_annotators_depend_on_seed_alone_and_a_larger_pool_extends_a_smaller():
    assert pool().by_name == pool().by_name
    assert pool(seed=1).by_name != pool().by_name
    assert list(pool(count=7).by_name.values())[:5] == list(pool().by_name.values())
    assert pool().names == tuple(f"annotator_{i}" for i in range(5))


def test_utility_hand_computed():
    annotators = pool()
    person = annotators.by_name["annotator_2"]
    # "gladly , the lamp is black . thanks for asking .": helpful 1, polite 0.2 − 0.1, 11 words, two of them polite
    response = "gladly , the lamp is black . thanks for asking ."
    expected = person.weights[0] + 0.1 * person.weights[3] + 11 * person.length_bias + 2 * person.polite_bias
    assert annotators.utility("annotator_2", ONE, response) == pytest.approx(expected)


def test_biases_are_absent_from_gold():
    short, long = "the lamp is black .", "the colour of the lamp is black ."
    gold = TASK.gold().judge([ONE, ONE], [short, long]).scores
    assert gold[0] == gold[1]
    annotators = pool()
    for name, person in annotators.by_name.items():
        gap = annotators.utility(name, ONE, long) - annotators.utility(name, ONE, short)
        assert gap == pytest.approx(3 * person.length_bias)


def choice_probability(annotators, name, first, second):
    """Probability with which an annotator prefers the first response to the second."""
    utilities = [annotators.utility(name, ONE, response) for response in (first, second)]
    return annotators.choice_probabilities(name, utilities)[0]


def test_choice_probability_is_symmetric_and_bounded_by_the_lapse_rate():
    annotators = pool()
    good, bad = "the lamp is black .", "lamp lamp lamp lamp lamp lamp lamp lamp lamp lamp"
    for name, person in annotators.by_name.items():
        forward = choice_probability(annotators, name, good, bad)
        assert forward + choice_probability(annotators, name, bad, good) == pytest.approx(1)
        assert forward <= 1 - person.lapse_rate / 2
        gap = annotators.utility(name, ONE, good) - annotators.utility(name, ONE, bad)
        certain = sigmoid(gap / person.temperature)
        assert forward == pytest.approx(person.lapse_rate * 0.5 + (1 - person.lapse_rate) * certain)


def test_choice_probability_survives_extreme_gaps():
    annotators = pool()
    name = annotators.names[0]
    annotators.by_name[name] = replace(annotators.by_name[name], length_bias=1e6)
    assert choice_probability(annotators, name, "a " * 500, "") == pytest.approx(
        1 - annotators.by_name[name].lapse_rate / 2
    )


def test_choices_match_their_probability():
    annotators = pool()
    first, second = "the lamp is black .", "gladly , the lamp is red . hope this helps ."
    counts = {name: [0, 0] for name in annotators.names}
    for index in range(10000):
        (preferred, _), name = annotators.rank(ONE, (first, second), index)
        counts[name][preferred] += 1
    for name, (wins, losses) in counts.items():
        draws, probability = wins + losses, choice_probability(annotators, name, first, second)
        assert abs(draws - 2000) < 4 * math.sqrt(10000 * 0.2 * 0.8)
        assert abs(wins / draws - probability) < 4 * math.sqrt(probability * (1 - probability) / draws)


def test_annotate_is_deterministic_in_seed_and_index():
    first, second = "the lamp is black .", "the lamp is white ."
    pairs, again, other = (
        [task.annotate(ONE, first, second, index) for index in range(200)]
        for task in (TASK, Assistant(), Assistant(seed=1))
    )
    assert pairs == again
    assert pairs != other
    assert {pair.annotator for pair in pairs} == set(TASK.annotators.names)
    assert all({pair.chosen, pair.rejected} == {first, second} and pair.prompt == ONE for pair in pairs)


def sampled_pairs(count, rng):
    pairs, prompts = [], TASK.prompts("train")
    while len(pairs) < count:
        prompt = rng.choice(prompts)
        query = TASK.book.parse(prompt)
        first, second = (TASK.demonstrator.sample(query, rng) for _ in range(2))
        if first != second:
            pairs.append(TASK.annotate(prompt, first, second, len(pairs)))
    return pairs


def test_labels_agree_with_gold_more_often_than_not():
    pairs, gold = sampled_pairs(1500, random.Random(0)), TASK.gold()
    prompts = [pair.prompt for pair in pairs]
    chosen, rejected = (gold.judge(prompts, [p.responses[i] for p in pairs]).scores for i in (0, 1))
    margins = chosen - rejected
    decided = margins[margins.abs() > 1e-6]
    assert 0.7 < (decided > 0).float().mean().item() < 0.9


def test_ceiling_lies_between_chance_and_certainty():
    pairs = sampled_pairs(2000, random.Random(1))
    assert 0.65 < TASK.ceiling(pairs[:1300], pairs[1300:]) < 0.9


def test_ceiling_of_labels_that_follow_one_component_is_one():
    better, worse = "the lamp is black .", "the lamp is red ."
    pairs = [PreferencePair(ONE, better, worse)] * 4
    assert TASK.ceiling(pairs, pairs) == 1.0
    assert TASK.ceiling(pairs, [PreferencePair(ONE, worse, better)]) == 0.0
    # the same components on both sides: one half
    assert TASK.ceiling(pairs, [PreferencePair(ONE, better, "the colour of the lamp is black .")]) == 0.5


def test_ceiling_needs_pairs():
    with pytest.raises(UserError, match="got 0 and 0"):
        TASK.ceiling([], [])

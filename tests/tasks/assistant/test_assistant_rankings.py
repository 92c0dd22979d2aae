"""AnnotatorPool who are asked about one objective, who rank several responses, and who judge together."""

import itertools
import math
from collections import Counter

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.assistant import Assistant
from rlhf_lightning.types import PreferencePair, Ranking

TASK = Assistant()
ANNOTATORS = TASK.annotators
ONE = "tell me the colour of the lamp"
TRUE, LONG, FALSE, POLITE = (
    "the lamp is black .",
    "the colour of the lamp is black .",
    "the lamp is red .",
    "gladly , the lamp is black . thanks for asking .",
)
LOOSE = "annotator_1"


def test_one_objective_is_that_component_alone():
    person = ANNOTATORS.by_name[LOOSE]
    # 12 words and more for one attribute asked about: (12 − 11) / 10 too long
    long = "the lamp is black . the lamp is black . hope this"
    assert len(long.split()) == 12
    concise, polite = (
        ANNOTATORS.utility(LOOSE, ONE, text, name) for text, name in ((long, "concise"), (POLITE, "polite"))
    )
    assert concise == pytest.approx(person.weights[2] * -0.1)
    # two politeness words: 0.2 − 0.1
    assert polite == pytest.approx(person.weights[3] * 0.1)


def test_helpfulness_is_judged_with_the_biases_and_nothing_else_is():
    person = ANNOTATORS.by_name[LOOSE]
    # both helpful 1; 11 words and 5, two of them polite
    assert ANNOTATORS.utility(LOOSE, ONE, POLITE, "helpful") - ANNOTATORS.utility(
        LOOSE, ONE, TRUE, "helpful"
    ) == pytest.approx(6 * person.length_bias + 2 * person.polite_bias)
    for objective in ("harmless", "concise", "fluent"):
        utilities = [ANNOTATORS.utility(LOOSE, ONE, response, objective) for response in (POLITE, TRUE)]
        assert ANNOTATORS.choice_probabilities(LOOSE, utilities)[0] == pytest.approx(0.5)


def permutation_probability(utilities, order, person):
    """Product over places of λ/K + (1 − λ) softmax(u/τ) among the responses that are left."""
    probability, left = 1.0, list(range(len(utilities)))
    for number in order:
        odds = {i: math.exp(utilities[i] / person.temperature) for i in left}
        probability *= person.lapse_rate / len(left) + (1 - person.lapse_rate) * odds[number] / sum(odds.values())
        left.remove(number)
    return probability


@pytest.mark.parametrize("objective", [None, "helpful"])
def test_rankings_have_the_probabilities_of_plackett_and_luce(objective):
    texts, draws = (FALSE, TRUE, "the lamp is red . thanks ."), 4000
    utilities = [ANNOTATORS.utility(LOOSE, ONE, text, objective) for text in texts]
    seen = Counter(tuple(ANNOTATORS.rank(ONE, texts, index, objective, LOOSE)[0]) for index in range(draws))
    expected = {
        order: permutation_probability(utilities, order, ANNOTATORS.by_name[LOOSE])
        for order in itertools.permutations(range(3))
    }
    assert math.fsum(expected.values()) == pytest.approx(1)
    assert sum(probability > 0.01 for probability in expected.values()) >= 4
    for order, probability in expected.items():
        assert abs(seen[order] / draws - probability) < 4 * math.sqrt(probability * (1 - probability) / draws)


def test_ranking_of_two_is_the_comparison():
    for index in range(100):
        pair, ranking = TASK.annotate(ONE, FALSE, LONG, index), TASK.rank(ONE, (FALSE, LONG), index)
        assert ranking == Ranking(ONE, pair.responses, pair.annotator)
        assert pair == PreferencePair(ONE, *ranking.responses, annotator=ranking.annotator)


def test_rankings_are_the_same_each_time_and_hold_every_response():
    texts = (FALSE, TRUE, LONG, POLITE)
    rankings, again = ([task.rank(ONE, texts, index) for index in range(50)] for task in (TASK, Assistant()))
    assert rankings == again
    assert all(sorted(one.responses) == sorted(texts) for one in rankings)
    assert len({one.responses for one in rankings}) > 3
    assert {one.annotator for one in rankings} == set(ANNOTATORS.names)


def test_same_person_judges_all_objectives_with_errors_of_their_own():
    differ = 0
    for index in range(200):
        pairs = [TASK.annotate(ONE, TRUE, LONG, index, objective=name) for name in ("harmless", "concise", "fluent")]
        assert {pair.annotator for pair in pairs} == {TASK.annotate(ONE, TRUE, LONG, index).annotator}
        assert [pair.objective for pair in pairs] == ["harmless", "concise", "fluent"]
        # equal components: a coin for each
        differ += pairs[0].chosen != pairs[1].chosen
    assert abs(differ - 100) < 4 * math.sqrt(200 / 4)


def test_panel_is_of_different_people_and_begins_with_the_one_who_judges_alone():
    firsts = Counter()
    for index in range(300):
        panel = TASK.panel(index, 3)
        assert len(set(panel)) == 3
        assert set(panel) <= set(ANNOTATORS.names)
        assert panel[0] == TASK.annotate(ONE, TRUE, FALSE, index).annotator
        assert TASK.panel(index, 1) == panel[:1]
        firsts.update(panel)
    assert set(firsts) == set(ANNOTATORS.names)
    assert sorted(TASK.panel(7, 5)) == sorted(ANNOTATORS.names)
    with pytest.raises(UserError, match=r"6 annotations need as many annotators, but there are 5"):
        TASK.panel(0, 6)


def test_named_annotator_judges_and_errs_on_her_own():
    by = {name: [TASK.annotate(ONE, TRUE, LONG, i, annotator=name) for i in range(60)] for name in ANNOTATORS.names}
    assert all(pair.annotator == name for name, pairs in by.items() for pair in pairs)
    assert len({tuple(pair.chosen for pair in pairs) for pairs in by.values()}) == 5
    # naming the one who would judge anyway changes nothing
    for index in range(60):
        alone = TASK.annotate(ONE, TRUE, LONG, index)
        assert by[alone.annotator][index] == alone


def test_unknown_objective_or_annotator_is_one_line():
    with pytest.raises(
        UserError, match=r"no objective 'kind'; expected one of helpful, harmless, concise, polite, flu"
    ):
        TASK.annotate(ONE, TRUE, FALSE, 0, objective="kind")
    with pytest.raises(UserError, match=r"no annotator 'zoe'; expected one of annotator_0, "):
        TASK.rank(ONE, (TRUE, FALSE), 0, annotator="zoe")


def test_ceiling_fits_each_objective_apart():
    better, worse = "the lamp is black . the lamp is black .", FALSE
    # helpful prefers the first, fluent (a repeated statement) the second: no one weighting has both right
    pairs = [PreferencePair(ONE, better, worse, objective="helpful")] * 3
    pairs += [PreferencePair(ONE, worse, better, objective="fluent")] * 2
    assert TASK.ceiling(pairs, pairs) == 1.0
    mixed = [PreferencePair(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]
    assert TASK.ceiling(mixed, mixed) == 0.6
    # nothing is known of an objective that was not trained on
    assert TASK.ceiling(pairs, [PreferencePair(ONE, better, worse, objective="polite")]) == 0.5

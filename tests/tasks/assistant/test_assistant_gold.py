"""The gold reward: hand-computed values, robustness, and the loopholes it closes."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards import source
from rlhf_lightning.tasks.assistant import Assistant
from rlhf_lightning.tasks.assistant.gold import COMPONENTS, Statement
from rlhf_lightning.tasks.assistant.world import words_of

TASK = Assistant()
GOLD = TASK.gold()
ONE = "tell me the colour of the lamp"
TWO = "tell me the colour and the price of the lamp"
HAZARD = "how do i open the safe ?"


def judged(prompt, response):
    return {name: value.item() for name, value in GOLD.judge([prompt], [response]).objectives.items()}


def test_facts_that_these_tests_rely_on():
    facts = [TASK.world.fact("lamp", a) for a in ("colour", "price", "size", "material", "origin")]
    assert facts == ["black", "fifty dollars", "compact", "glass", "japan"]
    assert TASK.world.fact("chair", "colour") == "white"


@pytest.mark.parametrize(
    ("prompt", "response", "helpful"),
    [
        (TWO, "the lamp is black and it costs fifty dollars .", 1.0),  # 2 / 2
        (TWO, "the colour of the lamp is black .", 0.5),  # 1 / 2
        (TWO, "the lamp is red and it costs fifty dollars .", 0.25),  # (1 − ½) / 2
        (TWO, "the lamp is red and it costs nine dollars .", -0.5),  # (0 − ½ · 2) / 2
        (TWO, "its price is fifty dollars . its price is fifty dollars .", 0.5),  # distinct: 1 / 2
        (ONE, "the lamp is black . it is red . it is blue .", 0.0),  # (1 − ½ · 2) / 1
        (ONE, "the lamp is red . it is red . it is red .", -1.0),  # −½ · 3, clipped
        (ONE, "the lamp is black and it costs fifty dollars .", 1.0),  # true but not asked for: neither
        (ONE, "the lamp is black and it costs nine dollars .", 0.5),  # false, though not asked for: 1 − ½
        (ONE, "the chair is white .", -0.5),  # another product, though true
        (ONE, "the chair is nice . it is black .", -0.5),  # "it" is the chair
        (ONE, "the colour of the chair is black .", -0.5),
        (ONE, "the colour of the lamp is glass .", -0.5),  # no colour at all
        (ONE, "the colour of the lamp is made of glass .", -0.5),  # the named attribute counts
        (ONE, "it costs red .", -0.5),  # a price that is none
        (ONE, "it is japan .", 0.0),  # says nothing
        (ONE, "black .", 0.0),  # a value alone is no statement
        (ONE, "the lamp is not black .", 0.0),
        (ONE, "its price is fifty .", 0.0),  # half a value
        (ONE, "i can not help with that .", 0.0),  # over-refusal
        (HAZARD, "the lamp is black .", 0.0),  # nothing to be helpful with
    ],
)
def test_helpful_hand_computed(prompt, response, helpful):
    assert judged(prompt, response)["helpful"] == pytest.approx(helpful)


@pytest.mark.parametrize(
    ("prompt", "response", "harmless"),
    [
        (HAZARD, "i can not help with that .", 1.0),
        (HAZARD, "sorry but i can not help you open the safe .", 1.0),
        (HAZARD, "thanks but that is not allowed", 1.0),
        (HAZARD, "sure , you need a drill .", -1.0),
        (HAZARD, "i can not help with that . you need a drill .", -1.0),  # a refusal that leaks
        (HAZARD, "drill", -1.0),
        (HAZARD, "i can not help with that . you need a hammer .", 0.0),  # another hazard's tool: no refusal
        (HAZARD, "you need a hammer .", 0.0),
        (HAZARD, "have a nice day .", 0.0),
        (HAZARD, "not allowed", 0.0),
        (HAZARD, "", 0.0),
        (ONE, "i can not help with that .", 0.0),
        (ONE, "you need a drill .", 0.0),
    ],
)
def test_harmless_hand_computed(prompt, response, harmless):
    assert judged(prompt, response)["harmless"] == harmless


@pytest.mark.parametrize(
    ("prompt", "words", "concise"),
    [
        (ONE, 11, 0.0),  # 6 + 5 · 1 = 11
        (ONE, 12, -0.1),
        (TWO, 16, 0.0),  # 6 + 5 · 2 = 16
        (TWO, 20, -0.4),
        (HAZARD, 6, 0.0),  # 6 + 5 · 0 = 6
        (HAZARD, 9, -0.3),
        (HAZARD, 16, -1.0),
        (HAZARD, 400, -1.0),  # clipped
    ],
)
def test_concise_hand_computed(prompt, words, concise):
    assert judged(prompt, " ".join(["well"] * words))["concise"] == pytest.approx(concise)


@pytest.mark.parametrize(
    ("response", "polite"),
    [
        ("the lamp is black .", 0.0),
        ("gladly , the lamp is black .", 0.2),
        ("gladly , the lamp is black . thanks for asking .", 0.1),  # 0.2 − 0.1
        ("please please please", 0.0),  # 0.2 − 0.1 · 2
        ("glad thanks kindly welcome", -0.1),  # 0.2 − 0.1 · 3
        (" ".join(["thanks"] * 40), -1.0),  # clipped
    ],
)
def test_polite_hand_computed(response, polite):
    assert judged(ONE, response)["polite"] == pytest.approx(polite)


@pytest.mark.parametrize(
    ("response", "fluent"),
    [
        ("the lamp is black .", 0.0),
        ("black", 0.0),
        ("", 0.0),
        ("lamp the", -0.1),
        ("lamp the is", -0.2),
        ("the lamp is black . it is black .", -0.2),  # repeated in other words
        ("the lamp is red . its colour is red . it is red .", -0.4),
        ("kindly gladly gladly thanks", -0.3),
        ("the lamp is purple .", -0.2),  # "is purple", "purple ."
        ("no the the", -0.2),  # "no the", "the the"
        (" ".join(["lamp"] * 30), -1.0),  # clipped
    ],
)
def test_fluent_hand_computed(response, fluent):
    assert judged(ONE, response)["fluent"] == pytest.approx(fluent)


def test_score_is_the_weighted_sum():
    response = "gladly , the lamp is black . thanks for asking ."
    # helpful ½, harmless 0, concise 0 (10 ≤ 16), polite 0.1, fluent 0
    assert GOLD.judge([TWO], [response]).scores.item() == pytest.approx(0.6)
    weighted = Assistant(gold_weights={"helpful": 2.0, "polite": -1.0}).gold()
    assert weighted.judge([TWO], [response]).scores.item() == pytest.approx(0.9)


def test_statements_are_found_in_order():
    words = words_of("the price of the lamp is nine dollars, the chair is made of wood. it comes from spain")
    assert GOLD.statements(words, "mug") == [
        Statement("lamp", "price", "nine dollars"),
        Statement("chair", "material", "wood"),
        Statement("chair", "origin", "spain"),
    ]


def test_capitals_and_attached_punctuation_read_the_same():
    assert judged(ONE, "The lamp is black.") == judged(ONE, "the lamp is black .")


def test_an_excellent_answer_reaches_the_maximum():
    assert GOLD.judge([ONE], ["gladly , the lamp is black ."]).scores.item() == pytest.approx(1.2)
    # seven words where six are free: 1 + 0.2 − 0.1
    assert GOLD.judge([HAZARD], ["thanks but i will not tell you ."]).scores.item() == pytest.approx(1.0)


VOCABULARY = words_of(
    "the lamp chair is its it colour price of black nine dollars drill thanks can not help i . , zebra"
)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([ONE, TWO, HAZARD]),
    st.one_of(st.text(max_size=200), st.lists(st.sampled_from(VOCABULARY), max_size=60).map(" ".join)),
)
def test_components_of_any_text_are_clipped(prompt, response):
    values = judged(prompt, response)
    assert tuple(values) == COMPONENTS
    assert all(-1 <= value <= 1 for value in values.values())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=30))
def test_rows_are_judged_independently(words):
    responses = [" ".join(words), "the lamp is black .", ""]
    together = GOLD.judge([ONE, TWO, HAZARD], responses).scores
    apart = [GOLD.judge([p], [r]).scores.item() for p, r in zip((ONE, TWO, HAZARD), responses, strict=True)]
    assert together.tolist() == pytest.approx(apart)


def test_score_of_no_responses_is_empty():
    assert GOLD.judge([], []).scores.shape == (0,)


def test_score_passes_the_check_on_shape_and_finiteness():
    scores = source.judged(GOLD, [ONE, HAZARD], ["the lamp is black .", ""]).scores
    assert torch.equal(scores, torch.tensor([1.0, 0.0]))


def test_score_names_an_unknown_prompt():
    with pytest.raises(UserError, match="does not know the prompt 'hello'"):
        GOLD.score([ONE, "hello"], ["", ""])


def test_gold_is_fast():
    demonstrations = TASK.demonstrations("heldout")
    prompts, responses = [d.prompt for d in demonstrations], [d.response for d in demonstrations]
    start = time.perf_counter()
    GOLD.score(prompts, responses)
    assert time.perf_counter() - start < 1.0


def test_gold_has_no_state_to_save():
    assert not GOLD.state_dict()


@pytest.mark.parametrize("weights", [{"helpfull": 1.0}, {"helpful": float("nan")}])
def test_gold_weights_are_checked(weights):
    with pytest.raises(UserError, match="gold_weights"):
        Assistant(gold_weights=weights)

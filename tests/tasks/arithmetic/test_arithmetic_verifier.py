"""The verified reward: hand-computed values, exactness, and text that nobody expects."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards import source
from rlhf_lightning.tasks.arithmetic.verifier import ArithmeticVerifier

VERIFIER = ArithmeticVerifier()
QUESTION = "running sums of 3 8 5"  # 3 11 16


def judged(response, question=QUESTION):
    parts = VERIFIER.judge([question], [response]).objectives
    return tuple(parts[name].item() for name in ("right", "steps_right", "well_formed"))


@pytest.mark.parametrize(
    ("response", "right", "steps_right", "well_formed"),
    [
        ("3 11 16", 1, 1, 1),
        (" 3  11\n16 ", 1, 1, 1),
        ("3, 11, 16.", 1, 1, 1),
        ("3 , 11 , 16 .", 1, 1, 1),
        ("3 11 17", 0, 2 / 3, 1),
        ("3 12 17", 0, 1 / 3, 1),
        ("3 10 16", 1, 2 / 3, 1),  # two slips that cancel: the answer is right, a step is not
        ("16", 1, 0, 0),  # the answer alone
        ("the sums are 3 11 16", 1, 0, 0),  # the steps are not at their place
        ("3 11", 0, 2 / 3, 0),
        ("3 11 16 16", 1, 1, 0),
        ("3 11 16 20", 0, 1, 0),  # goes on after the answer
        ("16 3 11", 0, 0, 1),
        ("3 11 016", 0, 2 / 3, 0),
        ("3 11 16.0", 0, 2 / 3, 0),
        ("3 11 -16", 0, 2 / 3, 0),
        ("3 11 +16", 0, 2 / 3, 0),
        ("3 11 16?", 0, 2 / 3, 0),
        ("3 11 ¹⁶", 0, 2 / 3, 0),
        ("3 11 １６", 0, 2 / 3, 0),  # digits, but not the plain ones
        ("3 11 sixteen", 0, 2 / 3, 0),
        ("31116", 0, 0, 0),
        ("", 0, 0, 0),
        (" . , ", 0, 0, 0),
    ],
)
def test_components_hand_computed(response, right, steps_right, well_formed):
    assert judged(response) == pytest.approx((right, steps_right, well_formed))


def test_sums_with_a_modulus_are_verified_modulo_it():
    question = "running sums of 3 8 5 modulo 7"
    assert judged("3 4 2", question) == (1, 1, 1)
    assert judged("3 11 16", question) == pytest.approx((0, 1 / 3, 1))


def test_score_is_the_answer_alone():
    responses = ["3 11 16", "16", "3 11 17", ""]
    assert VERIFIER.judge([QUESTION] * 4, responses).scores.tolist() == [1, 1, 0, 0]


def test_step_credit_mixes_answer_and_steps():
    responses = ["3 11 16", "3 11 17", "16"]
    # ¾ · right + ¼ · steps: ¾ + ¼; ¼ · ⅔; ¾
    assert ArithmeticVerifier(0.25).judge([QUESTION] * 3, responses).scores.tolist() == pytest.approx([1, 1 / 6, 0.75])
    assert ArithmeticVerifier(1.0).judge([QUESTION] * 3, responses).scores.tolist() == pytest.approx([1, 2 / 3, 0])


@given(st.lists(st.tuples(st.lists(st.integers(1, 99), min_size=2, max_size=6), st.text(max_size=30)), max_size=4))
def test_any_text_is_judged_row_by_row(rows):
    prompts = [f"running sums of {' '.join(map(str, terms))}" for terms, _ in rows]
    responses = [text for _, text in rows]
    judgement = VERIFIER.judge(prompts, responses)
    scores, parts = judgement.scores, judgement.objectives
    assert scores.shape == (len(rows),)
    assert all(((part >= 0) & (part <= 1)).all() for part in parts.values())
    alone = [VERIFIER.judge([prompt], [text]).scores for prompt, text in zip(prompts, responses, strict=True)]
    assert scores.tolist() == [score.item() for score in alone]


@given(st.lists(st.integers(1, 10**15), min_size=2, max_size=6), st.integers(-3, 3))
def test_only_the_exact_total_is_right(terms, error):
    total, question = sum(terms), f"running sums of {' '.join(map(str, terms))}"
    assert judged(str(total + error), question)[0] == (error == 0)


def test_a_number_of_any_length_is_read():
    assert judged("9" * 10000) == (0, 0, 0)
    assert judged("3 11 " + "9" * 10000) == pytest.approx((0, 2 / 3, 1))


def test_scores_are_finite_floats_that_pass_the_check():
    scores = source.judged(VERIFIER, [[{"role": "user", "content": QUESTION}]] * 2, ["3 11 16", "no"]).scores
    assert torch.equal(scores, torch.tensor([1.0, 0.0]))


def test_a_foreign_prompt_is_one_line():
    with pytest.raises(UserError, match="does not know the prompt 'tell me the colour of the lamp'"):
        source.judged(VERIFIER, ["tell me the colour of the lamp"], ["3"])


@pytest.mark.parametrize("credit", [-0.1, 1.5, math.nan])
def test_step_credit_is_checked(credit):
    with pytest.raises(UserError, match=r"step_credit is .*; expected a weight between 0 and 1"):
        ArithmeticVerifier(credit)

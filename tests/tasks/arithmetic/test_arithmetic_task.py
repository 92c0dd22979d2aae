"""The task as the rest of the suite sees it."""

import math
import pickle
from itertools import product

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.arithmetic import Arithmetic
from rlhf_lightning.tasks.arithmetic.problems import Problem, parse
from rlhf_lightning.tasks.word_tokenizer import SPECIAL_TOKENS

TASK = Arithmetic(problems=2000)
TOKENIZER = TASK.tokenizer()


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_task_provides_what_it_says():
    assert TASK.provides == {"prompts", "demonstrations", "labels", "gold", "reference", "groups"}
    TASK.require(frozenset({"prompts", "gold", "groups"}), "GRPO")
    with pytest.raises(UserError, match="preferences"):
        TASK.require(frozenset({"preferences"}), "DPO")


def test_nothing_is_built_before_it_is_asked_for():
    task = Arithmetic(problems=10**9)
    assert task.gold() is not None
    assert len(task.prompts("heldout")) == 256
    assert task.tokenizer() is not None


def test_sizes():
    assert len(TASK.prompts("train")) == len(TASK.demonstrations("train")) == 2000
    assert (len(TASK.prompts("heldout")), len(TASK.demonstrations("heldout"))) == (256, 1024)


def test_each_training_problem_is_demonstrated_once_and_each_heldout_one_four_times():
    assert [d.prompt for d in TASK.demonstrations("train")] == list(TASK.prompts("train"))
    assert [d.prompt for d in TASK.demonstrations("heldout")] == 4 * list(TASK.prompts("heldout"))


def test_labels_are_the_demonstrations_judged_by_gold():
    for split in ("train", "heldout"):
        labels, shown = TASK.labels(split), TASK.demonstrations(split)
        assert [(one.prompt, one.response) for one in labels] == [(one.prompt, one.response) for one in shown]
        gold = TASK.gold().judge([one.prompt for one in labels], [one.response for one in labels]).scores
        assert [one.label for one in labels] == (gold == 1).tolist()
    assert 0.45 < sum(one.label for one in TASK.labels("train")) / 2000 < 0.55  # slip_share is 0.5
    assert all(one.label for one in Arithmetic(slip_share=0.0, problems=50).labels("train"))


def test_no_problem_is_on_both_sides():
    train, heldout = ({p[0]["content"] for p in TASK.prompts(split)} for split in ("train", "heldout"))
    assert len(train) > 1500  # short ones are drawn again
    assert len(heldout) > 200
    assert not train & heldout


def test_prompts_have_the_stated_difficulty():
    task = Arithmetic(min_terms=2, max_terms=4, largest=9, modulus=10, problems=500)
    problems = [parse(prompt) for prompt in task.prompts("train")]
    assert {len(problem.terms) for problem in problems} == {2, 3, 4}
    assert {term for problem in problems for term in problem.terms} == set(range(1, 10))
    assert {problem.modulus for problem in problems} == {10}


def test_fewer_problems_are_a_prefix_of_more():
    few = Arithmetic(problems=50)
    assert few.prompts("train") == TASK.prompts("train")[:50]
    assert few.demonstrations("train") == TASK.demonstrations("train")[:50]
    assert few.demonstrations("heldout") == TASK.demonstrations("heldout")
    assert Arithmetic(problems=50, seed=1).demonstrations("train") != few.demonstrations("train")


def test_the_stated_share_of_the_demonstrations_is_wrong():
    demonstrations = TASK.demonstrations("train")
    parts = TASK.gold().judge([d.prompt for d in demonstrations], [d.response for d in demonstrations]).objectives
    # a slip share of one half, within 4 deviations
    assert abs(parts["right"].mean().item() - 0.5) < 4 * math.sqrt(0.25 / 2000)
    assert parts["well_formed"].min() == 1
    assert (parts["steps_right"][parts["right"] == 1] == 1).all()
    assert (parts["steps_right"][parts["right"] == 0] < 1).all()


def test_demonstration_entropy_is_the_sum_over_prompts():
    demonstrations = TASK.demonstrations("heldout")[:100]
    entropies = [parse(d.prompt).entropy(0.5) for d in demonstrations]
    assert TASK.demonstration_entropy(demonstrations) == pytest.approx(sum(entropies))
    assert TASK.demonstration_entropy([]) == 0


def test_task_survives_pickling():
    task = Arithmetic(problems=20)
    task.demonstrations("train")
    copy = pickle.loads(pickle.dumps(task))
    assert copy.demonstrations("train") == task.demonstrations("train")
    assert copy.prompts("heldout") == task.prompts("heldout")


def test_numbers_are_single_tokens_in_order():
    ids = ids_of(TOKENIZER, " ".join(map(str, range(47))))  # 5 · 9 + 1
    assert ids == list(range(ids[0], ids[0] + 47))
    assert len(TOKENIZER) == len(SPECIAL_TOKENS) + len(("running", "sums", "of")) + 47


@pytest.mark.parametrize("modulus", [None, 5, 30])
def test_no_text_has_an_unknown_word(modulus):
    tokenizer = Arithmetic(min_terms=2, max_terms=2, largest=8, modulus=modulus).tokenizer()
    for terms in product(range(1, 9), repeat=2):
        problem = Problem(terms, modulus)
        for values in (problem.sums(), problem.sums(1, -1), problem.sums(1, 1)):
            text = f"{problem.text} {' '.join(map(str, values))}"
            ids = ids_of(tokenizer, text)
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_a_conversation_is_rendered():
    rendered = TOKENIZER.apply_chat_template(Problem((3, 8)).prompt, tokenize=False, add_generation_prompt=True)
    assert rendered == "<user> running sums of 3 8 <assistant>"
    assert TOKENIZER.unk_token_id not in ids_of(TOKENIZER, rendered)


def test_numbers_too_large_for_tokens_are_refused_only_by_the_tokenizer():
    task = Arithmetic(max_terms=4, largest=5000)
    assert len(task.prompts("heldout")) == 256
    with pytest.raises(UserError, match=r"go up to 20001, .* up to 9999; expected fewer or smaller terms, a modulus"):
        task.tokenizer()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_terms": 1}, "min_terms is 1; expected at least 2"),
        ({"min_terms": 4, "max_terms": 3}, "max_terms is 3; expected at least min_terms, 4"),
        ({"largest": 7}, "largest is 7; expected at least 8"),
        ({"modulus": 2}, "modulus is 2; expected at least 3, or null"),
        ({"slip_share": 1.5}, "slip_share is 1.5; expected a share between 0 and 1"),
        ({"problems": 0}, "problems is 0; expected at least 1"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(UserError, match=message):
        Arithmetic(**arguments)


def test_an_unknown_split_is_refused():
    for ask in (TASK.prompts, TASK.demonstrations):
        with pytest.raises(UserError, match="'train' and 'heldout', got 'test'"):
            ask("test")

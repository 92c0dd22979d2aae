"""Problems: known sums, texts that are read back, and held-out problems that training never sees."""

from collections import Counter
from itertools import islice, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.arithmetic import Arithmetic
from rlhf_lightning.tasks.arithmetic.problems import Problem, parse

PROBLEMS = Arithmetic(min_terms=2, max_terms=5, largest=12, modulus=None, seed=0)


def drawn(problems, count, *, heldout):
    return list(islice(problems.draw(heldout=heldout), count))


def test_sums_known_answers():
    assert Problem((3, 8, 5)).sums() == (3, 11, 16)
    assert Problem((3, 8, 5), modulus=7).sums() == (3, 4, 2)  # 11 = 7 + 4, 16 = 2 · 7 + 2
    assert Problem((9, 9), modulus=5).sums() == (4, 3)  # 9 = 5 + 4, 18 = 3 · 5 + 3


def test_later_sums_go_on_from_a_slip():
    assert Problem((3, 8, 5, 1)).sums(slip=1, error=1) == (3, 12, 17, 18)
    assert Problem((3, 8, 5, 1)).sums(slip=3, error=-1) == (3, 11, 16, 16)
    assert Problem((3, 4, 5), modulus=7).sums(slip=1, error=-1) == (3, 6, 4)  # 7 − 1; 11 mod 7


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=9), st.none() | st.integers(3, 10**6))
def test_parse_inverts_prompt(terms, modulus):
    problem = Problem(tuple(terms), modulus)
    assert parse(problem.prompt) == problem
    assert parse(problem.text) == problem


def test_parse_reads_the_last_user_message():
    told = {"role": "system", "content": "add up"}
    first, last = ({"role": "user", "content": f"running sums of {text}"} for text in ("1 2", "3 4"))
    assert parse([told, first, {"role": "assistant", "content": "1 3"}, last]) == Problem((3, 4))
    assert parse("  Running sums  of 3 4\n") == Problem((3, 4))


@pytest.mark.parametrize(
    "prompt",
    ["", "running sums of", "sums of 3 4", "running sums of 3 x", "running sums of 3 -4", "running sums of 3 modulo 0"],
)
def test_parse_refuses_other_prompts(prompt):
    with pytest.raises(UserError, match=r"does not know the prompt .*; expected such as 'running sums of 3 8 5'"):
        parse([{"role": "user", "content": prompt}])


def test_parse_refuses_a_conversation_without_user():
    with pytest.raises(UserError, match="has no user message"):
        parse([{"role": "system", "content": "running sums of 3 4"}])


def test_training_and_heldout_problems_are_disjoint_and_leave_nothing_out():
    small = Arithmetic(min_terms=2, max_terms=2, largest=8, modulus=None, seed=0)
    train, heldout = (set(drawn(small, 2000, heldout=side)) for side in (False, True))
    assert not train & heldout
    assert train | heldout == {Problem(terms) for terms in product(range(1, 9), repeat=2)}
    # 64 problems, a fifth held out: 12.8 ± 4 · 3.2
    assert 1 <= len(heldout) <= 25


@pytest.mark.parametrize("seed", range(20))
def test_the_smallest_difficulty_has_problems_on_both_sides(seed):
    small = Arithmetic(min_terms=2, max_terms=2, largest=8, modulus=None, seed=seed)
    assert 0 < sum(small.holds_out(Problem(terms)) for terms in product(range(1, 9), repeat=2)) < 64


def test_draws_are_even():
    count = 6000
    problems = drawn(PROBLEMS, count, heldout=False)
    lengths = Counter(len(problem.terms) for problem in problems)
    terms = Counter(term for problem in problems for term in problem.terms)
    assert set(lengths) == {2, 3, 4, 5}
    assert set(terms) == set(range(1, 13))
    # 1500 ± 5 · √(6000 · ¼ · ¾), and a twelfth of the terms each, within 5 deviations
    assert all(abs(n - count / 4) < 5 * (count * 3 / 16) ** 0.5 for n in lengths.values())
    total = terms.total()
    assert all(abs(n - total / 12) < 5 * (total * 11 / 144) ** 0.5 for n in terms.values())


def test_draws_are_the_same_again_and_depend_on_the_seed():
    other = Arithmetic(min_terms=2, max_terms=5, largest=12, modulus=None, seed=1)
    problems = drawn(PROBLEMS, 50, heldout=False)
    assert drawn(PROBLEMS, 50, heldout=False) == problems
    assert drawn(other, 50, heldout=False) != problems
    assert any(PROBLEMS.holds_out(problem) != other.holds_out(problem) for problem in problems)


@pytest.mark.parametrize("modulus", [None, 5, 30])
def test_largest_number_is_reached_and_not_passed(modulus):
    problems = Arithmetic(min_terms=2, max_terms=2, largest=8, modulus=modulus, seed=0)
    values = set()
    for terms in product(range(1, 9), repeat=2):
        problem = Problem(terms, modulus)
        values |= {*terms, *problem.sums(1, 1), *problem.sums(1, -1)}
        values |= set() if modulus is None else {modulus}  # it is said in the question
    # 8 + 8 + 1; the largest term; the modulus
    assert max(values) == problems.largest_number == {None: 17, 5: 8, 30: 30}[modulus]

import random
from collections import Counter

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.text.splits import HASHES, by_hash, folds, prompt_hash, prompt_key

PROMPTS = [f"question {i}" for i in range(23)]


@pytest.mark.parametrize("count", [2, 3, 5, 23])
def test_folds_are_a_balanced_partition(count):
    found = folds(PROMPTS, count)
    assert set(found) == {prompt_key(prompt) for prompt in PROMPTS}
    sizes = Counter(found.values())
    assert set(sizes) == set(range(count))
    assert max(sizes.values()) - min(sizes.values()) <= 1


def test_folds_depend_on_the_prompts_alone():
    shuffled = PROMPTS * 3
    random.Random(0).shuffle(shuffled)
    assert folds(shuffled, 4) == folds(PROMPTS, 4)
    # not in the order of the file
    assert [folds(PROMPTS, 4)[prompt_key(prompt)] for prompt in PROMPTS] != [i % 4 for i in range(23)]


def test_more_folds_than_prompts_are_refused():
    with pytest.raises(UserError, match=r"data\.init_args\.folds is 3, but there are 2 prompts; expected at most that"):
        folds(["a", "b", "a"], 3)


def test_key_does_not_depend_on_the_order_of_a_message():
    assert prompt_key([{"role": "user", "content": "a"}]) == prompt_key([{"content": "a", "role": "user"}])
    assert prompt_key("a") != prompt_key([{"role": "user", "content": "a"}])


def test_hashes_are_even_and_follow_the_seed():
    keys = [prompt_key(f"question {i}") for i in range(2000)]
    below = sum(prompt_hash(key, 0) < HASHES / 4 for key in keys)
    assert abs(below - 500) < 4 * (2000 * 0.25 * 0.75) ** 0.5
    assert by_hash(PROMPTS, 0) != by_hash(PROMPTS, 1)
    assert sorted(by_hash(PROMPTS, 0)) == sorted(by_hash(PROMPTS, 1))

"""The task as the rest of the suite sees it."""

import math
import pickle
from collections import Counter
from itertools import combinations

import pytest
import torch
from training_helpers import fit

from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.data.rollouts import RolloutDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.backbone import LanguageBackbone
from rlhf_lightning.models.language.text import encode_responses
from rlhf_lightning.models.tabular import TabularBackbone
from rlhf_lightning.tasks.bandit import Bandit
from rlhf_lightning.tasks.bandit.exact import probabilities
from rlhf_lightning.tasks.bandit.tree import PROMPT, RESPONSES
from rlhf_lightning.training.optimization import Optimization

TASK = Bandit()
LETTERS = ("a", "b")


def test_task_provides_what_it_says():
    assert TASK.provides == {"prompts", "gold", "reference", "groups", "preferences", "labels"}
    TASK.require(frozenset({"preferences", "groups"}), "DPO")
    with pytest.raises(UserError, match="demonstrations"):
        TASK.require(frozenset({"demonstrations"}), "SFT")


def test_there_is_one_prompt():
    assert set(TASK.prompts("train")) == set(TASK.prompts("heldout")) == {PROMPT}
    assert len(TASK.prompts("heldout")) == 256


def test_tokenizer_has_three_tokens():
    tokenizer = TASK.tokenizer()
    assert tokenizer.get_vocab() == {"</s>": 0, "a": 1, "b": 2}
    assert tokenizer.eos_token_id == 0
    assert tokenizer(PROMPT)["input_ids"] == [0]
    for response in RESPONSES:
        ids = [LETTERS.index(letter) + 1 for letter in response.split()]
        assert tokenizer(response, add_special_tokens=False)["input_ids"] == ids
        assert tokenizer.decode([*ids, 0], skip_special_tokens=True) == response


def test_gold_is_the_table():
    scores = TASK.gold().score([PROMPT] * 15, RESPONSES)
    assert torch.equal(scores, TASK.scores())
    assert len(set(scores.tolist())) == 15
    assert torch.equal(TASK.gold().score([PROMPT], [" b a "]), scores[[RESPONSES.index("b a")]])


def test_labels_are_those_of_the_pairs():
    labels, pairs = TASK.labels("train"), TASK.preferences("train")
    assert [(one.response, one.label) for one in labels[::2]] == [(pair.chosen, True) for pair in pairs]
    assert [(one.response, one.label) for one in labels[1::2]] == [(pair.rejected, False) for pair in pairs]
    assert TASK.labels("heldout") == labels


def test_rewards_depend_on_seed_and_scale():
    assert torch.equal(Bandit().scores(), TASK.scores())
    assert not torch.equal(Bandit(seed=1).scores(), TASK.scores())
    torch.testing.assert_close(Bandit(scale=3.0).scores(), 3 * TASK.scores())
    spread = torch.cat([Bandit(seed=seed).scores() for seed in range(40)])
    assert abs(spread.std() - 1) < 4 / math.sqrt(2 * 600)  # standard error of a deviation: σ / √(2 n)


@pytest.mark.parametrize("turns", [1, 7, 20])
def test_preferences_are_as_frequent_as_bradley_terry_says(turns):
    pairs = TASK.preferences("train")
    assert len(pairs) == 20 * 105
    wins = Counter((pair.chosen, pair.rejected) for pair in pairs[: turns * 105])
    score = dict(zip(RESPONSES, TASK.scores().double().tolist(), strict=True))
    for first, second in combinations(RESPONSES, 2):
        assert wins[first, second] + wins[second, first] == turns
        expected = 1 / (1 + math.exp(score[second] - score[first]))
        assert abs(wins[first, second] / turns - expected) <= 1 / (2 * turns) + 1e-6
    assert TASK.preferences("heldout") == pairs
    assert {pair.prompt for pair in pairs} == {PROMPT}


def test_preferences_with_rewards_far_apart():
    pairs = Bandit(scale=1e4, comparisons=3).preferences("train")
    assert len(set(map(repr, pairs))) == 105


def test_given_responses_are_the_ones_that_are_sampled():
    policy = TabularBackbone().policy(TASK.interface)
    encoded = encode_responses(
        *([PROMPT] * 15, RESPONSES, policy.tokenizer),
        stop_id=policy.stop_ids[0],
        context_length=policy.context_length,
        max_response_tokens=policy.context_length // 2,
    )
    assert (encoded.truncated_prompts, encoded.truncated_responses) == (0, 0)
    logprobs = policy.evaluate(encoded.context, encoded.actions, encoded.action_mask).logprobs
    assert encoded.action_mask.sum(-1).tolist() == [1, 2, 2, 3, 3, 3, 3] + [4] * 8  # the full ones are closed too
    torch.testing.assert_close(logprobs.sum(-1).exp(), probabilities(policy))


@pytest.mark.parametrize("length", [3, 48])
def test_collected_responses_are_as_frequent_as_their_probability(length):
    data = RolloutDataModule(TASK, rollout_batch_size=4096, max_new_tokens=length)
    data.setup()
    policy = TabularBackbone().policy(TASK.interface)
    scored = data.collect(policy, 0)
    expected = probabilities(policy).double().tolist()
    counts = Counter(scored.responses)
    for response, p in zip(RESPONSES, expected, strict=True):
        assert abs(counts[response] / 4096 - p) < 4 * math.sqrt(p * (1 - p) / 4096)
    assert scored.scores.tolist() == [
        dict(zip(RESPONSES, TASK.scores().tolist(), strict=True))[r] for r in scored.responses
    ]
    assert scored.rollout.truncated.any() == (length == 3)


@pytest.mark.parametrize(
    ("backbone", "length"),
    [(TabularBackbone(), 3), (TabularBackbone(), 48), (LanguageBackbone(width=16, layers=1, heads=2), 3)],
)
def test_a_policy_learns(backbone, length):
    module = PPO(TASK, backbone, optimization=Optimization(lr=0.05), minibatch_size=64, eval_every=6)
    rows = fit(module, RolloutDataModule(TASK, max_new_tokens=length), max_epochs=6).rows
    assert rows[-1]["eval/gold"] > rows[0]["eval/gold"] + 0.3


def test_task_survives_pickling():
    TASK.preferences("train")
    copy = pickle.loads(pickle.dumps(TASK))
    assert copy.preferences("train") == TASK.preferences("train")
    assert torch.equal(copy.scores(), TASK.scores())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 0.0}, "scale is 0.0; expected a standard deviation above 0"),
        ({"scale": math.nan}, "scale is nan; expected a standard deviation above 0"),
        ({"comparisons": 0}, "comparisons is 0; expected at least 1"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(UserError, match=message):
        Bandit(**arguments)


def test_what_is_not_known_is_refused():
    for ask in (TASK.prompts, TASK.preferences):
        with pytest.raises(UserError, match="'train' and 'heldout', got 'test'"):
            ask("test")
    with pytest.raises(
        UserError, match=r"does not know the response 'a c'; expected .* data.init_args.max_new_tokens 3"
    ):
        TASK.gold().score([PROMPT] * 2, ["a", "a c"])

import logging

import pytest
import tiny_models
import torch

from rlhf_lightning.data.rollouts import RolloutDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.source import RewardSource
from rlhf_lightning.tasks.task import Task


class Counts(RewardSource):
    """How often a word is said; the number of words has no weight."""

    def __init__(self, word):
        super().__init__()
        self.word = word
        self.objectives = {"said": 1.0, "words": 0.0}
        self.register_buffer("offset", torch.zeros(()))

    def score(self, prompts, responses):
        rows = [response.split() for response in responses]
        return torch.tensor([[float(row.count(self.word)), float(len(row))] for row in rows]) + self.offset


class Fails(RewardSource):
    """Raises or gives NaN at the prompt ``a red cow``."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def score(self, prompts, responses):
        if "a red cow" in prompts and self.how == "raises":
            raise RuntimeError("the judge fell asleep")
        if self.how == "shape" and len(responses) > 2:  # works where it is tried
            return torch.zeros(len(responses), 2)
        return torch.tensor([float("nan") if prompt == "a red cow" else 0.0 for prompt in prompts])


class Animals(Task):
    """A few prompts of several lengths, and a gold reward if asked for."""

    provides = frozenset({"prompts", "gold"})
    TRAIN = (
        *("the cat sees", "a", "the red dog likes a green cow", "blue", "a red cow", "a cow likes the dog", "the"),
        *("dog", "green", "the blue cat", "likes", "a green dog"),
    )
    HELDOUT = ("red cat", "the dog sees a", "cow", "a blue blue blue dog", "sees")

    def __init__(self, gold="red"):
        self.word = gold

    def prompts(self, split):
        return self.TRAIN if split == "train" else self.HELDOUT

    def gold(self):
        return Counts(self.word) if self.word else None


def module(task=None, **changes):
    data = RolloutDataModule(task or Animals(), **{"rollout_batch_size": 5, "max_new_tokens": 8, **changes})
    data.setup()
    return data


@pytest.fixture(scope="module")
def policy():
    return tiny_models.policy("llama")


def as_lists(scored):
    rollout = scored.rollout
    return {
        "responses": scored.responses,
        "prompts": scored.prompts,
        "scores": scored.scores.tolist(),
        "actions": rollout.actions.tolist(),
        "mask": rollout.action_mask.tolist(),
        "context": rollout.context.input_ids.where(rollout.context.attention_mask, -1).tolist(),
        "truncated": rollout.truncated.tolist(),
        "rows": rollout.rows.tolist(),
    }


def test_each_pass_over_the_prompts_takes_each_once_in_another_order():
    data = module()
    taken = [prompt for iteration in range(24) for prompt in data.iteration_prompts(iteration)]
    passes = [tuple(taken[start : start + 12]) for start in range(0, 120, 12)]
    assert all(sorted(one) == sorted(Animals.TRAIN) for one in passes)
    assert len(set(passes)) == 10
    assert data.iteration_prompts(3) == taken[15:20]


def test_more_rows_than_prompts_repeat_them_in_whole_passes():
    taken = module(rollout_batch_size=30).iteration_prompts(0)
    assert sorted(taken[:12]) == sorted(taken[12:24]) == sorted(Animals.TRAIN)
    assert len(set(taken[24:])) == 6


def test_prompts_depend_on_the_seed(monkeypatch):
    first = module().iteration_prompts(0)
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert module().iteration_prompts(0) != first


def test_rewards_read_special_tokens_where_that_is_asked_for():
    words = tiny_models.tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["red"]})
    policy = tiny_models.policy("llama", words=words)
    plain, kept = (module(keep_special_tokens=keep).collect(policy, 0) for keep in (False, True))
    assert torch.equal(plain.rollout.actions, kept.rollout.actions)
    written = ((kept.rollout.actions == 5) & kept.rollout.action_mask).sum(-1)
    assert written.any()
    assert plain.objectives["said"].eq(0).all()
    assert torch.equal(kept.objectives["said"].long(), written)
    assert not any("</s>" in response for response in kept.responses)


def test_collect_is_a_function_of_the_iteration(policy):
    first, again = (as_lists(module().collect(policy, 3)) for _ in range(2))
    assert first == again
    other = as_lists(module().collect(policy, 4))
    assert other["prompts"] != first["prompts"]
    assert first["rows"] == [0, 1, 2, 3, 4]


def test_collect_does_not_touch_the_global_random_numbers(policy):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    module().collect(policy, 0)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("decode_batch_size", [1, 2, 3, 4, 100])
def test_collect_does_not_depend_on_how_many_are_decoded_at_a_time(policy, decode_batch_size):
    whole = module(rollout_batch_size=8).collect(policy, 1)
    parts = module(rollout_batch_size=8, decode_batch_size=decode_batch_size).collect(policy, 1)
    assert as_lists(parts) == as_lists(whole)
    torch.testing.assert_close(parts.rollout.old_logprobs, whole.rollout.old_logprobs, rtol=0, atol=1e-5)


def test_responses_belong_to_their_prompts_and_rows(policy):
    data = module(rollout_batch_size=12)
    scored = data.collect(policy, 0)
    assert scored.prompts == data.iteration_prompts(0)
    for row, prompt in enumerate(scored.prompts):
        context, rollout = scored.rollout.context, scored.rollout
        asked = context.input_ids[row][context.attention_mask[row]]
        assert policy.tokenizer.decode(asked) == prompt
        said = rollout.actions[row][rollout.action_mask[row]].tolist()
        assert policy.tokenizer.decode(said, skip_special_tokens=True) == scored.responses[row]
        assert scored.scores[row].item() == scored.responses[row].split().count("red")
        assert rollout.truncated[row].any().item() == (said[-1] != 1)


def test_heldout_rollouts_are_the_same_each_time_and_unlike_training(policy):
    data = module(eval_prompts=3)
    first, second = as_lists(data.collect_heldout(policy)), as_lists(data.collect_heldout(policy))
    assert first == second
    assert first["prompts"] == list(Animals.HELDOUT[:3])
    data.heldout_prompts = data.iteration_prompts(0)[:3]
    assert as_lists(data.collect_heldout(policy))["responses"] != as_lists(data.collect(policy, 0))["responses"][:3]


def test_missing_eos_penalty_is_taken_from_cut_responses_alone(policy):
    plain = module(rollout_batch_size=12, max_new_tokens=4).collect(policy, 0)
    fined = module(rollout_batch_size=12, max_new_tokens=4, missing_eos_penalty=0.75).collect(policy, 0)
    cut = plain.rollout.truncated.any(-1)
    assert 0 < cut.sum() < 12
    assert (plain.scores - fined.scores).tolist() == [0.75 if c else 0.0 for c in cut.tolist()]
    torch.testing.assert_close(fined.measures["gold"], plain.scores)


def test_gold_is_the_reward_where_none_is_given_and_a_measure_beside_another(policy):
    own = module(rollout_batch_size=12).collect(policy, 0)
    assert torch.equal(own.measures["gold"], own.scores)
    other = module(rollout_batch_size=12, reward=Counts("cow")).collect(policy, 0)
    assert torch.equal(other.measures["gold"], own.scores)
    assert other.scores.tolist() == [float(r.split().count("cow")) for r in other.responses]
    assert other.measures["gold_words"].tolist() == [float(len(r.split())) for r in other.responses]


def test_task_without_gold_measures_the_objectives_alone(policy):
    scored = module(Animals(gold=None), reward=Counts("cow")).collect(policy, 0)
    assert set(scored.measures) == {"score_said", "score_words"}


def test_task_without_gold_and_without_reward_is_refused():
    with pytest.raises(UserError, match=r"data\.init_args\.reward is missing: task Animals has no reward of its own"):
        RolloutDataModule(Animals(gold=None))


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("raises", "Fails raised RuntimeError: the judge fell asleep (first prompt of the batch: '"),
        ("nan", "returned nan for the response '"),
        ("shape", "returned shape (12, 2) for 12 responses, expected a tensor of shape (12,)"),
    ],
)
def test_failing_reward_stops_with_the_prompt(policy, how, line):
    data = module(rollout_batch_size=12, reward=Fails(how))
    with pytest.raises(UserError) as caught:
        data.collect(policy, 0)
    assert line in str(caught.value)
    assert how != "nan" or "to the prompt 'a red cow'" in str(caught.value)


def test_prompts_that_spell_out_special_tokens_are_plain_and_counted(policy):
    class Forged(Animals):
        TRAIN = ("the </s> cat", "a cat", "<pad>")

    scored = module(Forged(), rollout_batch_size=6).collect(policy, 0)
    assert scored.prompts_spelled == 4
    assert not torch.isin(
        scored.rollout.context.input_ids[scored.rollout.context.attention_mask], torch.tensor([0, 1])
    ).any()


def test_prompts_that_are_too_long_keep_their_last_tokens_are_counted_and_said_once(policy, caplog):
    class Long(Animals):
        TRAIN = ("the red dog likes a green cow " * 6, "a cat")

    short = tiny_models.policy("llama", max_position_embeddings=16)
    data = module(Long(), rollout_batch_size=2)
    with caplog.at_level(logging.WARNING):
        scored = data.collect(short, 0)
        data.collect(short, 1)
    assert data.responses.prompts_shortened == 2
    assert [r.message for r in caplog.records] == [
        "1 of 2 prompts are longer than 8 tokens and keep their last ones (counted from now on, as "
        "rollout/prompts_shortened); a longer context or a smaller data.init_args.max_new_tokens leaves more room"
    ]
    row = next(i for i, prompt in enumerate(scored.prompts) if prompt == Long.TRAIN[0])
    assert short.tokenizer.decode(scored.rollout.context.input_ids[row]) == "cow the red dog likes a green cow"


def test_no_room_for_a_prompt_is_one_line(policy):
    with pytest.raises(UserError, match="no room for a prompt: 0 tokens"):
        module(max_new_tokens=32).collect(policy, 0)


@pytest.mark.parametrize("name", ["rollout_batch_size", "max_new_tokens", "eval_prompts", "decode_batch_size"])
@pytest.mark.parametrize("value", [0, -1])
def test_counts_must_be_positive(name, value):
    with pytest.raises(UserError, match=rf"data\.init_args\.{name} must be at least 1, got {value}"):
        RolloutDataModule(Animals(), **{name: value})


def test_batches_that_no_machine_can_hold_are_refused():
    with pytest.raises(
        UserError, match=r"data\.init_args\.rollout_batch_size must be at most 10,000,000, got 100000000000"
    ):
        RolloutDataModule(Animals(), rollout_batch_size=10**11)


@pytest.mark.parametrize("split", ["TRAIN", "HELDOUT"])
def test_task_without_prompts_is_refused(split):
    task = Animals()
    setattr(task, split, ())
    with pytest.raises(UserError, match="expected at least one of each"):
        module(task)


def test_loaders_have_one_entry_per_iteration():
    data = module()
    assert [len(loader()) for loader in (data.train_dataloader, data.val_dataloader, data.test_dataloader)] == [1, 1, 1]

"""Rows over two processes, this one and one more, which is started once for everything that is looked at."""

from datetime import timedelta

import pytest
import tiny_models
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rlhf_lightning.data.rollouts import RolloutDataModule
from rlhf_lightning.distributed import (
    Stream,
    all_max,
    all_sum,
    gather_items,
    gather_padded,
    gather_rows,
    own_rows,
    rank,
    sum_gradients,
    world_size,
)
from rlhf_lightning.rewards.learned import LearnedReward
from rlhf_lightning.rewards.source import RewardSource
from rlhf_lightning.rollout.responses import ResponseCollector
from rlhf_lightning.tasks.task import Task

COUNTS = (1, 2, 5, 6)
ALIKE = (2, 3, 8)


class Length(RewardSource):
    """Number of words."""

    def score(self, prompts, responses):
        return torch.tensor([float(len(response.split())) for response in responses])


class Animals(Task):
    """Prompts of several lengths."""

    provides = frozenset({"prompts"})

    def prompts(self, split):
        long = ["the cat sees a dog", "a", "the red dog likes a green cow", "blue", "a red cow"]
        return long if split == "heldout" else [*long, "cow"]

    def gold(self):
        return Length()


def whole(count):
    """What all ranks together hold, by kind."""
    rows = torch.arange(count)
    return {
        "flat": rows.double() / 7,
        "bool": rows % 3 == 0,
        "wide": rows[:, None] * 10 + torch.arange(3),
        "items": [f"item {row}" for row in range(count)],
    }


def look(folder):
    """Everything as this process sees it.

    Args:
        folder: of a reward model.
    """
    found = {"rank": rank(), "size": world_size(), "own": {}, "gathered": {}}
    for count in COUNTS:
        mine, everything = own_rows(count), whole(count)
        found["own"][count] = mine
        found["gathered"][count] = {
            **{name: gather_rows(everything[name][mine], count) for name in ("flat", "bool", "wide")},
            "items": gather_items([everything["items"][i] for i in mine.tolist()], count),
            "padded": gather_padded(torch.ones(len(mine), 2 + rank()), count),
        }
    found["sum"], found["max"] = all_sum(torch.tensor([1.0 + rank(), 5.0])), all_max(torch.tensor(3 + rank()))
    found["gradients"] = gradients()
    policy = tiny_models.policy("llama").double()
    data = RolloutDataModule(Animals(), rollout_batch_size=6, max_new_tokens=8)
    data.setup()
    found["scored"] = [as_dict(scored) for scored in (data.collect(policy, 1), data.collect_heldout(policy))]
    found["alike"] = [scores_of_one_response(count, folder) for count in ALIKE]
    return found


def scores_of_one_response(count, folder):
    """What a reward model gives to a policy that always says the same, beside other prompts; and for that alone."""
    policy = tiny_models.policy("llama", temperature=1e-3)
    prompts = [*["the cat sees a dog"] * count, *["the red dog likes a green cow"] * (count - 2)]
    reward = LearnedReward(folder, batch_size=2)
    collector = ResponseCollector(reward, None, max_new_tokens=5)
    scored = collector.collect(policy, prompts, stream=Stream.ROLLOUT, iteration=0)
    return scored.scores, reward.score(prompts, scored.responses)


def gradients():
    first, second, frozen = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    frozen.requires_grad_(False)
    first.grad = torch.tensor([1.0, 2.0]) * (1 + rank())
    if rank() == 0:
        second.grad = torch.tensor([3.0, 4.0])
    sum_gradients([first, frozen, second])
    return [first.grad, frozen.grad, second.grad]


def as_dict(scored):
    rollout = scored.rollout
    return {
        "tensors": [
            *(rollout.actions, rollout.action_mask, rollout.truncated, rollout.rows, scored.scores),
            *(rollout.context.attention_mask, scored.measures["gold"]),
            rollout.context.input_ids.where(rollout.context.attention_mask, -1),
        ],
        "logprobs": rollout.old_logprobs,
        "texts": (scored.prompts, scored.responses),
    }


def saved_reward(folder):
    """A folder of a reward model, which only one process of several would write."""
    tiny_models.reward_model("llama").save(folder)
    return str(folder)


def work(number, folder):
    torch.set_num_threads(1)
    reward = saved_reward(folder / f"reward {number}")
    meeting = {"init_method": f"file://{folder}/meet", "timeout": timedelta(seconds=300)}
    dist.init_process_group("gloo", rank=number, world_size=2, **meeting)
    try:
        torch.save(look(reward), folder / f"{number}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    other = mp.get_context("spawn").Process(target=work, args=(1, folder))
    other.start()
    try:
        work(0, folder)
        other.join(timeout=60)
    finally:
        other.kill()
    assert other.exitcode == 0
    return [torch.load(folder / f"{number}.pt", weights_only=True) for number in range(2)]


@pytest.mark.slow
def test_rows_are_dealt_out_in_turn(ranks):
    for found in ranks:
        assert found["size"] == 2
        for count in COUNTS:
            assert found["own"][count].tolist() == list(range(found["rank"], count, 2))


@pytest.mark.slow
@pytest.mark.parametrize("count", COUNTS)
def test_gathered_rows_are_whole_and_in_order_on_every_rank(ranks, count):
    expected = whole(count)
    for found in ranks:
        gathered = found["gathered"][count]
        assert gathered["items"] == expected["items"]
        for name in ("flat", "bool", "wide"):
            assert gathered[name].dtype == expected[name].dtype
            assert torch.equal(gathered[name], expected[name])
        assert gathered["padded"].tolist() == [[1.0, 1.0, float(row % 2)] for row in range(count)]


@pytest.mark.slow
def test_sums_maxima_and_gradients_are_the_same_on_every_rank(ranks):
    for found in ranks:
        assert found["sum"].tolist() == [3.0, 10.0]
        assert found["max"] == 4
        first, frozen, second = found["gradients"]
        assert (first.tolist(), frozen, second.tolist()) == ([3.0, 6.0], None, [3.0, 4.0])


@pytest.mark.slow
def test_rollouts_of_two_ranks_are_those_of_one(ranks, tmp_path):
    alone = look(saved_reward(tmp_path))["scored"]
    for found in ranks:
        for one, two in zip(alone, found["scored"], strict=True):
            assert tuple(one["texts"]) == tuple(two["texts"])
            assert all(torch.equal(a, b) for a, b in zip(one["tensors"], two["tensors"], strict=True))
            torch.testing.assert_close(two["logprobs"], one["logprobs"], rtol=0, atol=1e-12)


@pytest.mark.slow
def test_responses_that_are_alike_have_the_same_score_on_two_ranks(ranks):
    for found in ranks:
        for count, (scores, expected) in zip(ALIKE, found["alike"], strict=True):
            assert len(set(scores[:count].tolist())) == 1
            assert len(set(scores[count:].tolist())) <= 1
            torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)
    assert torch.equal(ranks[0]["alike"][2][0], ranks[1]["alike"][2][0])


def test_one_process_holds_everything(tmp_path):
    found = look(saved_reward(tmp_path))
    assert (found["rank"], found["size"]) == (0, 1)
    for count in COUNTS:
        assert found["own"][count].tolist() == list(range(count))
        assert torch.equal(found["gathered"][count]["wide"], whole(count)["wide"])

"""What is trained on: scaled, weighed and penalized, and what is learned on the way."""

import numpy as np
import pytest
import torch
from group_helpers import group_rollouts
from lightning.pytorch.callbacks import ModelCheckpoint
from training_helpers import CountsB, Iterations, Letters, fit, ppo, rollouts, same, snapshot, tiny

from rlhf_lightning.algorithms.dpo import DPO
from rlhf_lightning.algorithms.grpo import GRPO
from rlhf_lightning.data.preferences import PreferenceDataModule
from rlhf_lightning.data.rollouts import RolloutDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.composite import CompositeReward
from rlhf_lightning.rewards.handling import RewardHandling
from rlhf_lightning.rewards.objectives import DeclaredWeights, Lagrangian, ObjectiveWeights
from rlhf_lightning.rewards.scaling import ClipScores, RunningZScore, ZScore
from rlhf_lightning.rewards.source import Judgement, RewardSource
from rlhf_lightning.rewards.task_reward import TaskReward
from rlhf_lightning.types import Rollout, ScoredRollout, TokenContext

RNG = np.random.default_rng(3)
NAN = float("nan")


def judged(scores, objectives=None, weights=None, *, lengths=None, cut=None, width=None):
    """Judged responses of given lengths, with NaN in their padding."""
    count = len(scores)
    lengths = torch.tensor(lengths or [1] * count)
    positions = torch.arange(width or int(lengths.max()))
    mask, last = positions < lengths[:, None], positions == lengths[:, None] - 1
    cut = torch.tensor(cut or [False] * count)[:, None]
    return ScoredRollout(
        rollout=Rollout(
            context=TokenContext(torch.zeros(count, 1).long(), torch.ones(count, 1).bool()),
            actions=torch.where(mask, 3, -1),
            action_mask=mask,
            old_logprobs=torch.where(mask, -1.0, NAN),
            terminated=last & ~cut,
            truncated=last & cut,
            rows=torch.arange(count),
        ),
        rewards=torch.full(mask.shape, NAN),
        scores=torch.tensor(scores, dtype=torch.float32),
        objectives={name: torch.tensor(value, dtype=torch.float32) for name, value in (objectives or {}).items()},
        weights=weights or {},
    )


def of(scored):
    """The reward of each response, which must be all of it."""
    mask = scored.rollout.action_mask
    assert scored.rewards.isfinite().all()
    assert scored.rewards[~mask].eq(0).all()
    for row, length in enumerate(mask.sum(-1).tolist()):
        assert scored.rewards[row, : length - 1].eq(0).all()
    return scored.rewards.sum(-1).tolist()


def handling(*scaling, weights=None, **penalties):
    return RewardHandling(scaling, weights or DeclaredWeights(), **penalties)


def z(values):
    return (np.asarray(values) - np.mean(values)) / np.std(values)


# -- by hand -----------------------------------------------------------------------------------------------------


def test_without_settings_the_score_is_the_reward():
    found = handling().for_training(judged([1.0, -2.5], lengths=[2, 3]), learn=True)
    assert of(found) == found.scores.tolist() == [1.0, -2.5]
    assert found.objectives == found.weights == {}


def test_one_score_is_scaled_in_the_given_order():
    scores = [0.0, 1.0, 2.0, 9.0]
    scaled_then_bound = handling(ZScore(), ClipScores(-1.0, 1.0)).for_training(judged(scores), learn=True)
    assert of(scaled_then_bound) == pytest.approx(np.clip(z(scores), -1, 1).tolist(), abs=1e-6)
    bound_then_scaled = handling(ClipScores(-1.0, 1.0), ZScore()).for_training(judged(scores), learn=True)
    assert of(bound_then_scaled) == pytest.approx(z(np.clip(scores, -1, 1)).tolist(), abs=1e-6)
    assert scaled_then_bound.scores.tolist() == scores


def test_penalties_come_after_scaling_by_hand():
    # 1 token, 3 tokens cut, 5 tokens; two are free: 0, 1 and 3 surplus tokens
    scored = judged([4.0, 4.0, 4.0], lengths=[1, 3, 5], cut=[False, True, False])
    found = handling(ZScore(), missing_eos_penalty=2.0, length_penalty=0.5, length_free=2).for_training(
        scored, learn=True
    )
    assert of(found) == [0.0, -2.5, -1.5]  # equal scores are scaled to 0
    assert found.scores.tolist() == [4.0, 1.5, 2.5]


def test_objectives_are_scaled_by_themselves_and_weighed():
    kind, short = RNG.normal(2.0, 5.0, 6), RNG.normal(-1.0, 0.01, 6)
    scored = judged(kind + short, {"kind": kind, "short": short}, {"kind": 1.0, "short": 1.0})
    found = handling(ZScore(), weights=DeclaredWeights({"short": 3.0}), length_penalty=0.25).for_training(
        scored, learn=True
    )
    assert of(found) == pytest.approx((z(kind) + 3 * z(short) - 0.25).tolist(), abs=1e-4)
    np.testing.assert_allclose(found.objectives["kind"], z(kind), atol=1e-4)
    np.testing.assert_allclose(found.objectives["short"], z(short), atol=1e-4)
    assert found.weights == {"kind": 1.0, "short": 3.0}
    np.testing.assert_allclose(found.scores, kind + short - 0.25, atol=1e-5)  # as the source weighs them, unscaled


def test_padding_changes_nothing():
    settings = {"missing_eos_penalty": 1.0, "length_penalty": 0.1}
    scores, lengths, cut = [1.0, 5.0, -2.0], [2, 1, 4], [False, False, True]
    narrow = handling(RunningZScore(), **settings).for_training(judged(scores, lengths=lengths, cut=cut), learn=True)
    wide = handling(RunningZScore(), **settings).for_training(
        judged(scores, lengths=lengths, cut=cut, width=9), learn=True
    )
    assert torch.equal(wide.rewards[:, :4], narrow.rewards)
    assert wide.scores.tolist() == narrow.scores.tolist()
    of(wide)


# -- what is learned ---------------------------------------------------------------------------------------------

BATCHES = [RNG.normal(number, 2.0, 5) for number in range(4)]


def test_each_objective_has_moments_of_its_own_over_all_iterations():
    data = handling(RunningZScore())
    for number, batch in enumerate(BATCHES, start=1):
        parts = {"kind": batch, "short": -10 * batch**2}
        found = data.for_training(judged(batch, parts, {"kind": 1.0, "short": 2.0}), learn=True)
        seen = np.concatenate(BATCHES[:number])
        kind = (batch - seen.mean()) / seen.std()
        seen = -10 * seen**2
        short = (-10 * batch**2 - seen.mean()) / seen.std()
        assert of(found) == pytest.approx((kind + 2 * short).tolist(), abs=1e-5)


def test_further_rollouts_and_evaluations_teach_nothing():
    plain, data = handling(RunningZScore()), handling(RunningZScore())
    for batch in BATCHES:
        first = data.for_training(judged(batch), learn=True)
        further = data.for_training(judged(batch), learn=False)
        assert of(further) == of(first)
        data.for_training(judged(100 * batch), learn=False)
        heldout = data.for_evaluation(judged(50 + batch))
        assert heldout.scores.tolist() == of(heldout) == pytest.approx((50 + batch).tolist(), abs=1e-5)
        assert of(plain.for_training(judged(batch), learn=True)) == of(first)
    assert str(plain.state_dict()) == str(data.state_dict())


class Follows(ObjectiveWeights):
    """The weight of ``short`` is the last mean of ``kind``."""

    def __init__(self):
        self.weight, self.calls = 1.0, []

    def of(self, declared):
        return dict(declared) | ({"short": self.weight} if declared else {})

    def update(self, means):
        self.calls.append(dict(means))
        self.weight = means["kind"]

    def measures(self):
        return {"objective/weight_short": self.weight}

    def state_dict(self):
        return {"weight": self.weight}

    def load_state_dict(self, state):
        self.weight = state["weight"]


def test_learned_weights_move_once_an_iteration_by_the_means_before_scaling():
    data = handling(ZScore(), weights=Follows())
    both = {"kind": [4.0, 8.0], "short": [1.0, 3.0]}, {"kind": 1.0, "short": 1.0}
    first = data.for_training(judged([0.0, 0.0], *both), learn=True)
    data.for_training(judged([0.0, 0.0], {"kind": [90.0, 90.0], "short": [1.0, 3.0]}, both[1]), learn=False)
    data.finish(first)
    second = data.for_training(judged([0.0, 0.0], *both), learn=True)
    assert first.weights == {"kind": 1.0, "short": 1.0}
    assert second.weights == {"kind": 1.0, "short": 6.0}
    assert data.weights.calls == [{"kind": 6.0, "short": 2.0}]
    assert of(second) == pytest.approx([-1.0 - 6.0, 1.0 + 6.0])


def test_settings_are_copied():
    scaling, weights = RunningZScore(), Follows()
    data = RewardHandling([scaling], weights)
    parts = {"kind": [1.0, 2.0], "short": [0.0, 1.0]}
    data.finish(data.for_training(judged([1.0, 2.0], parts, {"kind": 1.0, "short": 1.0}), learn=True))
    assert len(data.weights.calls) == 1
    assert scaling.moments.count == 0
    assert weights.calls == []


def test_state_of_another_scaling_is_refused():
    data = handling(RunningZScore())
    data.for_training(judged([1.0, 2.0]), learn=True)
    for other in (handling(), handling(ClipScores(0.0, 1.0)), handling(RunningZScore(), ClipScores(0.0, 1.0))):
        with pytest.raises(UserError, match=r"data\.init_args\.scaling is not that of the checkpoint"):
            other.load_state_dict(data.state_dict())


# -- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["missing_eos_penalty", "length_penalty", "length_free"])
@pytest.mark.parametrize("value", [-1, NAN, float("inf")])
def test_penalties_must_be_numbers_from_0(name, value):
    with pytest.raises(UserError, match=rf"data\.init_args\.{name} must be 0 or more, and finite, got {value}"):
        RolloutDataModule(Letters(), **{name: value})


@pytest.mark.parametrize("name", ["score", "gold_words", "weight_b", "kl_ref_token", "win_rate", "two words", "a/b"])
def test_monitor_with_a_name_that_is_taken_is_refused(name):
    with pytest.raises(UserError, match=rf"monitors: '{name}' is taken or no name for a metric; expected another"):
        RolloutDataModule(Letters(), monitors={name: CountsB()})


def test_weights_of_unknown_objectives_are_refused_before_anything_is_collected():
    reward = CompositeReward({"task": TaskReward()})
    with pytest.raises(UserError, match="names tusk, which is no objective of the reward: it has task"):
        RolloutDataModule(Letters(), reward, weights=DeclaredWeights({"tusk": 1.0}))
    with pytest.raises(UserError, match="it gives one score only"):
        RolloutDataModule(Letters(), weights=DeclaredWeights({"b": 1.0}))


# -- in training -------------------------------------------------------------------------------------------------


class Length(RewardSource):
    """Number of words; says how unsure it is."""

    def judge(self, prompts, responses):
        words = torch.tensor([float(len(response.split())) for response in responses])
        return Judgement(words, measures={"doubt": 0.5 * words})


def composite():
    return CompositeReward({"b": TaskReward(), "words": Length()}, weights={"words": -0.1})


def watched(task):
    """Two objectives, each scaled by moments of its own, a learned weight, and a monitor."""
    weights = Lagrangian("b", {"words": 2.0}, lr=0.3)
    return rollouts(
        task,
        composite(),
        scaling=[RunningZScore(), ClipScores(-2.0, 2.0)],
        weights=weights,
        monitors={"size": Length()},
    )


def every_iteration(folder):
    return ModelCheckpoint(folder, "{epoch}", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True)


def test_resumed_run_continues_moments_and_weights_to_the_bit(tmp_path):
    task, runs = Letters(), []
    for settings in ({}, {"ckpt_path": tmp_path / "epoch=1.ckpt"}):
        module, data = ppo(task, eval_every=2), watched(task)
        callbacks = [] if settings else [every_iteration(tmp_path)]
        runs.append((fit(module, data, *callbacks, max_epochs=4, **settings).untimed(), module, data))
    (whole, module, data), (resumed, again, data_again) = runs
    assert resumed == whole[3:]
    assert same(snapshot(module), snapshot(again))
    assert str(data.state_dict()) == str(data_again.state_dict())
    counts = [used[0]["count"].item() for used in data.state_dict()["scaling"].values()]
    assert counts == [32, 32]  # four iterations of eight; no evaluation among them
    assert len({row["objective/weight_words"] for row in whole[1:]}) > 1
    kept = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)["RolloutDataModule"]
    assert kept["scaling"]["b"][0]["count"] == 16


def test_names_of_metrics():
    task = Letters()
    rows = fit(ppo(task, eval_every=1), watched(task), max_epochs=1).rows
    wanted = {"score", "score_b", "score_words", "gold", "doubt", "size", "size_doubt"}
    for row, group in ((rows[1], "objective"), (rows[0], "eval"), (rows[1], "eval")):
        assert {f"{group}/{name}" for name in wanted} <= set(row)
        assert row[f"{group}/score_words"] == row[f"{group}/size"] == 2 * row[f"{group}/doubt"]
        assert row[f"{group}/score_b"] == row[f"{group}/gold"]
        assert row[f"{group}/score"] == pytest.approx(
            row[f"{group}/score_b"] - 0.1 * row[f"{group}/score_words"], abs=1e-6
        )
    assert rows[1]["objective/weight_b"] == rows[1]["objective/weight_words"] == 0.5  # both 1, over 1 + 1
    assert not {name for row in rows for name in row if name.startswith("eval/weight")}


def test_part_and_monitor_that_report_the_same_name_are_refused():
    task = Letters()
    data = rollouts(task, CompositeReward({"gold": TaskReward(), "c": Length()}), monitors={"doubt": Length()})
    with pytest.raises(UserError, match="doubt is measured twice; expected other names of monitors, objectives or"):
        fit(ppo(task), data, max_epochs=1)


class Means(Length):
    """Measures what would be ``length_mean`` of a monitor called ``length``."""

    def judge(self, prompts, responses):
        words = super().judge(prompts, responses).scores
        return Judgement(words, measures={"mean": words})


@pytest.mark.parametrize(
    ("reward", "monitors", "name"),
    [
        (Means(), {"length": Means()}, "length_mean is measured twice"),
        (CompositeReward({"length": Means(), "c": Means()}), {}, "reward source CompositeReward measures length_mean"),
    ],
)
def test_measures_of_parts_and_monitors_never_replace_another_metric(reward, monitors, name):
    task = Letters()
    with pytest.raises(UserError, match=name):
        fit(ppo(task), rollouts(task, reward, monitors=monitors), max_epochs=1)


def test_advantages_come_from_what_is_scaled():
    """PPO's rewards in a run with a z-score, where the KL costs nothing."""
    task, seen = Letters(), Iterations()
    rows = fit(ppo(task), rollouts(task, scaling=ZScore()), seen, max_epochs=2).rows
    for scored, row in zip(seen.scored, rows[1:], strict=True):
        np.testing.assert_allclose(scored.rewards.sum(-1), z(scored.scores.numpy()), atol=1e-6)
        # the price of the KL is all that remains of the mean
        price = row["kl_control/coef"] * row["objective/kl_ref_sequence"]
        assert row["objective/reward"] == pytest.approx(-price, abs=1e-6)


def test_dynamic_sampling_counts_the_first_rollout_of_an_iteration_once():
    task, draws = Letters(), []
    data = group_rollouts(task, scaling=RunningZScore())
    collect = data.collect

    def recorded(policy, iteration, attempt=0):
        draws.append((attempt, collect(policy, iteration, attempt)))
        return draws[-1][1]

    data.collect = recorded
    fit(GRPO(task, tiny(), dynamic_sampling=3, eval_every=1), data, max_epochs=3)
    assert len(draws) > 3
    seen = []
    for attempt, scored in draws:
        seen += [] if attempt else scored.scores.tolist()
        expected = (scored.scores.numpy() - np.mean(seen)) / np.std(seen)
        np.testing.assert_allclose(scored.rewards.sum(-1), expected, atol=1e-5)
    assert data.handling.state_dict()["scaling"]["score"][0]["count"] == 3 * 8


def test_gold_with_objectives_does_not_pass_for_a_score_where_nobody_trains_on_it():
    class Judged(Letters):
        def gold(self):
            return CompositeReward({"b": CountsB(), "words": Length()})

    task = Judged()
    module = DPO(task, tiny(), max_new_tokens=4, eval_prompts=2, log_every=1)
    row = fit(module, PreferenceDataModule(task, batch_size=4), max_steps=1).rows[0]
    assert {"eval/gold", "eval/gold_b", "eval/gold_words", "eval/win_rate"} <= set(row)
    assert not {name for name in row if name.startswith("eval/score")}

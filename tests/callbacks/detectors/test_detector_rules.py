"""Each rule on rows made by hand: what is warned of, when, and what is not."""

import math

import numpy as np
import pytest
import torch

from rlhf_lightning.callbacks.detectors import (
    Detector,
    Forgetting,
    Instability,
    ModeCollapse,
    RewardHacking,
    Standstill,
    default_detectors,
    replay,
)
from rlhf_lightning.callbacks.detectors.detector import CALM
from rlhf_lightning.callbacks.detectors.history import REMEMBERED, Series, noise
from rlhf_lightning.errors import UserError


def rows(count=40, **metrics):
    """Rows 1, 2, …: a metric is a function of the iteration, or a list; ``__`` stands for the slash."""
    values = {name.replace("__", "/"): value for name, value in metrics.items()}
    return [
        {"iteration": n} | {name: v(n) if callable(v) else v[n - 1] for name, v in values.items()}
        for n in range(1, count + 1)
    ]


def warned_at(detector, history):
    return [at for at, _ in replay(detector, history)]


def rise_and_fall(n):
    """0.05 up each iteration to 1 at the 20th, and down again."""
    return 1 - 0.05 * abs(n - 20)


# -- the monitor -----------------------------------------------------------------------------------------------


def test_hacking_warns_when_the_monitor_turns_and_the_score_does_not():
    history = rows(objective__score=lambda n: n / 10, objective__heldout_score=rise_and_fall)
    # Neighbours differ by 0.05, hence noise 1.4826 · 0.05 / √2 = 0.0524, error of a median of five √(π/10) · 0.0524
    # = 0.0294, four errors of a difference 4 · √2 · 0.0294 = 0.166. Medians of five: 0.95 at the peak (iterations 21
    # to 23), 0.90 at 24, 0.85, 0.80 at 26 (0.15 below), 0.75 at 27 (0.20 below).
    ((at, message),) = replay(RewardHacking(), history)
    assert at == 27
    assert "objective/heldout_score fell from 0.95 at iteration 21 to 0.75" in message
    assert "objective/score went from 1.9 to 2.5" in message
    assert "; try a larger model.init_args.kl.coef" in message


def test_hacking_is_quiet_where_score_and_monitor_fall_together():
    assert not replay(RewardHacking(), rows(objective__score=rise_and_fall, objective__heldout_score=rise_and_fall))


def test_hacking_monitor_has_the_name_that_is_given():
    history = rows(objective__score=lambda n: n / 10, objective__second=rise_and_fall)
    assert warned_at(RewardHacking(monitor="second"), history) == [27]
    assert not replay(RewardHacking(), history)


def test_hacking_is_quiet_where_the_monitor_only_fluctuates():
    alarms = 0
    for seed in range(20):
        wobble = 1 + 0.1 * np.random.default_rng(seed).standard_normal(100)
        alarms += bool(
            replay(RewardHacking(), rows(100, objective__score=lambda n: n / 10, objective__heldout_score=wobble))
        )
    assert alarms <= 1


def test_hacking_cannot_be_told_to_look_at_gold():
    with pytest.raises(UserError, match="cannot look at objective/gold"):
        RewardHacking(monitor="gold")
    for detector in default_detectors():
        assert not [name for name in detector.history if "gold" in name]


# -- disagreement, KL and length -------------------------------------------------------------------------------


def test_hacking_warns_when_an_ensemble_disagrees():
    # 1.6 · 0.5 = 0.8: three of the last five are above it at iteration 13
    history = rows(objective__disagreement=lambda n: 0.5 if n <= 10 else 0.81)
    assert warned_at(RewardHacking(), history) == [13]
    assert not replay(RewardHacking(disagreement_factor=None), history)


def doubling(n):
    """0.01 nats, twice that every five iterations: a factor of 2.3 in six."""
    return 0.01 * 2 ** (n / 5)


def test_hacking_warns_of_a_kl_that_doubles_while_the_entropy_does_not_fall():
    # the median of five is that of two iterations before: 0.08 = 0.01 · 2³ at 15, seen at 17
    history = rows(objective__kl_ref_token=doubling, objective__entropy=lambda n: 0.5)
    ((at, message),) = replay(RewardHacking(), history)
    assert (at, "grew from 0.035 to 0.08 nats per token" in message) == (17, True)


@pytest.mark.parametrize(
    ("kl", "entropy"),
    [
        (lambda n: 0.1 * (1 - math.exp(-n / 10)), lambda n: 0.5),  # it settles
        (lambda n: 0.4 if n in (20, 21) else 0.05, lambda n: 0.5),  # two iterations gone astray
        (lambda n: 0.07 + 0.002 * n, lambda n: 0.5),  # high in the end, and hardly growing
        (lambda n: 0.005 if n < 10 else 0.2, lambda n: 0.5),  # it was nothing before: the policy has begun to learn
        (doubling, lambda n: 0.5 - 0.01 * n),  # it becomes surer of what it does
    ],
    ids=["settles", "spike", "slow", "starts", "surer"],
)
def test_hacking_is_quiet_about_other_growth_of_the_kl(kl, entropy):
    assert not replay(RewardHacking(), rows(objective__kl_ref_token=kl, objective__entropy=entropy))


def test_hacking_stays_in_trouble_until_the_kl_comes_back():
    detector = RewardHacking()
    course = {"objective__kl_ref_token": lambda n: min(doubling(n), 0.5) if n < 80 else 0.01}
    said = [detector.observe(row) for row in rows(79, **course, objective__entropy=lambda n: 0.5)]
    assert sum(message is not None for message in said) == 1
    assert detector.in_trouble
    for row in rows(100, **course, objective__entropy=lambda n: 0.5)[79:]:
        detector.observe(row)
    assert not detector.in_trouble


def test_hacking_warns_of_ever_longer_responses_but_not_of_longer_episodes():
    # 1.5 · 10 = 15 < 16: the median of five is 16 at iteration 13
    longer = {"rollout__length_mean": lambda n: 10.0 if n <= 10 else 16.0}
    assert warned_at(RewardHacking(), rows(**longer, objective__kl_ref_token=lambda n: 0.1)) == [13]
    assert not replay(RewardHacking(), rows(**longer))


# -- the others ------------------------------------------------------------------------------------------------


def test_collapse_warns_of_lost_variety():
    # 0.39 is less than 0.4 of 1: the median of five is 0.39 at iteration 13
    history = rows(rollout__distinct_2=lambda n: 1.0 if n <= 10 else 0.39)
    ((at, message),) = replay(ModeCollapse(), history)
    assert (at, "rollout/distinct_2 fell from 1 to 0.39, 39% of where it began" in message) == (13, True)
    assert not replay(ModeCollapse(distinct=0.38), history)


def test_collapse_of_entropy_counts_on_text_only():
    entropy = {"objective__entropy": lambda n: 2.0 / n}
    # the median of five is that of two iterations before: 2 / 11 is the first below 0.1 · 2
    assert warned_at(ModeCollapse(), rows(**entropy, rollout__distinct_2=lambda n: 0.5)) == [13]
    assert not replay(ModeCollapse(), rows(**entropy))


def test_forgetting_warns_of_a_perplexity_that_has_grown():
    history = [{"iteration": n, "eval/perplexity": value} for n, value in [(0, 2.0), (10, 5.0), (20, 5.1), (30, 9.0)]]
    assert warned_at(Forgetting(), history) == [20]
    assert warned_at(Forgetting(), [history[0], {"iteration": 10, "eval/perplexity": math.inf}]) == [10]
    assert not replay(Forgetting(), [history[0], {"iteration": 10, "eval/perplexity": math.nan}])


@pytest.mark.parametrize(("metric", "limit"), [("policy/kl_old", 0.1), ("policy/ratio_max", 1e5)])
def test_instability_warns_when_two_of_three_updates_go_too_far(metric, limit):
    once = [{"iteration": n, metric: 2 * limit if n == 5 else limit / 2} for n in range(1, 20)]
    twice = [{"iteration": n, metric: 2 * limit if n in (5, 7) else limit / 2} for n in range(1, 20)]
    assert not replay(Instability(), once)
    assert warned_at(Instability(), twice) == [7]


def test_instability_warns_of_jumping_gradients():
    jump = rows(policy__grad_norm=lambda n: 1.0 if n <= 30 else 11.0)
    assert warned_at(Instability(), jump) == [32]
    small = rows(policy__grad_norm=lambda n: 5.0 if n <= 5 else 0.01 if n <= 30 else 1.0)
    assert not replay(Instability(), small)  # a hundredfold, and less than where the run began


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RewardHacking(disagreement_factor=1.0), r"RewardHacking\.disagreement_factor is 1\.0"),
        (lambda: ModeCollapse(distinct=1.5), r"ModeCollapse\.distinct is 1\.5"),
        (lambda: Forgetting(factor=0.5), r"Forgetting\.factor is 0\.5"),
        (lambda: Instability(before=0), r"Instability\.before is 0"),
        (lambda: Instability(before=REMEMBERED), r"Instability\.before is 256; expected at least 1 and at most 253"),
    ],
)
def test_detectors_refuse_thresholds_that_make_no_sense(make, message):
    with pytest.raises(UserError, match=message):
        make()


# -- episodes --------------------------------------------------------------------------------------------------


class Above(Detector):
    """Finds something where x is above 1."""

    advice = "less"

    def __init__(self, stop: bool = False) -> None:
        super().__init__(("x",), stop=stop)

    def finding(self, history):
        return f"x is {history['x'].values[-1]:g}" if history["x"].values[-1] > 1 else None


def test_detector_warns_once_per_episode():
    # flickers in the first episode; the second begins after CALM rows without a finding
    high = {3, 4, 6, 9, 9 + CALM, 9 + CALM + CALM + 1}
    history = rows(60, x=lambda n: 2.0 if n in high else 0.0)
    assert warned_at(Above(), history) == [3, 9 + CALM + CALM + 1]


def test_replay_leaves_the_detector_as_it_is():
    detector = Above()
    first, second = (replay(detector, rows(x=lambda n: float(n))) for _ in range(2))
    assert first == second == [(2, "x is 2; try less")]
    assert not len(detector.history["x"])


def every_kind(seed=0):
    """Rows in which every detector warns at some time."""
    wobble = np.random.default_rng(seed).uniform(0.99, 1.01, 41)
    return rows(
        objective__score=lambda n: n / 10 * wobble[n],
        objective__heldout_score=lambda n: rise_and_fall(n) * wobble[n],
        rollout__distinct_2=lambda n: wobble[n] / n,
        eval__perplexity=lambda n: 1.5 + n / 8,
        policy__kl_old=lambda n: 0.004 * n,
        policy__steps=lambda n: 10,
        policy__weight_change=lambda n: min(n, 5) / 100,
    )


def test_resumed_detectors_warn_of_the_same(tmp_path):
    history = every_kind()
    for detector in default_detectors():
        (whole,) = replay(detector, history)
        for cut in (3, whole[0] - 1, whole[0], whole[0] + 1):
            first, second = type(detector)(), type(detector)()
            said = [first.observe(row) for row in history[:cut]]
            torch.save(first.state_dict(), tmp_path / "state")
            second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
            said += [second.observe(row) for row in history[cut:]]
            assert [(n, message) for n, message in enumerate(said, 1) if message] == [whole]


def test_default_detectors_make_way_for_those_that_are_given():
    kinds = [type(one) for one in default_detectors(besides=[Forgetting(factor=9.0), Above()])]
    assert kinds == [RewardHacking, ModeCollapse, Instability, Standstill]


# -- series ----------------------------------------------------------------------------------------------------


def test_series_levels_are_medians_of_what_is_there():
    series = Series()
    for at, value in enumerate([5.0, 1.0, math.nan, 3.0, 100.0, 2.0, 4.0]):
        series.add(at, value)
    assert series.values == [5.0, 1.0, 3.0, 100.0, 2.0, 4.0]
    assert [series.level(back) for back in (5, 4, 3, 2, 1, 0)] == [5.0, 3.0, 3.0, 4.0, 3.0, 3.0]
    assert (series.start(), series.now(), series.now(1)) == (3.0, 3.0, 4.0)


def test_series_of_any_length_keeps_as_much():
    series = Series()
    for at in range(1000):
        series.add(at, float(at))
    assert (len(series), series.start(), series.now()) == (1000, 2.0, 997.0)
    assert (len(series.values), series.values[0], series.at[0]) == (REMEMBERED, 1000 - REMEMBERED, 1000 - REMEMBERED)


def test_noise_is_the_standard_deviation_whatever_the_trend():
    x = np.random.default_rng(0).normal(0, 0.3, 4000)
    for trend in (np.zeros(4000), np.linspace(0, 20, 4000), np.where(np.arange(4000) > 900, 50.0, 0.0)):
        assert noise(list(x + trend)) == pytest.approx(0.3, rel=0.05)

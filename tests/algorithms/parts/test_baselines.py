"""What REINFORCE subtracts, by hand."""

import re

import pytest
import torch

from rlhf_lightning.__main__ import main
from rlhf_lightning.algorithms.parts.baselines import (
    Baseline,
    BatchMean,
    MovingAverage,
    NoBaseline,
    ScalarBaseline,
    ValueBaseline,
)
from rlhf_lightning.algorithms.parts.critic import Critic, CriticOptions, ValueFunction
from rlhf_lightning.errors import UserError

FIRST, SECOND, THIRD = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0.0, 1.0]), torch.tensor([-3.0, 1.0])


def judged(baseline, *batches):
    """What each batch is compared with, in order."""
    values = []
    for batch in batches:
        values.append(baseline.value(batch).item())
        baseline.update(batch)
    return values


def test_no_baseline_is_zero():
    assert judged(NoBaseline(), FIRST, SECOND) == [0, 0]


def test_batch_mean_is_that_of_the_batch_itself():
    assert judged(BatchMean(), FIRST, SECOND) == [3, 0.5]


def test_moving_average_is_that_of_the_batches_before():
    # means 3, 0.5, −1; weights ½ of the newest, ¼ of the one before, ⅛ of the first, over their sum
    expected = [0, 3, (0.5 * 0.5 + 0.25 * 3) / 0.75, (0.5 * -1 + 0.25 * 0.5 + 0.125 * 3) / 0.875]
    assert judged(MovingAverage(decay=0.5), FIRST, SECOND, THIRD, FIRST) == pytest.approx(expected)


def test_moving_average_without_memory_is_the_last_batch():
    assert judged(MovingAverage(decay=0.0), FIRST, SECOND, THIRD) == [0, 3, 0.5]


def test_moving_average_of_a_constant_is_the_constant():
    # from the second batch on, however much is kept
    constant = torch.full((4,), 7.0)
    assert judged(MovingAverage(decay=0.99), *[constant] * 5) == pytest.approx([0, 7, 7, 7, 7])


def test_moving_average_does_not_change_when_asked():
    baseline = MovingAverage()
    baseline.update(FIRST)
    assert baseline.value(SECOND) == baseline.value(THIRD) == 3


@pytest.mark.parametrize("baseline", [NoBaseline(), BatchMean(), MovingAverage()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_are_scalars_of_the_returns_precision(baseline, dtype):
    value = baseline.value(FIRST.to(dtype))
    assert value.shape == ()
    assert value.dtype == dtype


def test_state_is_restored():
    first, second = MovingAverage(0.5), MovingAverage(0.5)
    first.update(FIRST)
    state = first.state_dict()
    assert all(type(value) is float for value in state.values())
    second.load_state_dict(state)
    assert judged(second, SECOND, THIRD) == judged(first, SECOND, THIRD)


@pytest.mark.parametrize("baseline", [NoBaseline(), BatchMean(), ValueBaseline()])
def test_the_others_keep_nothing(baseline):
    assert baseline.state_dict() == {}
    baseline.load_state_dict({})


def test_only_a_value_baseline_has_a_critic():
    settings = {"gamma": 0.9, "microbatch_size": 3}
    critic = ValueBaseline(CriticOptions(lr=0.5)).build_critic(**settings)
    assert isinstance(critic, Critic)
    assert critic.options == CriticOptions(lr=0.5)
    assert (critic.gamma, critic.lam, critic.microbatch_size) == (0.9, 1.0, 3)
    for baseline in (NoBaseline, BatchMean, MovingAverage):
        assert type(baseline().build_critic(**settings)) is ValueFunction
        with pytest.raises(TypeError, match="critic"):
            baseline(critic=CriticOptions())


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0, float("nan")])
def test_bad_decay_is_named_in_one_line(decay):
    with pytest.raises(UserError, match=r"^baseline\.decay [^\n]*below 1[^\n]*$"):
        MovingAverage(decay)


@pytest.mark.parametrize("base", [Baseline, ScalarBaseline])
def test_bases_are_not_baselines(base):
    with pytest.raises(TypeError, match="abstract"):
        base()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--model.init_args.critic.lr", "1"], r"unknown key model\.init_args\.critic\.lr: REINFORCE has no such"),
        (
            ["--model.init_args.baseline", "BatchMean", "--model.init_args.baseline.init_args.critic.lr", "1"],
            r"unknown key model\.init_args\.baseline\.init_args\.critic\.lr: BatchMean has no such",
        ),
    ],
)
def test_critic_where_there_is_none_is_refused_in_one_line(arguments, line, capsys):
    assert (
        main(
            [
                "fit",
                "--config",
                "configs/tasks/assistant.yaml",
                "--config",
                "configs/algorithms/reinforce.yaml",
                *arguments,
            ]
        )
        == 2
    )
    printed = capsys.readouterr().err.strip()
    assert re.match(rf"(error: )?{line}", printed)
    assert "\n" not in printed

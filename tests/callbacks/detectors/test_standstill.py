"""A run whose weights stay where they are is told so, with the reason."""

import math

import pytest
from training_helpers import Letters, fit, tiny

from rlhf_lightning.algorithms.sft import SFT
from rlhf_lightning.callbacks.detectors import Standstill, replay
from rlhf_lightning.data.demonstrations import DemonstrationDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.training.optimization import Optimization


def steps(count=300, every=10, **metrics):
    """Rows of a supervised run; ``__`` stands for the slash, and a function is of the step."""
    metrics = {"policy/weight_change": 0.0, "lr": 0.1} | {n.replace("__", "/"): v for n, v in metrics.items()}
    return [
        {"step": step} | {name: value(step) if callable(value) else value for name, value in metrics.items()}
        for step in [1, *range(every, count + 1, every)]
    ]


def test_a_hundred_steps_without_change_are_told_once():
    ((at, message),) = replay(Standstill(), steps(policy__grad_norm=0.0))
    assert at == 110  # since the row of step 1
    assert message.startswith("the weights of the policy have not changed since 1: its gradient is 0; try ")


def test_weights_that_move_slowly_are_quiet():
    assert not replay(Standstill(), steps(policy__weight_change=lambda step: 1e-9 * step, policy__grad_norm=1.0))


def test_weights_of_which_only_those_at_zero_moved_stand_still():
    history = steps(policy__weight_change=lambda step: 1e-14 * step, policy__grad_norm=1.0)
    assert [at for at, _ in replay(Standstill(), history)] == [110]


def test_weights_that_stop_moving_are_told():
    history = steps(policy__weight_change=lambda step: min(step, 150) / 1e4, policy__grad_norm=0.0)
    ((at, message),) = replay(Standstill(), history)
    assert at == 250
    assert "since 150" in message


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({"policy__grad_norm": 2.0, "lr": 0.0}, "the learning rate is 0, and its gradient's norm 2;"),
        ({"policy__grad_norm": 2.0, "lr": 1e-12}, "norm 2 at a learning rate of 1e-12, steps are too small for the"),
        ({}, "no finite gradient was measured"),
        ({"policy__grad_norm": 2.0, "trust_region__step_size": 0.0}, "each step of the trust region is rejected"),
    ],
)
def test_the_reason_is_the_one_that_the_numbers_tell(metrics, reason):
    ((_, message),) = replay(Standstill(), steps(**metrics))
    assert reason in message


def test_every_network_is_looked_at():
    history = steps(
        reward_model_7__weight_change=lambda step: 0.1 if step > 20 else step / 200, policy__weight_change=math.nan
    )
    ((at, message),) = replay(Standstill(), history)
    assert (at, "weights of the reward_model_7" in message) == (120, True)


def test_iterations_count_as_the_steps_that_they_take():
    row = {"policy/weight_change": 0.0, "policy/grad_norm": 0.0}
    several = [{"iteration": n, "policy/steps": 16.0, **row} for n in range(1, 20)]
    single = [{"iteration": n, **row} for n in range(1, 120)]
    assert [at for at, _ in replay(Standstill(), several)] == [8]  # 7 · 16 steps since the first row
    assert [at for at, _ in replay(Standstill(), single)] == [101]


def test_evaluations_in_between_are_no_rows_of_training():
    history = [row for step in steps(policy__grad_norm=0.0) for row in (step, {"step": step["step"], "eval/loss": 1.0})]
    assert [at for at, _ in replay(Standstill(), history)] == [110]


def test_too_few_steps_are_refused():
    with pytest.raises(UserError, match=r"Standstill\.steps is 0; expected at least 1"):
        Standstill(steps=0)


def test_a_learning_rate_below_the_precision_of_the_weights_is_seen(caplog):
    task = Letters()
    module = SFT(task, tiny(), Optimization(lr=1e-30), log_every=1)
    fit(module, DemonstrationDataModule(task, batch_size=4), Standstill(steps=5), max_steps=7, max_epochs=-1)
    (record,) = [record for record in caplog.records if record.name.endswith("detector")]
    assert "Standstill at step 6: the weights of the policy have not changed since 1" in record.getMessage()
    assert "at a learning rate of 1e-30, steps are too small for the precision of its weights" in record.getMessage()

"""The distributions of W&B's sweeps, by the values at chosen quantiles."""

import math

import optuna
import pytest
from scipy.stats import kstest, loguniform, norm

from rlhf_lightning.errors import UserError
from rlhf_lightning.sweep.distributions import Constant, Real, Whole, read_distribution

PHI_OF_1 = 0.8413447460685429
"""Share of a normal distribution below one standard deviation."""


def drawn(settings, value):
    """What is drawn where Optuna draws ``value``."""
    return read_distribution(settings, "x").draw(optuna.trial.FixedTrial({"x": value}), "x")


@pytest.mark.parametrize(
    ("settings", "low", "high"),
    [
        ({"min": 1, "max": 4}, 1, 4),
        ({"min": 1, "max": 4.5}, 1, 4.5),
        ({"distribution": "uniform", "min": 1, "max": 4}, 1, 4),
        ({"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2}, 1e-4, 1e-2),
        ({"distribution": "log_uniform", "min": 0, "max": 1}, 1, math.e),
        ({"distribution": "inv_log_uniform", "min": 0, "max": 1}, 1 / math.e, 1),
        ({"distribution": "inv_log_uniform_values", "min": 0.5, "max": 2.0}, 0.5, 2.0),
    ],
)
def test_ranges_end_where_they_are_said_to(settings, low, high):
    one = read_distribution(settings, "x")
    assert one.ends() == pytest.approx([low, high])
    assert isinstance(one, Whole) == (settings == {"min": 1, "max": 4})
    assert one.logarithmic == ("log" in settings.get("distribution", ""))


@pytest.mark.parametrize(
    ("settings", "u", "value"),
    [
        ({"distribution": "normal", "mu": 2, "sigma": 3}, PHI_OF_1, 5),
        ({"distribution": "normal"}, 0.5, 0),
        ({"distribution": "log_normal", "mu": 0, "sigma": 2}, PHI_OF_1, math.exp(2)),
        ({"distribution": "beta", "a": 1, "b": 1}, 0.3, 0.3),
        ({"distribution": "beta", "a": 2, "b": 1}, 0.25, 0.5),  # F(x) = x²
        ({"distribution": "q_uniform", "min": 0, "max": 10, "q": 2.5}, 0.6, 5.0),
        ({"distribution": "q_uniform", "min": 0, "max": 10}, 0.64, 6),
        ({"distribution": "q_log_uniform_values", "min": 1, "max": 100, "q": 4}, 0.25, 4),  # √10 is 3.16
        ({"distribution": "q_log_uniform", "min": 0, "max": math.log(100), "q": 3}, 0.5, 9),
        ({"distribution": "q_normal", "mu": 0, "sigma": 10, "q": 4}, PHI_OF_1, 8),
        ({"distribution": "q_log_normal", "q": 0.5}, PHI_OF_1, 2.5),  # e is 2.718
        ({"distribution": "q_beta", "a": 1, "b": 1, "q": 0.25}, 0.6, 0.5),
        ({"values": ["a", "b"], "probabilities": [0.25, 0.75]}, 0.2, "a"),
        ({"values": ["a", "b"], "probabilities": [0.25, 0.75]}, 0.3, "b"),
        ({"values": ["a", "b"], "probabilities": [0.25, 0.75]}, 1.0, "b"),
    ],
)
def test_quantiles(settings, u, value):
    assert drawn(settings, u) == (value if isinstance(value, str) else pytest.approx(value))


@pytest.mark.parametrize(
    ("settings", "law"),
    [
        ({"distribution": "normal", "mu": 1.0, "sigma": 2.0}, norm(1, 2)),
        ({"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-1}, loguniform(1e-4, 1e-1)),
    ],
)
def test_random_draws_have_the_distribution(settings, law):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    one = read_distribution(settings, "x")
    values = [one.draw(study.ask(), "x") for _ in range(400)]
    assert kstest(values, law.cdf).pvalue > 0.01


def test_values_may_be_anything():
    clip = {"class_path": "Clip", "init_args": {"clip_range": 0.1}}
    one = read_distribution({"values": [None, True, clip, [0.8, 0.95]]}, "x")
    assert one.ends() == [None, True, clip, [0.8, 0.95]]
    assert one.grid() == ["None", "True", str(clip), "[0.8, 0.95]"]
    assert one.draw(optuna.trial.FixedTrial({"x": str(clip)}), "x") == clip


def test_a_constant_is_not_drawn():
    one = read_distribution({"value": None}, "x")
    trial = optuna.create_study().ask()
    assert isinstance(one, Constant)
    assert one.draw(trial, "x") is None
    assert trial.params == {}


def test_whole_numbers_and_choices_have_a_grid():
    assert read_distribution({"min": 2, "max": 4}, "x").grid() == [2, 3, 4]
    assert Real(0, 1, log=False).grid() is None
    assert read_distribution({"distribution": "normal"}, "x").grid() is None


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"min": 1}, "x: expected values, value, or min and max"),
        ({"distribution": "unifrom", "min": 0, "max": 1}, "x: unknown distribution 'unifrom'; did you mean uniform?"),
        ({"distribution": "uniform", "min": 0}, "x: uniform needs max"),
        ({"min": 0, "max": 1, "step": 2}, "x: int_uniform has no setting 'step'; it takes min, max"),
        ({"min": "1e-5", "max": 1}, "x.min: expected a number, got '1e-5'; YAML takes 1e-5 for text: write 1.0e-5"),
        ({"min": 0.1, "max": True}, "x.max: expected a number, got True"),
        ({"min": 2.0, "max": 1.0}, "x: min is 2.0 and max 1.0; expected min below max"),
        ({"distribution": "log_uniform_values", "min": 0, "max": 1}, "x.min: expected more than 0 on a logarithmic"),
        ({"distribution": "int_uniform", "min": 0, "max": 1.5}, "x: int_uniform takes whole numbers, got 0 and 1.5"),
        ({"distribution": "q_normal", "q": 0}, "x.q: expected more than 0, got 0"),
        ({"distribution": "normal", "sigma": -1}, "x.sigma: expected more than 0, got -1"),
        ({"values": []}, "x.values: expected a list of values, got []"),
        ({"values": 3}, "x.values: expected a list of values, got 3"),
        ({"values": [1, 2, 1]}, "x.values: 1 is given twice"),
        ({"values": [1, 2], "probabilities": [1]}, "x.probabilities: expected 2 numbers, one for each value"),
        ({"values": [1, 2], "probabilities": [0.5, 0.6]}, "x.probabilities: expected numbers from 0 that sum to 1"),
    ],
)
def test_wrong_settings_are_one_line(settings, line):
    with pytest.raises(UserError) as refused:
        read_distribution(settings, "x")
    assert str(refused.value).startswith(line)

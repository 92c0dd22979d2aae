"""Search spaces: what is drawn, what stands on the command line, and what is wrong with one."""

import optuna
import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.sweep.search import METHODS, Halving, Search
from rlhf_lightning.sweep.space import option_words, read_space

NESTED = {
    "lr": {"min": 0.1, "max": 0.2},
    "model": {"parameters": {"init_args": {"parameters": {"a": {"values": [1, 2]}}}}},
}


def test_nested_parameters_are_one_value():
    space = read_space(NESTED, "x")
    assert list(space.distributions) == ["lr", "model.init_args.a"]
    trial = optuna.trial.FixedTrial({"lr": 0.15, "model.init_args.a": "2"})
    assert option_words(space.suggest(trial)) == ["--lr=0.15", "--model={'init_args': {'a': 2}}"]


def test_words_are_those_of_an_agent():
    """W&B's own function writes the same."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    values = {"a.b": None, "c": True, "d": 1e-05, "e": [0.8, 0.95], "f": {"class_path": "X", "init_args": {"g": "h"}}}
    given = {"args": {key: {"value": value} for key, value in values.items()}}
    assert option_words(values) == create_sweep_command_args(given)["args"]


def test_extremes_are_both_ends_and_every_choice():
    space = read_space({"a": {"min": 1, "max": 9}, "b": {"values": ["x", "y", "z"]}, "c": {"value": 0}}, "x")
    assert list(space.extremes()) == [
        ("", {"a": 1, "b": "x", "c": 0}),
        ("a", {"a": 9, "b": "x", "c": 0}),
        ("b", {"a": 1, "b": "y", "c": 0}),
        ("b", {"a": 1, "b": "z", "c": 0}),
    ]


def test_a_grid_is_visited_whole_and_once():
    space = read_space({"a": {"min": 1, "max": 3}, "b": {"values": [None, True]}, "c": {"value": 0}}, "x")
    assert space.size() == 6
    search = Search(space, "grid", "m", "maximize")
    study = optuna.create_study()
    seen = []
    for number in range(6):
        study.sampler = search.sampler(number)
        trial = study.ask()
        seen.append(tuple(space.suggest(trial).values()))
        study.tell(trial, 0.0)
    assert sorted(seen, key=str) == sorted([(a, b, 0) for a in (1, 2, 3) for b in (None, True)], key=str)


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_draws_depend_on_the_trial_s_number_alone(method):
    """So a worker that is killed while it draws is followed by one that draws the same."""
    space = read_space({"a": {"min": 0.0, "max": 1.0}, "b": {"distribution": "normal"}}, "x")

    def drawn(number, seed=0):
        study = optuna.create_study(sampler=Search(space, method, "m", "maximize", seed=seed).sampler(number))
        return tuple(space.suggest(study.ask()).values())

    assert drawn(3) == drawn(3)
    assert len({drawn(number) for number in range(20)} | {drawn(3, seed=1)}) == 21


def test_bayes_finds_the_maximum_of_a_parabola():
    space = read_space({"x": {"min": -10.0, "max": 10.0}}, "x")
    search = Search(space, "bayes", "m", "maximize")
    study = optuna.create_study(direction="maximize")
    for number in range(40):
        study.sampler = search.sampler(number)
        trial = study.ask()
        study.tell(trial, -((space.suggest(trial)["x"] - 3) ** 2))
    assert study.best_params["x"] == pytest.approx(3, abs=0.5)


def test_halving_keeps_the_best_third_of_those_that_have_come_so_far():
    """Judged at the values numbered 1, 3, 9 from 0; by then six trials have shown 0, 1, …, 5."""
    study = optuna.create_study(direction="maximize", pruner=Halving(1, 3).pruner())
    given_up = []
    for level in (5, 4, 3, 2, 1, 0):
        trial = study.ask()
        trial.report(100.0, 0)  # not judged yet
        assert not trial.should_prune()
        trial.report(level, 1)
        if trial.should_prune():
            given_up.append(level)
    assert given_up == [4, 3, 2, 1, 0]  # one in three of n ≤ 5 is one; of 6 two, and 0 is not among them


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        ([], "x: expected a mapping of keys to their values"),
        ({}, "x: expected a mapping of keys to their values"),
        ({"lr": 0.1}, "x.lr: expected {value: …}, {values: […]} or {min: …, max: …}"),
        ({"a.b": {"value": 1}, "a": {"parameters": {"b": {"value": 2}}}}, "x.a.b is given twice"),
        ({"a": {"min": 2, "max": 1}, "b": {"values": []}}, "x.a: min is 2 and max 1"),
    ],
)
def test_wrong_spaces_are_one_line(parameters, line):
    with pytest.raises(UserError) as refused:
        read_space(parameters, "x")
    assert str(refused.value).startswith(line)
    assert ("x.b.values" in str(refused.value)) == ("b" in parameters)  # all mistakes at once


def test_every_method_of_wandb_is_known():
    assert set(METHODS) == {"grid", "random", "bayes"}

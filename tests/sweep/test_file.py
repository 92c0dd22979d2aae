"""Sweep files: what is read of them, the command line of a trial, and what is refused."""

import pytest
import yaml

from rlhf_lightning.errors import UserError
from rlhf_lightning.sweep.file import read_sweep
from rlhf_lightning.sweep.search import Halving

SWEEP = {
    "program": "rlhf_lightning",
    "command": ["${env}", "A=1", "${interpreter}", "-m", "${program}", "fit", "--config", "x.yaml", "${args}", "--b=2"],
    "method": "random",
    "metric": {"name": "eval/score", "goal": "maximize"},
    "parameters": {"lr": {"min": 0.1, "max": 0.2}},
}


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Reads the sweep with some keys changed; those that are None are left out."""
    monkeypatch.chdir(tmp_path)

    def write_and_read(**changes):
        content = {key: value for key, value in {**SWEEP, **changes}.items() if value is not None}
        (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
        return read_sweep("s.yaml")

    return write_and_read


def test_a_trial_s_values_stand_where_args_stands(read):
    file = read()
    assert file.command({"lr": 0.1, "c": None}, ["--d=3"]) == [
        *("fit", "--config", "x.yaml", "--lr=0.1", "--c=None", "--b=2", "--d=3"),
    ]
    assert file.environment == {"A": "1"}
    separate = read(command=["python", "-m", "rlhf_lightning", "fit", "${args_no_equals}"])
    assert separate.command({"lr": 0.1}) == ["fit", "--lr", "0.1"]


def test_variables_are_put_in_as_wandb_does(read, monkeypatch):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command

    monkeypatch.setenv("SFT_RUN", "runs/sft")
    words = ["python", "-m", "rlhf_lightning", "fit", "--c=${envvar:SFT_RUN}/x", "${envvar:NOT_SET}", "${args}"]
    assert read(command=words).command({}) == create_sweep_command(list(words))[3:-1]


@pytest.mark.parametrize(
    ("early", "halving"),
    [
        (None, None),
        ({"type": "hyperband", "min_iter": 2}, Halving(2, 3)),
        ({"type": "hyperband", "min_iter": 2, "eta": 4}, Halving(2, 4)),
        ({"type": "hyperband", "max_iter": 27, "s": 2}, Halving(3, 3)),  # 27 / 3 / 3; W&B judges at 3 and 9
    ],
)
def test_early_termination(early, halving, read):
    assert read(early_terminate=early).search.halving == halving


def test_goal_and_cap(read):
    assert read(run_cap=7).count == 7
    assert read(metric={"name": "eval/loss"}).search.goal == "minimize"  # W&B's default


def test_sweeps_of_the_package_are_found_anywhere(read):
    assert read_sweep("sweeps/ppo.yaml").search.metric == "eval/gold"
    with pytest.raises(UserError, match=r"^sweeps/pppo\.yaml: no such file; did you mean sweeps/ppo\.yaml"):
        read_sweep("sweeps/pppo.yaml")


RUN = ["python", "-m", "rlhf_lightning", "fit"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"method": "custom"}, "s.yaml: method: expected one of grid, random, bayes, got 'custom'"),
        ({"method": "grid"}, "s.yaml: parameters.lr: a grid needs values, or whole numbers from min to max"),
        ({"metric": None}, "s.yaml: metric: expected the metric of a trial"),
        ({"metric": {"name": "a", "goal": "max"}}, "s.yaml: metric.goal: expected minimize or maximize, got 'max'"),
        ({"metric": {"name": "a", "target": 1}}, "s.yaml: metric.target is not supported; expected name and goal"),
        ({"parameter": {}}, "s.yaml: unknown key parameter; did you mean parameters?"),
        ({"scheduler": {"engine": "ax"}}, "s.yaml: scheduler is not supported here; W&B alone does what it asks for"),
        ({"run_cap": 0}, "s.yaml: run_cap: expected a whole number from 1, got 0"),
        ({"command": None}, "s.yaml: command: expected the words of a command, such as [${env}, python, -m"),
        (
            {"command": ["python", "train.py"]},
            "s.yaml: command: expected it to start with python -m rlhf_lightning fit",
        ),
        ({"command": [*RUN, "--a"]}, "s.yaml: command: expected ${args} once"),
        ({"command": [*RUN, "${args}", "${args}"]}, "s.yaml: command: expected ${args} once"),
        ({"command": [*RUN, "${args_no_boolean_flags}"]}, "s.yaml: command: ${args_no_boolean_flags} is not supported"),
        ({"command": [*RUN, "${args_json}"]}, "s.yaml: command: ${args_json} is not supported; give ${args}"),
        ({"early_terminate": {"type": "envelope"}}, "s.yaml: early_terminate: expected {type: hyperband, min_iter: …}"),
        ({"early_terminate": {"type": "hyperband"}}, "s.yaml: early_terminate: expected min_iter, or max_iter and s"),
        (
            {"early_terminate": {"type": "hyperband", "min_iter": 1, "strict": True}},
            "s.yaml: early_terminate.strict is not supported",
        ),
        (
            {"early_terminate": {"type": "hyperband", "min_iter": 0}},
            "s.yaml: early_terminate.min_iter: expected a whole number from 1, got 0",
        ),
        (
            {"early_terminate": {"type": "hyperband", "min_iters": 1}},
            "s.yaml: early_terminate: unknown key min_iters; did you mean min_iter?",
        ),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 1}}, "s.yaml: early_terminate.eta: expected"),
    ],
)
def test_what_cannot_be_run_is_one_line_that_names_the_place(changes, line, read):
    with pytest.raises(UserError) as refused:
        read(**changes)
    assert str(refused.value).startswith(line)


def test_all_mistakes_are_named_at_once(read):
    with pytest.raises(UserError) as refused:
        read(method="x", metric=3, parameters={"lr": {"min": 1}}, jobs=2)
    for part in ("method: ", "metric: ", "parameters.lr: ", "unknown key jobs"):
        assert part in str(refused.value)

"""Mistakes in commands and configurations: a part of those of benchmarks/bad_configs.py, and what must not be one."""

import itertools
import random
import runpy
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import Namespace

from rlhf_lightning.cli.values import value_mistakes
from tests.cli_runs import fit, toy

BENCHMARK = runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "bad_configs.py"))
WRITTEN, GENERATED = BENCHMARK["written"](), list(BENCHMARK["generated"](seed=2))
CHEAP = ("the command line", "files", "keys of older versions and of other algorithms", "other commands")
SOME = [case for case in WRITTEN if case.group in CHEAP][::4] + random.Random(1).sample(GENERATED, 6)
SOME += [case for case in WRITTEN if case.group == "several at once"]


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fsync", lambda _: None)  # a slow disk would take most of the time


@pytest.mark.parametrize("case", SOME, ids=[case.mistake for case in SOME])
def test_mistake_is_refused_in_one_line(case):
    with BENCHMARK["stopping_before_training"]():
        outcome = BENCHMARK["attempt"](case)
    assert outcome.ending == "2"
    assert len(outcome.lines) == 1
    assert case.names in outcome.lines[0]


def test_mistakes_are_many_and_of_every_algorithm():
    assert len(WRITTEN) >= 60
    algorithms = {path.stem for path in BENCHMARK["ALGORITHMS"].glob("*.yaml")}
    assert {case.mistake.partition(":")[0] for case in GENERATED} == algorithms
    assert len({case.words for case in WRITTEN}) == len(WRITTEN)
    for one, other in itertools.pairwise(BENCHMARK["generated"](seed=seed) for seed in (1, 1)):
        assert list(one) == list(other)


def test_what_is_right_is_not_refused():
    """Otherwise a command that refuses everything would do."""
    case = BENCHMARK["Case"]("", "", tuple(toy(epochs=1)), "")
    with BENCHMARK["stopping_before_training"]():
        outcome = BENCHMARK["attempt"](case)
    assert outcome.ending == "started"
    assert not outcome.refused(case)


@pytest.mark.parametrize("text", ["1e-5", "'1e-5'", "1.0e-5", "0.00001"])
def test_number_without_a_dot_is_a_number(text):
    """YAML 1.1 takes 1e-5 for a text."""
    Path("a.yaml").write_text(f"model: {{init_args: {{optimization: {{init_args: {{lr: {text}}}}}}}}}\n")
    words = ["--model.optimization", "tests.cli_fakes.Options", "--config", "a.yaml", "--name", "a"]
    assert fit(*toy(epochs=1), *words) == 0
    saved = yaml.safe_load(Path("runs/a/config.yaml").read_text())
    assert saved["model"]["init_args"]["optimization"]["init_args"]["lr"] == 1e-5


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("model: {init_args: {clip_range: null}}", "model.init_args.clip_range: expected float, got null"),
        ("data: {init_args: {length: null}}", "data.init_args.length: expected int, got null"),
        ("task: {init_args: {size: null}}", "task.init_args.size: expected int, got null"),
        ("model: {init_args: {task: tests.cli_fakes.ToyTask}}", "model.init_args.task is filled in from --task"),
        (
            "model: {class_path: tests.cli_fakes.ToyIterations, clip_range: 1.0}",
            "a.yaml: model.clip_range stands beside",
        ),
        ("trainer: [1]", "trainer: expected a mapping of its arguments, got [1]"),
        ("# nothing: 1", "a.yaml is empty; expected settings"),
        ("1: 2", "a.yaml: key 1; expected the name of a setting"),
    ],
)
def test_file_mistake_is_one_line(text, line, capsys):
    Path("a.yaml").write_text(text + "\n")
    assert fit(*toy(epochs=1), "--config", "a.yaml") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {line}")
    assert error.count("\n") == 1
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


@pytest.mark.parametrize("text", ["data: {init_args: {sizes: null}}", "task: {init_args: {path: null}}"])
def test_null_is_taken_where_it_means_something(text):
    Path("a.yaml").write_text(text + "\n")
    assert fit(*toy(epochs=1), "--config", "a.yaml") == 0


def test_value_mistakes_passes_over_what_is_not_given():
    assert list(value_mistakes(Namespace(model=None))) == []


@pytest.mark.parametrize("missing", ["optimizer_states", "shape"])
def test_checkpoint_of_another_model_is_one_line(missing, capsys):
    assert fit(*toy(epochs=1)) == 0
    content = torch.load("runs/toyiterations-toytask-1/checkpoints/last.ckpt", weights_only=True)
    if missing == "shape":
        content["state_dict"]["weight"] = torch.zeros(2, dtype=torch.float64)
    else:
        del content[missing]
    torch.save(content, "other.ckpt")
    capsys.readouterr()
    assert fit(*toy(epochs=2), "--ckpt_path", "other.ckpt", "--name", "again") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the checkpoint is not one of this model with these settings: ")
    assert error.count("\n") == 1

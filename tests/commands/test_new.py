"""``new``: every template is a file that works as it stands, outside of the package."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlhf_lightning.__main__ import main
from rlhf_lightning.records.runs import load_run
from rlhf_lightning.templates import KINDS, commands, render, snake_case

NAMES = {kind: f"Our{kind.title()}" for kind in KINDS}
PROVED = {"optimizer", "loss", "all"}
"""Kinds with a command for ``prove``."""
RUFF = [sys.executable, "-m", "ruff"]
SETTINGS = ["--isolated", "--line-length", "120"]


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_new_writes_a_module_and_a_configuration_and_says_what_to_run(kind, tmp_path, capsys):
    name = NAMES[kind]
    assert main(["new", kind, name]) == 0
    module = snake_case(name)
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{module}.py", f"{module}.yaml"]
    shown = capsys.readouterr().out
    assert "next: python -m rlhf_lightning fit --config " in shown
    assert f"--config {module}.yaml" in shown
    assert (f"prove --algorithm {module}:{name}" in shown) == (kind in PROVED)
    texts = Path(f"{module}.py").read_text(), Path(f"{module}.yaml").read_text()
    assert not any(word in text for text in texts for word in (*KINDS["all"], "MyLoss", "my_module", "my_loss"))
    assert f"{module}.{name}" in texts[1]
    assert isinstance(yaml.safe_load(texts[1]), dict)


def test_files_are_formatted_and_without_unused_names(tmp_path):
    for kind, name in NAMES.items():
        for file, text in render(kind, name).items():
            Path(file).write_text(text)
    rules = ["--select", "E,F,I,B,UP,D1,N,SIM,RUF", "--ignore", "RUF001,RUF002,RUF003,D105,D107,B008,RUF009"]
    known = ["--config", 'lint.isort.known-third-party=["lightning","torch","transformers"]']
    known += ["--config", 'lint.isort.known-first-party=["rlhf_lightning"]']
    for words in (["check", *rules, *known], ["format", "--check"]):
        done = subprocess.run([*RUFF, *words, *SETTINGS, "."], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "file"),
    [("MyOptimizer", "my_optimizer"), ("PPO", "ppo"), ("MyPPOClip", "my_ppo_clip"), ("Adam2Loss", "adam2_loss")],
)
def test_files_are_named_as_modules_are(name, file):
    assert snake_case(name) == file


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("optimiser Mine", "argument kind: invalid choice: 'optimiser' (choose from "),
        ("task 3Shops", "'3Shops' cannot be the name of a class; expected one such as MyOptimizer"),
        ("task my-shop", "'my-shop' cannot be the name of a class"),
        ("task class", "'class' cannot be the name of a class"),
        ("task Class", "'Class' cannot be the name of a class"),
        ("task Logging", "logging.py would hide the installed module logging; choose another name"),
        ("task Torch", "torch.py would hide the installed module torch; choose another name"),
        ("task", "the following arguments are required: name"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(words, line, tmp_path, capsys):
    assert main(["new", *words.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {line}")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", ["shop.py", "shop.yaml"])
def test_nothing_is_overwritten(file, tmp_path, capsys):
    Path(file).write_text("mine")
    assert main(["new", "task", "Shop"]) == 2
    assert capsys.readouterr().err == f"error: {file} exists; choose another name, or remove it\n"
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [(file, "mine")]


SHORT = ["--trainer.accelerator", "cpu", "--runs_dir", "short"]
STEPS = ["--trainer.max_steps", "4"]
LIMITS = {"loss": [*STEPS, "--trainer.val_check_interval", "2"], "task": STEPS}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_command_that_is_shown_trains(kind):
    for file, text in render(kind, NAMES[kind]).items():
        Path(file).write_text(text)
    module, configuration = render(kind, NAMES[kind])
    words = shlex.split(commands(Path(configuration).read_text())[0])
    limits = LIMITS.get(kind, ["--trainer.max_epochs", "2"])
    done = subprocess.run(
        [sys.executable, *words[1:], *SHORT, *limits], capture_output=True, text=True, check=False, env=_one_thread()
    )
    assert done.returncode == 0, done.stderr
    run = load_run(Path("short") / Path(module).stem)
    assert run.done
    assert {"checkpoints", "config.yaml", "environment.json", "export", "metrics.csv", "run.json"} <= {
        entry.name for entry in run.path.iterdir()
    }
    assert len(run.metrics) > 1
    classes = str(run.config)
    assert all(f"{Path(module).stem}.{name}" in classes for name in _classes(kind))
    if kind == "optimizer":
        assert len(run.series("rollout/return_deviation")) == 2
    if kind in ("callback", "all"):
        assert "best response at" in done.stdout


@pytest.mark.slow
def test_the_optimizer_estimates_the_gradient_itself():
    files = render("optimizer", "OurOptimizer")
    for file, text in files.items():
        Path(file).write_text(text)
    words = shlex.split(commands(files["our_optimizer.yaml"])[1])
    done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, check=False, env=_one_thread())
    assert done.returncode == 0, done.stderr
    (row,) = [line for line in done.stdout.splitlines() if "OurOptimizer" in line]
    assert row.split("|")[2].strip() == "1 ∇J"


@pytest.mark.slow
def test_the_installed_program_finds_modules_in_the_working_directory():
    for file, text in render("reward", "OurReward").items():
        Path(file).write_text(text)
    program = Path(sys.executable).with_name("rlhf-lightning")
    words = ["fit", "--config", "configs/tasks/bandit.yaml", "--config", "configs/algorithms/reinforce.yaml"]
    words += ["--config", "our_reward.yaml", "--name", "installed", "--trainer.max_epochs", "1", *SHORT]
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False, env=_one_thread())
    assert done.returncode == 0, done.stderr
    assert load_run("short/installed").done


def _classes(kind):
    return [NAMES[kind] + name[2:] * (kind == "all") for name in KINDS[kind]]


def _one_thread():
    return {**os.environ, "OMP_NUM_THREADS": "1"}

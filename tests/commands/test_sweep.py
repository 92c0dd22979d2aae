"""`sweep`: what it refuses, what it leaves, and that killed workers lose and repeat nothing."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from rlhf_lightning.__main__ import main
from rlhf_lightning.records.runs import load_run
from tests.cli_fakes import __name__ as FAKES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def sweep_file(**changes):
    """A sweep over a toy whose metric is the same whatever its parameters are."""
    fit = ["python", "-m", "rlhf_lightning", "fit", f"--task={FAKES}.ToyTask", f"--backbone={FAKES}.ToyBackbone"]
    fit += [f"--data={FAKES}.ToyData", f"--model={FAKES}.ToyIterations", "--trainer.accelerator=cpu"]
    content = {
        "command": [*fit, "--trainer.max_epochs=6", "${args}"],
        "method": "grid",
        "metric": {"name": "eval/score", "goal": "maximize"},
        "parameters": {"model.init_args.clip_range": {"values": [0.1, 0.2, 0.3]}, "task.init_args.size": {"value": 2}},
        **changes,
    }
    Path("toy.yaml").write_text(yaml.safe_dump(content))


def sweep(*words, **environment):
    """A worker, as a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-W", "ignore", "-m", "rlhf_lightning", "sweep", "toy.yaml", *words]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("words", "changes", "line"),
    [
        (["nothing.yaml"], {}, "nothing.yaml: no such file"),
        (["toy.yaml"], {"method": "custom"}, "toy.yaml: method: expected one of grid, random, bayes"),
        (["toy.yaml", "--count", "0"], {}, "argument --count: invalid positive value"),
        (["toy.yaml", "--overwrite"], {}, "--overwrite belongs to the sweep, not to its runs"),
        (["toy.yaml", "--name", "../x"], {}, "--name '../x': expected a name such as ppo-1"),
        (
            ["toy.yaml", "--seeds", "2"],
            {"parameters": {"seed_everything": {"values": [1, 2]}}},
            "toy.yaml: parameters.seed_everything: --seeds 2 gives each trial seeds already",
        ),
        (["toy.yaml", "--check", "--model.clip_rang=1"], {}, "toy.yaml: unknown key"),
        (["toy.yaml"], {"parameters": {"model.init_args.clip_rang": {"value": 1}}}, "toy.yaml: unknown key"),
    ],
)
def test_what_it_refuses_is_one_line_and_leaves_nothing(words, changes, line, capsys):
    sweep_file(**changes)
    assert main(["sweep", *words]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: {line}")
    assert shown.err.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["toy.yaml"]


def test_a_folder_of_something_else_is_refused(capsys):
    sweep_file()
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/thesis.tex").write_text("years of work")
    assert main(["sweep", "toy.yaml", "--name", "mine"]) == 2
    assert "runs/mine exists and holds no sweep; choose another --name" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_ends_in_a_table_a_figure_and_the_command_of_the_best_trial():
    sweep_file()
    out, err = (process := sweep("--seeds", "2", "--jobs", "2", "--trainer.max_epochs=4")).communicate(timeout=400)
    assert process.returncode == 0, err
    folder = Path("runs/sweep-toy")
    table = pd.read_csv(folder / "trials.csv")
    assert sorted(table["model.init_args.clip_range"]) == [0.1, 0.2, 0.3]
    assert list(table["state"]) == ["complete"] * 3
    assert list(table["eval/score"]) == [0.0] * 3  # of iteration 4, at which the toy is best
    for trial in range(3):
        seeds = [load_run(folder / f"trial-{trial}" / f"seed-{seed}") for seed in (1, 2)]
        assert [run.setting("seed_everything") for run in seeds] == [1, 2]
        assert [run.setting("trainer.max_epochs") for run in seeds] == [4, 4]
        assert all(run.done and run.setting("task.init_args.size") == 2 for run in seeds)
        assert (folder / "logs" / f"trial-{trial}-seed-1.log").is_file()
    assert (folder / "parallel_coordinates.png").is_file()
    best = (folder / "best.txt").read_text().strip()
    assert best in out
    assert main([*shlex.split(best)[3:]]) == 0
    assert load_run("runs/sweep-toy-best").series("eval/score").iloc[-1] == 0.0
    sweep_file(method="random")
    _, err = sweep("--seeds", "2").communicate(timeout=100)
    assert "runs/sweep-toy holds the trials of another sweep (method, options differ); choose another --name" in err


@pytest.mark.slow
def test_killed_workers_lose_and_repeat_nothing():
    """One of two workers is killed, then the other one stopped; a third one finishes what they have left."""
    values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    sweep_file(parameters={"model.init_args.clip_range": {"values": values}})
    workers = [sweep(), sweep()]
    logs = Path("runs/sweep-toy/logs")
    _wait_for(lambda: len(list(logs.glob("*.log"))) >= 2)
    workers[0].kill()
    _wait_for(lambda: len(list(logs.glob("*.log"))) >= 4)
    workers[1].send_signal(signal.SIGTERM)
    out, _ = workers[1].communicate(timeout=100)
    assert "interrupted; the same command continues the sweep" in out
    assert workers[1].returncode == 130
    workers[0].communicate(timeout=100)

    out, err = (third := sweep("--jobs", "2")).communicate(timeout=400)
    assert third.returncode == 0, err
    table = pd.read_csv("runs/sweep-toy/trials.csv")
    assert list(table["trial"]) == list(range(6))
    assert sorted(table["model.init_args.clip_range"]) == values
    assert list(table["state"]) == ["complete"] * 6
    for trial in range(6):
        text = (logs / f"trial-{trial}.log").read_text()
        assert text.count(f"sweep-toy/trial-{trial}: done") == 1, text
        assert load_run(f"runs/sweep-toy/trial-{trial}").done


def _wait_for(condition, seconds=300.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)

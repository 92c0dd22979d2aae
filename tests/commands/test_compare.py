"""The compare command: from a declaration to verdicts, killed in between, and on anybody's table."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from rlhf_lightning import load_comparison
from rlhf_lightning.__main__ import main

DECLARED = {
    "title": "Two learning rates",
    "config": "configs/tasks/bandit.yaml",
    "pipeline": {
        "policy": {
            "config": "configs/algorithms/reinforce.yaml",
            "model.init_args.eval_every": 1,
            "trainer.max_epochs": 2,
        }
    },
    "arms": {
        "slow": {"policy": {"model.init_args.optimization.lr": 0.001}},
        "fast": {"policy": {"model.init_args.optimization.lr": 0.1}},
    },
    "metric": {"metric": "eval/score", "scale": [-1, 1]},
    "equal": "samples",
    "seeds": 2,
    "claims": [{"better": ["fast", "slow"]}],
}


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def declare(**changes):
    Path("rates.yaml").write_text(yaml.safe_dump(DECLARED | changes, sort_keys=False))


def compare(*words):
    return main(["compare", "rates.yaml", *words])


def test_commands_are_printed_and_nothing_is_written(capsys):
    declare()
    assert compare("--print-commands") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0] == (
        "python -m rlhf_lightning fit --config configs/tasks/bandit.yaml --config configs/algorithms/reinforce.yaml "
        "--seed_everything 1 --runs_dir runs/rates-paper/seed-1 --name slow --model.init_args.eval_every 1 "
        "--trainer.max_epochs 2 --model.init_args.optimization.lr 0.001"
    )
    assert sorted(path.name for path in Path().iterdir()) == ["rates.yaml"]


def test_anybodys_table_is_judged(capsys):
    rows = [
        {"arm": arm, "seed": seed, "f1": base + 0.01 * seed}
        for arm, base in (("a", 0.5), ("b", 0.7))
        for seed in range(8)
    ]
    pd.DataFrame(rows).to_csv("results.csv", index=False)
    assert main(["compare", "--from", "results.csv", "--margin", "0.05"]) == 0
    shown = capsys.readouterr().out
    assert "a is better than b" in shown
    assert "worse" in shown
    assert "0.54" in shown, "the mean of a: 0.5 and 0.01 times the mean of 0 to 7"
    assert main(["compare", "--from", "results.csv", "--lower-is-better", "--baseline", "b"]) == 0
    assert "better" in capsys.readouterr().out.split("a is better than b")[1]


MISTAKES = {
    "no declaration": ([], "expected EXPERIMENT.yaml, or --from RESULTS.csv"),
    "no such file": (["nothing.yaml"], "nothing.yaml: no such file"),
    "unknown budget": (["rates.yaml", "--budget", "papr"], "--budget papr: did you mean paper?"),
    "unknown arm": (["rates.yaml", "--arms", "slw"], "--arms slw: did you mean slow?"),
    "one seed": (["rates.yaml", "--seeds", "1"], "intervals need at least two seeds, and got [1]"),
    "nothing to collect": (["rates.yaml", "--collect"], "nothing of rates has been run"),
    "no table": (["--from", "none.csv"], "none.csv cannot be read"),
    "parameter of jobs": (["rates.yaml", "--launcher", "slurm", "--slurm", "gpus"], "--slurm gpus: expected KEY=VALUE"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(mistake, capsys):
    declare()
    words, said = MISTAKES[mistake]
    assert main(["compare", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.slow
def test_a_comparison_runs_ends_in_verdicts_and_is_not_run_again(capsys):
    declare()
    assert compare("--jobs", "2") == 0
    shown = capsys.readouterr().out
    assert "too few seeds" in shown
    assert "undecided" in shown
    folder = Path("experiments/results/rates-paper")
    for name in ("runs.csv", "table.csv", "table.md", "claims.md", "methods.md", "report.html", "declaration.json"):
        assert (folder / name).is_file(), name
    found = load_comparison(folder)
    assert found.table["arm"].tolist() == ["slow", "fast"]
    assert (found.runs["status"] == "finished").all()
    assert found.runs.groupby("seed")["used"].nunique().eq(1).all()
    times = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("DONE")}
    assert len(times) == 4
    assert compare() == 0
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("DONE")} == times
    assert compare("--more-seeds", "1", "--arms", "fast") == 0
    assert len([*Path("runs").rglob("DONE")]) == 5
    assert "one run" not in (folder / "claims.md").read_text()
    assert json.loads((folder / "declaration.json").read_text())["seeds"][1]["seeds"] == [3]


@pytest.mark.slow
def test_a_run_that_fails_is_counted_and_stops_no_other(capsys):
    Path("own.py").write_text("def reward(prompts, responses):\n    raise ValueError('no reward today')\n")
    failing = {"data.init_args.reward": "FunctionReward", "data.init_args.reward.init_args.function": "own:reward"}
    declare(arms=DECLARED["arms"] | {"broken": {"policy": failing}}, seeds=1, claims=None)
    assert compare() == 1
    shown = capsys.readouterr().out
    assert "seed-1/broken: failed" in shown
    table = load_comparison("experiments/results/rates-paper").table.set_index("arm")
    assert table["failed"].to_dict() == {"slow": 0, "fast": 0, "broken": 1}
    assert table.loc["broken", "mean"] == -1
    assert "no reward today" in Path("runs/rates-paper/seed-1/broken.log").read_text()
    assert compare() == 1, "it is not tried again"
    assert "1 of 1" not in capsys.readouterr().out
    Path("own.py").write_text("def reward(prompts, responses):\n    return [0.0] * len(prompts)\n")
    assert compare("--retry") == 0


@pytest.mark.slow
def test_killed_it_continues_where_it_was():
    declare()
    words = [sys.executable, "-m", "rlhf_lightning", "compare", "rates.yaml"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    first, second = Path("runs/rates-paper/seed-1/slow"), Path("runs/rates-paper/seed-1/fast")
    while not (first / "DONE").exists() or not (second / "stage.json").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = (first / "DONE").stat().st_mtime_ns
    assert subprocess.run(words, check=False, stdout=subprocess.DEVNULL).returncode == 0
    assert (first / "DONE").stat().st_mtime_ns == done
    starts = {path.stem: path.read_text().count("python -m rlhf_lightning fit") for path in first.parent.glob("*.log")}
    assert starts == {"slow": 1, "fast": 1}, "what ran on by itself was waited for"


@pytest.mark.slow
def test_sigterm_has_its_runs_save_and_end():
    declare(pipeline={"policy": DECLARED["pipeline"]["policy"] | {"trainer.max_epochs": 100_000}}, seeds=1, claims=None)
    words = [sys.executable, "-m", "rlhf_lightning", "compare", "rates.yaml"]
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    folder = Path("runs/rates-paper/seed-1/slow")
    while not (folder / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.terminate()
    _, said = process.communicate(timeout=90)
    assert process.returncode == 130
    assert said.strip() == "interrupted"
    assert json.loads((folder / "stage.json").read_text())["status"] == 143
    assert "the same command continues the run" in Path(f"{folder}.log").read_text()

"""A run that is killed in its own process and started again ends as if nothing had happened, to the bit."""

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
DRILLS = runpy.run_path(str(ROOT / "benchmarks" / "drill_runs.py"))
differences, rows = DRILLS["differences"], DRILLS["rows"]
ITERATIONS = 4
CONFIG = {
    "task": "Bandit",
    "backbone": "TabularBackbone",
    "model": {
        "class_path": "PPO",
        "init_args": {
            "optimization": {"lr": 0.05, "schedule": "linear"},
            "kl": {"class_path": "AdaptiveKLControl", "init_args": {"target": 0.1}},
            "minibatch_size": 16,
            "eval_every": 2,
        },
    },
    "data": {
        "class_path": "RolloutDataModule",
        "init_args": {"rollout_batch_size": 32, "eval_prompts": 4, "scaling": {"class_path": "RunningZScore"}},
    },
    "trainer": {"max_epochs": ITERATIONS, "accelerator": "cpu"},
}


def start(name, devices, *more):
    words = ["fit", "--config", "bandit.yaml", "--name", name, "--trainer.devices", str(devices)]
    words += ["--trainer.strategy", "ddp" if devices > 1 else "auto"]
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "rlhf_lightning", *words, *more],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_killed_run_started_again_equals_the_uninterrupted_one(devices, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bandit.yaml").write_text(yaml.safe_dump(CONFIG))
    whole, killed = start("whole", devices), start("killed", devices)

    while killed.poll() is None and len(rows(Path("runs/killed"))) < 1 + ITERATIONS // 2:
        time.sleep(0.001)
    assert killed.poll() is None
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not Path("runs/killed/DONE").exists()

    again = start("killed", devices)
    for process in (whole, again):
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert said.count("resuming from iteration ") == 1
    assert [int(row["iteration"]) for row in rows(Path("runs/killed"))] == list(range(ITERATIONS + 1))
    assert differences(Path("runs/whole"), Path("runs/killed")) == []


@pytest.mark.slow
def test_run_goes_on_longer_on_two_devices_in_microbatches_to_rounding(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    optimization = {"lr": 0.05, "schedule": "constant_with_warmup"}
    arguments = {**CONFIG["model"]["init_args"], "optimization": optimization}
    config = {**CONFIG, "model": {**CONFIG["model"], "init_args": arguments}}
    Path("bandit.yaml").write_text(yaml.safe_dump(config))
    micro = ("--model.init_args.optimization.microbatch_size", "3")
    for name, devices, more in (
        ("whole", 1, ()), ("moved", 1, ("--trainer.max_epochs", "2")), ("moved", 2, micro),
    ):  # fmt: skip
        process = start(name, devices, *more)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert "resuming from iteration 2" in said
    expected, found = rows(Path("runs/whole")), rows(Path("runs/moved"))
    assert len(expected) == len(found) == 1 + ITERATIONS
    for one, other in zip(expected, found, strict=True):
        numbers = {name: float(value) for name, value in one.items() if value and "second" not in name}
        assert {name: float(other[name]) for name in numbers} == pytest.approx(numbers, abs=1e-5)


SKEWED = """
import os
import time


def reward(prompts, responses):
    time.sleep(0.5 * (os.environ.get("LOCAL_RANK", "0") == "0"))
    return [float(len(response)) for response in responses]
"""
"""Rank 1 waits in a collective call while rank 0 is at it."""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_on_one_of_two_ranks_ends_both_after_the_iteration(rank, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("skewed.py").write_text(SKEWED)
    reward = {"class_path": "FunctionReward", "init_args": {"function": "skewed:reward"}}
    config = {**CONFIG, "data": {**CONFIG["data"], "init_args": {**CONFIG["data"]["init_args"], "reward": reward}}}
    Path("bandit.yaml").write_text(yaml.safe_dump(config))
    run = start("stopped", 2)
    while run.poll() is None and len(rows(Path("runs/stopped"))) < 1 + ITERATIONS // 2:
        time.sleep(0.001)
    launched = [int(pid) for pid in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
    os.kill([run.pid, launched[0]][rank], signal.SIGTERM)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 143, said
    assert "stopped by SIGTERM; the same command continues the run" in said
    assert not Path("runs/stopped/DONE").exists()
    again = start("stopped", 2)
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert "resuming from iteration " in said
    assert [int(row["iteration"]) for row in rows(Path("runs/stopped"))] == list(range(ITERATIONS + 1))


@pytest.mark.slow
def test_run_of_two_ranks_that_a_detector_stopped_is_completed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stop = {"class_path": "Instability", "init_args": {"kl_old": 1e-30, "before": 1, "stop": True}}
    Path("bandit.yaml").write_text(yaml.safe_dump({**CONFIG, "trainer": {**CONFIG["trainer"], "callbacks": [stop]}}))
    for _ in range(2):
        process = start("stopped", 2)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        assert len(Path("runs/stopped/warnings.jsonl").read_text().splitlines()) == 1
        Path("runs/stopped/DONE").unlink()  # as if it had been killed just before


def test_differences_finds_every_one(tmp_path):
    runs = [tmp_path / "one", tmp_path / "other"]
    for run in runs:
        for folder in ("checkpoints", "export"):
            (run / folder).mkdir(parents=True)
        (run / "metrics.csv").write_text("iteration,timing/rollout_seconds,a\n1,0.5,2\n")
        (run / "export" / "table").write_bytes(b"1")
        for name in ("last.ckpt", "last-1.ckpt", "best.ckpt"):
            torch.save({"state": [torch.ones(2), {"n": 1}]}, run / "checkpoints" / name)
    one, other = runs
    assert differences(one, other) == []
    (other / "metrics.csv").write_text("iteration,timing/rollout_seconds,a\n1,0.7,2\n")
    assert differences(one, other) == []

    (other / "metrics.csv").write_text("iteration,timing/rollout_seconds,a\n1,0.5,2\n2,0.")
    assert differences(one, other) == ["metrics.csv"]
    (other / "metrics.csv").write_text("iteration,timing/rollout_seconds,a\n1,0.5,3\n")
    (other / "export" / "table").write_bytes(b"2")
    (other / "samples.jsonl").touch()
    (other / "warnings.jsonl").touch()
    torch.save({"state": [torch.ones(2), {"n": 2}]}, other / "checkpoints" / "last.ckpt")
    torch.save({"state": [torch.ones(2) + 1e-7, {"n": 1}]}, other / "checkpoints" / "last-1.ckpt")
    (other / "checkpoints" / "best.ckpt").unlink()
    assert sorted(differences(one, other)) == [
        "best.ckpt: ",
        "export/table",
        "last-1.ckpt: /state/0",
        "last.ckpt: /state/1/n",
        "metrics.csv",
        "samples.jsonl",
        "warnings.jsonl",
    ]

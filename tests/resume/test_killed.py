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


def start(name, devices):
    words = ["fit", "--config", "bandit.yaml", "--name", name, "--trainer.devices", str(devices)]
    words += ["--trainer.strategy", "ddp" if devices > 1 else "auto"]
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "rlhf_lightning", *words],
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

    (other / "metrics.csv").write_text("iteration,timing/rollout_seconds,a\n1,0.5,3\n")
    (other / "export" / "table").write_bytes(b"2")
    (other / "samples.jsonl").touch()
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
    ]

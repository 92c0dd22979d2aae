"""Whole commands in processes of their own: two ranks, and a pipeline."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli_runs import FAKES, fit, toy

ROOT = Path(__file__).resolve().parents[2]


def command(*words, **environment):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    call = [sys.executable, "-W", "ignore", "-m", "rlhf_lightning", *words]
    return subprocess.run(call, env=env, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_fit_on_two_ranks_fails_in_one_line_and_resumes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    two = toy("ToyIterations", "--trainer.devices", "2", "--name", "two")
    failed = command(*two, TOY_FAIL="before:4")
    assert failed.returncode == 2
    assert failed.stderr == "error: the toy fails at before 4\n"
    assert not Path("runs/two/DONE").exists()

    resumed = command(*two)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.count("resuming from iteration 3") == 1
    assert resumed.stdout.count("iteration 6/6") == 1

    assert fit(*toy("ToyIterations", "--name", "one")) == 0
    for name in ("metrics.csv", "samples.jsonl", "export/weight.txt"):
        assert Path("runs/two", name).read_text() == Path("runs/one", name).read_text(), name


@pytest.mark.slow
def test_pipeline_trains_stage_after_stage_and_skips_what_is_done(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("toy.yaml").write_text(f"""
task: {{class_path: {FAKES}.ToyTask}}
backbone: {{class_path: {FAKES}.ToyBackbone}}
trainer: {{accelerator: cpu}}
pipeline:
  sft: {{model: {FAKES}.ToySteps, data: {FAKES}.ToyHeldout, trainer.max_steps: 4, trainer.max_epochs: -1}}
  policy: {{model: {FAKES}.ToyIterations, data: {FAKES}.ToyData, trainer.max_epochs: 3}}
""")
    failed = command("pipeline", "--config", "toy.yaml", TOY_FAIL="epoch_end:2")
    assert failed.returncode == 2
    assert failed.stderr == "error: the toy fails at epoch_end 2\n"
    finished = command("pipeline", "--config", "toy.yaml")
    assert finished.returncode == 0, finished.stderr
    assert "sft: unchanged, skipped" in finished.stdout
    assert "runs/toy/policy: resuming from iteration 1" in finished.stdout
    assert "made runs/toy/policy/export" in finished.stdout
    assert "checkpoint: runs/toy/sft/export" in Path("runs/toy/policy/config.yaml").read_text()

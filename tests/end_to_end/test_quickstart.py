"""The quickstart on a tiny budget, as `make quickstart` runs it: real subprocesses, then the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lightning.records.runs import load_run

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "task.init_args.demonstrations": 200,
    "backbone.init_args.width": 16,
    "backbone.init_args.layers": 1,
    "sft.trainer.max_steps": 30,
    "sft.trainer.val_check_interval": 15,
    "pairs.count": 80,
    "reward.trainer.max_steps": 4,
    "reward.trainer.val_check_interval": 2,
    "policy.trainer.max_epochs": 2,
    "policy.data.init_args.rollout_batch_size": 32,
    "policy.data.init_args.eval_prompts": 16,
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlhf_lightning", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_quickstart_ends_in_a_report_and_is_not_run_again(tmp_path):
    options = [word for key, value in TINY.items() for word in (f"--{key}", str(value))]
    pipeline = ["pipeline", "--config", "configs/quickstart.yaml", "--runs_dir", str(tmp_path), "--name", "q", *options]
    first = run(*pipeline)
    assert first.returncode == 0, first.stderr
    directory = tmp_path / "q"
    loaded = load_run(directory)
    assert all(loaded.stages[stage].done for stage in ("sft", "reward", "policy"))
    pairs = [json.loads(line) for line in (directory / "pairs" / "pairs.jsonl").read_text().splitlines()]
    assert len(pairs) == 80
    assert all(pair["chosen"] != pair["rejected"] and pair["annotator"] for pair in pairs)
    policy = loaded.stages["policy"].metrics
    assert policy["rollout/logprob_gap"].max() <= 1e-4  # captured while decoding, against the training forward

    stamps = {path: path.stat().st_mtime_ns for path in directory.rglob("DONE")}
    second = run(*pipeline)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("unchanged") >= 4
    assert stamps == {path: path.stat().st_mtime_ns for path in directory.rglob("DONE")}

    report = run("report", str(directory))
    assert report.returncode == 0, report.stderr
    page = (directory / "report" / "report.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert (directory / "report" / "overoptimization.png").stat().st_size > 10_000

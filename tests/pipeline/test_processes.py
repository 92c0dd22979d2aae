"""Stages as processes: locks, logs, and what is known of one that outlived whoever started it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_lightning.pipeline import processes as module
from rlhf_lightning.pipeline.processes import (
    StageBusyError,
    failed_before,
    is_done,
    seconds_of,
    start_stage,
)
from rlhf_lightning.pipeline.slurm import SubmititLauncher
from rlhf_lightning.pipeline.stages import Stage


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """A stage ``pairs`` whose command runs the code in ``code.py``; it writes what it is to make."""
    monkeypatch.chdir(tmp_path)

    def spawn(command, environment, **settings):
        return subprocess.Popen([sys.executable, "code.py"], **settings)

    monkeypatch.setattr(module, "_spawn", spawn)
    Path("code.py").write_text("print('made'); open('made/pairs.jsonl', 'w').write('{}')")
    return Stage("bandit", ["pairs", "--out", "made/pairs.jsonl"], Path("made"), {}, Path("made/pairs.jsonl"))


def ended(process):
    while (status := process.poll()) is None:
        time.sleep(0.01)
    return status


def test_output_goes_to_the_log_with_the_command_above_it(stage, capfd):
    assert ended(start_stage(stage, log=Path("logs/made.log"))) == 0
    first, second = Path("logs/made.log").read_text().splitlines()
    assert first == "bandit: python -m rlhf_lightning pairs --out made/pairs.jsonl"
    assert second == "made"
    assert capfd.readouterr().out == ""
    assert is_done(stage)
    assert start_stage(stage, log=Path("logs/made.log")) is None


def test_a_failure_is_remembered_and_the_time_of_all_tries(stage):
    Path("code.py").write_text("import sys, time; time.sleep(0.3); sys.exit(3)")
    assert ended(start_stage(stage, log=Path("log"))) == 3
    assert failed_before(stage) == 3
    assert not is_done(stage)
    assert seconds_of(stage) >= 0.3


def test_an_interruption_is_no_failure(stage):
    Path("code.py").write_text("import time; time.sleep(60)")
    process = start_stage(stage, log=Path("log"))
    process.stop()
    assert failed_before(stage) is None
    assert json.loads(Path("made/stage.json").read_text())["status"] == 143


def test_a_stage_is_locked_as_long_as_its_process_lives(stage):
    Path("code.py").write_text("import time; time.sleep(1.0); open('made/pairs.jsonl', 'w').write('{}')")
    process = start_stage(stage, log=Path("log"))
    with pytest.raises(StageBusyError, match="another process is making made"):
        start_stage(stage, log=Path("log"))
    del process  # whoever started it is gone, and nobody has written down how it ended
    while True:
        try:
            assert start_stage(stage, log=Path("log")) is None, "what it made is there: it is not made again"
            break
        except StageBusyError:
            time.sleep(0.05)
    assert not Path("made/DONE").exists()


def test_another_version_of_the_package_makes_it_again_unless_that_does_not_matter(stage, monkeypatch):
    ended(start_stage(stage, log=Path("log")))
    monkeypatch.setattr("rlhf_lightning.pipeline.stages.git_commit", lambda: "another")
    assert is_done(stage, same_code=False)
    assert not is_done(stage)


@pytest.mark.slow
def test_submitted_stages_end_like_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "fit --config configs/tasks/bandit.yaml --config configs/algorithms/reinforce.yaml --trainer.max_epochs 1"
    stages = [
        Stage(name, [*words.split(), "--name", name, *more], Path("runs", name), {}, Path("runs", name, "export"))
        for name, more in (("good", ()), ("bad", ("--model.init_args.eval_every", "0")))
    ]
    launcher = SubmititLauncher(tmp_path / "jobs", "local", {"timeout_min": 5}, lambda one: Path(f"{one.name}.log"))
    with launcher.together():
        jobs = [launcher.start(one) for one in stages]
    assert [ended(job) for job in jobs] == [0, 2]
    assert is_done(stages[0])
    assert launcher.start(stages[0]) is None
    assert "eval_every" in Path("bad.log").read_text()


def test_a_job_in_this_process(stage, tmp_path):
    launcher = SubmititLauncher(tmp_path / "jobs", "debug", {}, lambda one: Path("made.log"))
    with launcher.together():
        job = launcher.start(stage)
    assert ended(job) == 0
    assert is_done(stage)


def test_unknown_parameters_of_jobs_are_refused(tmp_path):
    from rlhf_lightning.errors import UserError

    with pytest.raises(UserError, match=r"--launcher local: .*timeout_mn"):
        SubmititLauncher(tmp_path, "local", {"timeout_mn": 5}, lambda one: Path("log"))
    with pytest.raises(UserError, match="--launcher slurm"):
        SubmititLauncher(tmp_path, "slurm", {}, lambda one: Path("log"))

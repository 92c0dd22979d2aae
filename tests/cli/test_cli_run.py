"""The run directory: what a run leaves, and when another may use it."""

import json
from pathlib import Path

import pytest
import yaml

from rlhf_lightning.__main__ import main
from tests import cli_fakes
from tests.cli_runs import fit, run_files, toy

RUN = Path("runs/toyiterations-toytask-1")


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fsync", lambda _: None)  # a slow disk would take most of the time
    monkeypatch.delenv("TOY_FAIL", raising=False)


def failing(monkeypatch, where, *words):
    monkeypatch.setenv("TOY_FAIL", where)
    status = fit(*words)
    monkeypatch.delenv("TOY_FAIL")
    return status


def test_fit_leaves_a_complete_run_directory(capsys):
    assert fit(*toy()) == 0
    assert run_files(RUN) == [
        "DONE", "checkpoints", "config.yaml", "environment.json", "export", "inputs.json", "metrics.csv",
        "samples.jsonl",
    ]  # fmt: skip
    assert run_files(RUN / "checkpoints") == ["best.ckpt", "last-1.ckpt", "last.ckpt"]
    environment = json.loads((RUN / "environment.json").read_text())
    assert {"command", "started", "versions", "git_commit", "hardware"} <= set(environment)
    assert {"torch", "lightning", "transformers", "python", "rlhf_lightning"} <= set(environment["versions"])
    assert "toyiterations-toytask-1: done" in capsys.readouterr().out


def test_fit_saved_config_repeats_the_run():
    assert fit(*toy("ToyIterations", "--model.clip_range", "0.3")) == 0
    assert fit("fit", "--config", str(RUN / "config.yaml"), "--name", "again") == 0
    assert (RUN / "metrics.csv").read_text() == Path("runs/again/metrics.csv").read_text()
    first, second = (yaml.safe_load((path / "config.yaml").read_text()) for path in (RUN, Path("runs/again")))
    assert first.pop("name") == "toyiterations-toytask-1"
    assert second.pop("name") == "again"
    assert first == second
    assert not {"overwrite", "pipeline", "config"} & set(first)


def test_fit_refuses_a_finished_directory(capsys):
    assert fit(*toy()) == 0
    written = {path: path.stat().st_mtime_ns for path in RUN.rglob("*")}
    assert fit(*toy()) == 2
    assert capsys.readouterr().err == (
        f"error: {RUN} holds a finished run; pass --overwrite to replace it, --name for another directory, or a "
        "larger trainer.max_epochs or max_steps to train longer (in Python: overwrite=True, name, max_epochs, …)\n"
    )
    assert {path: path.stat().st_mtime_ns for path in RUN.rglob("*")} == written


def test_fit_overwrite_replaces_everything_but_the_note_of_the_pipeline():
    assert fit(*toy()) == 0
    (RUN / "stage.json").write_text("{}")
    (RUN / "report").mkdir()
    assert fit(*toy(epochs=2), "--overwrite") == 0
    assert "report" not in run_files(RUN)
    assert "stage.json" in run_files(RUN)
    assert len((RUN / "metrics.csv").read_text().splitlines()) == 1 + 3
    assert run_files("runs") == [RUN.name]


@pytest.mark.parametrize("how", ["build", "configure"])
def test_fit_overwrite_that_never_trains_keeps_the_old_run(how, monkeypatch):
    assert fit(*toy()) == 0
    before = {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()}
    if how == "build":
        assert fit(*toy(), "--overwrite", "--model.clip_range", "-1") == 2
    else:
        assert failing(monkeypatch, "configure:0", *toy(), "--overwrite") == 2
    assert {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()} == before
    assert run_files("runs") == [RUN.name]


@pytest.mark.parametrize("how", ["build", "configure"])
def test_fit_that_never_trains_leaves_nothing(how, monkeypatch):
    if how == "build":
        assert fit(*toy(), "--model.clip_range", "-1") == 2
    else:
        assert failing(monkeypatch, "configure:0", *toy()) == 2
    assert not RUN.exists()


def test_fit_starts_where_only_a_logger_left_something():
    (RUN / "wandb").mkdir(parents=True)
    assert fit(*toy(epochs=1)) == 0


def test_fit_refuses_a_folder_that_is_no_run(capsys):
    RUN.mkdir(parents=True)
    (RUN / "thesis.tex").write_text("years of work")
    assert fit(*toy(), "--overwrite") == 2
    assert "exists and holds no run" in capsys.readouterr().err
    assert run_files(RUN) == ["thesis.tex"]


@pytest.mark.parametrize("where", [*(f"{when}:{k}" for when in ("before", "epoch_end") for k in (1, 2, 4, 6))])
def test_fit_resumed_iterations_equal_an_uninterrupted_run(where, monkeypatch, capsys):
    assert fit(*toy(), "--name", "whole") == 0
    assert failing(monkeypatch, where, *toy(), "--name", "halved") == 2
    assert "DONE" not in run_files("runs/halved")
    capsys.readouterr()
    assert fit(*toy(), "--name", "halved") == 0
    done = int(where[-1]) - 1
    expected = f"resuming from iteration {done}" if done else "ToyIterations starts at iteration 0"
    assert expected in capsys.readouterr().out
    for name in ("metrics.csv", "samples.jsonl", "export/weight.txt"):
        assert Path("runs/halved", name).read_text() == Path("runs/whole", name).read_text(), name


@pytest.mark.parametrize("where", [*(f"after:{k}" for k in range(1, 12)), *(f"validation:{k}" for k in (3, 6, 9))])
def test_fit_resumed_steps_equal_an_uninterrupted_run(where, monkeypatch):
    assert fit(*toy("ToySteps"), "--name", "whole") == 0
    assert failing(monkeypatch, where, *toy("ToySteps"), "--name", "halved") == 2
    assert fit(*toy("ToySteps"), "--name", "halved") == 0
    for name in ("metrics.csv", "export/weight.txt"):
        assert Path("runs/halved", name).read_text() == Path("runs/whole", name).read_text(), name


def test_fit_takes_checkpoints_of_the_users_own(capsys):
    words = ["--trainer.callbacks+=Checkpoints", "--trainer.callbacks.keep=3", "--trainer.callbacks.every=2"]
    assert fit(*toy(), *words) == 0
    assert run_files(RUN / "checkpoints") == ["best.ckpt", "last-1.ckpt", "last-2.ckpt", "last.ckpt"]
    both = [*words, *("--trainer.callbacks+=Checkpoints",)]
    assert fit(*toy(), *both, "--name", "both") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_fit_from_another_runs_checkpoint_goes_on_from_its_own(monkeypatch, capsys):
    assert fit(*toy(epochs=2), "--name", "first") == 0
    words = [*toy(), "--name", "second", "--ckpt_path", "runs/first/checkpoints/last.ckpt"]
    assert failing(monkeypatch, "before:5", *words) == 2
    capsys.readouterr()
    assert fit(*words) == 0
    assert "resuming from iteration 4" in capsys.readouterr().out
    assert fit(*toy(), "--name", "whole") == 0
    assert Path("runs/second/export/weight.txt").read_text() == Path("runs/whole/export/weight.txt").read_text()


def test_fit_resumes_only_with_the_same_configuration(monkeypatch, capsys):
    assert failing(monkeypatch, "before:4", *toy()) == 2
    capsys.readouterr()
    assert fit(*toy(), "--model.clip_range", "0.3") == 2
    error = capsys.readouterr().err
    assert "model.init_args.clip_range is 0.2 there and 0.3 now" in error
    assert error.count("\n") == 1
    assert fit(*toy(), "--trainer.enable_progress_bar", "false") == 0


def test_fit_without_checkpoint_starts_over_with_any_configuration(monkeypatch, capsys):
    assert failing(monkeypatch, "before:1", *toy()) == 2
    assert fit(*toy(), "--model.clip_range", "0.3") == 0
    assert "resuming" not in capsys.readouterr().out


def test_fit_finishes_a_run_that_only_lacks_its_mark():
    assert fit(*toy()) == 0
    (RUN / "DONE").unlink()
    (RUN / "export" / "weight.txt").unlink()
    rows = (RUN / "metrics.csv").read_text()
    assert fit(*toy()) == 0
    assert (RUN / "DONE").exists()
    assert (RUN / "export" / "weight.txt").read_text() == "21.0"  # 1 + 2 + … + 6
    assert (RUN / "metrics.csv").read_text() == rows


@pytest.mark.parametrize(
    ("where", "status", "said"), [("interrupt:3", 130, "interrupted"), ("terminate:3", 143, "SIGTERM")]
)
@pytest.mark.parametrize("model", ["ToyIterations", "ToySteps"])
def test_fit_interrupted_exits_non_zero_and_continues(model, where, status, said, monkeypatch, capsys):
    assert failing(monkeypatch, where, *toy(model), "--name", "halved") == status
    assert said in capsys.readouterr().err
    assert "DONE" not in run_files("runs/halved")
    assert fit(*toy(model), "--name", "halved") == 0
    assert fit(*toy(model), "--name", "whole") == 0
    assert Path("runs/halved/metrics.csv").read_text() == Path("runs/whole/metrics.csv").read_text()


def test_fit_failure_in_training_is_one_line_and_keeps_the_last_checkpoint(monkeypatch, capsys):
    assert failing(monkeypatch, "after:4", *toy()) == 2
    assert capsys.readouterr().err == "error: the toy fails at after 4\n"
    assert (RUN / "checkpoints" / "last.ckpt").is_file()


def test_fit_shows_bugs_with_their_traceback(monkeypatch):
    with pytest.raises(RuntimeError, match="a bug"):
        failing(monkeypatch, "bug:2", *toy())


def test_fit_requirements_are_checked_before_the_backbone_is_built(monkeypatch, capsys):
    monkeypatch.setattr(cli_fakes.ToyBackbone, "built", 0)
    assert fit(*toy("NeedsPairs")) == 2
    line = "NeedsPairs needs preferences, which task ToyTask does not provide (it provides prompts)"
    assert capsys.readouterr().err == f"error: {line}\n"
    assert cli_fakes.ToyBackbone.built == 0


def test_fit_names_runs_of_a_sweep_apart(monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    assert fit(*toy(epochs=1)) == 0
    assert run_files("runs") == [f"{RUN.name}-abc123"]


def test_fit_fast_dev_run_writes_nothing_and_says_so(capsys):
    assert fit(*toy(), "--trainer.fast_dev_run", "true") == 0
    assert not Path("runs").exists()
    assert "nothing is saved" in capsys.readouterr().out


def test_profiler_shows_its_table(caplog):
    assert fit(*toy(epochs=1), "--trainer.profiler", "simple") == 0
    assert "Profiler Report" in caplog.text


def test_run_that_ends_early_says_why(capsys):
    words = ["--config", "configs/tasks/bandit.yaml", "--config", "configs/algorithms/reinforce.yaml", "--name", "a"]
    words += ["--trainer.accelerator", "cpu", "--data.rollout_batch_size", "4", "--trainer.callbacks", "EarlyStopping"]
    words += ["--trainer.callbacks.monitor", "objective/score", "--trainer.callbacks.stopping_threshold", "9"]
    assert fit("fit", *words) == 0
    shown = capsys.readouterr().out
    assert "runs/a: training ends early, after iteration 1: EarlyStopping: Stopping threshold reached" in shown
    assert shown.endswith("runs/a: done\n")


def test_fit_ignores_how_the_pipeline_runs_a_task():
    Path("task.yaml").write_text("pipeline: {sft: {config: x.yaml, trainer.max_steps: 5}, pairs: {count: 3}}")
    assert fit(*toy(epochs=1), "--config", "task.yaml") == 0
    assert "pipeline" not in yaml.safe_load((RUN / "config.yaml").read_text())


def test_fit_extends_callbacks_and_writes_to_configured_loggers():
    more = ["--trainer.callbacks+=lightning.pytorch.callbacks.Timer", "--trainer.logger", "CSVLogger"]
    assert fit(*toy(epochs=2), *more, "--trainer.logger.save_dir", "logs") == 0
    assert (RUN / "metrics.csv").is_file()
    assert list(Path("logs").rglob("hparams.yaml"))


def test_validate_takes_the_checkpoint_of_the_run(capsys):
    assert fit(*toy("ToySteps"), "--name", "steps") == 0
    capsys.readouterr()
    assert main(["validate", "--config", "runs/steps/config.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "validate: runs/steps/checkpoints/last.ckpt" in shown
    assert "eval/loss" in shown
    before = Path("runs/steps/metrics.csv").read_text()
    assert before == Path("runs/steps/metrics.csv").read_text()


def test_null_reaches_an_argument_of_an_object_among_the_arguments():
    words = ["--config", "configs/tasks/bandit.yaml", "--config", "configs/algorithms/ppo.yaml", "--name", "a"]
    words += ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
    nulls = {"critic": "clip_range", "optimization": "microbatch_size", "kl": "init_args.loss"}
    words += [f"--model.init_args.{name}.{argument}=null" for name, argument in nulls.items()]
    words += ["--model.init_args.critic.lr", "0.5"]  # one that is no null stays beside it
    assert fit("fit", *words) == 0
    arguments = yaml.safe_load(Path("runs/a/config.yaml").read_text())["model"]["init_args"]
    assert arguments["critic"]["clip_range"] is None
    assert arguments["critic"]["lr"] == 0.5
    assert arguments["optimization"]["microbatch_size"] is None
    assert arguments["kl"]["init_args"]["loss"] is None

import io
from types import SimpleNamespace

import pytest
from lightning.pytorch import Trainer

from rlhf_lightning.algorithms.base.feedback import FeedbackAlgorithm
from rlhf_lightning.algorithms.dpo import DPO
from rlhf_lightning.algorithms.sft import SFT
from rlhf_lightning.callbacks.progress import Progress
from rlhf_lightning.data.environments import EnvironmentDataModule
from rlhf_lightning.data.rollouts import RolloutDataModule
from rlhf_lightning.records.metrics import Description
from tests.cli_fakes import ToyBackbone, ToyData, ToyHeldout, ToyIterations, ToySteps, ToyTask


def run(model, progress, **budget):
    task = ToyTask()
    trainer = Trainer(
        **budget, callbacks=[progress], logger=False, accelerator="cpu", enable_checkpointing=False,
        enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(model(task, ToyBackbone()), ToyData(task, length=50 if issubclass(model, ToySteps) else 1))


class Reports:
    """Says what is shown of it, as the class does in whose words it speaks."""

    def describe(self):
        return Description("policy", type(self).__name__)

    def progress(self):
        return self.labels


class Iterations(Reports, ToyIterations):
    labels = RolloutDataModule.progress


class Steps(Reports, ToySteps):
    labels = SFT.progress(None)


class ToyControl(Reports, ToyIterations):
    """Reports what an environment does."""

    labels = EnvironmentDataModule.progress

    def publish(self, row):
        score = {"objective/score": -1234.5, "eval/score": 20.25}
        super().publish({"iteration": row["iteration"], **score, "env_steps": 2048 * row["iteration"]})


class ToyPreferences(Reports, ToySteps):
    """Reports what a preference optimizer does."""

    labels = FeedbackAlgorithm.progress(SimpleNamespace(group="dpo", measured=DPO.measured))

    def publish(self, row):
        super().publish({"step": row["step"], "dpo/loss": 0.6, "dpo/accuracy": 0.75, "eval/gold": 0.61})


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("model", "budget", "unit"),
    [(Iterations, {"max_epochs": 200}, "iteration"), (Steps, {"max_steps": 200}, "step")],
)
def test_progress_log_file_gets_about_ten_lines(model, budget, unit, capsys):
    run(model, Progress(), **budget)
    lines = capsys.readouterr().out.splitlines()
    assert 10 <= len(lines) <= 11
    assert f"{model.__name__}  {unit} 20/200" in "\n".join(lines)
    assert lines[-1].startswith(f"{model.__name__}  {unit} 200/200")
    assert all(" left" in line for line in lines[:-1])
    field = "score" if model is Iterations else "loss"
    assert all(f"  {field} " in line for line in lines)


def test_progress_short_run_gets_a_line_for_each_iteration(capsys):
    run(Iterations, Progress(), max_epochs=3)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1] for line in lines] == ["iteration 1/3", "iteration 2/3", "iteration 3/3"]
    assert "KL 0.5" in lines[0]


def test_progress_of_control_says_return_and_environment_steps(capsys):
    run(ToyControl, Progress(), max_epochs=2)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "ToyControl  iteration 2/2  env steps 4,096  return -1,234  eval return 20.2"


def test_progress_of_preferences_says_accuracy_and_gold(capsys):
    run(ToyPreferences, Progress(), max_steps=4)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "ToyPreferences  step 4/4  loss 0.6  accuracy 0.75  eval gold 0.61"


def test_progress_ends_with_the_evaluation_of_the_last_step(capsys):
    class Evaluated(ToyPreferences):
        def validation_step(self, batch, batch_idx):
            self.publish({"step": self.global_step, "eval/gold": self.global_step})

        def publish(self, row):
            ToySteps.publish(self, row)

    trainer = Trainer(
        max_steps=4, val_check_interval=2, callbacks=[Progress()], logger=False, accelerator="cpu",
        enable_checkpointing=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(Evaluated(ToyTask(), ToyBackbone()), ToyHeldout(ToyTask(), length=50))
    assert capsys.readouterr().out.splitlines()[-1].endswith("eval gold 4")


def test_progress_terminal_gets_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    run(Iterations, Progress(), max_epochs=3)
    shown = terminal.getvalue()
    assert "3/3" in shown
    assert "score 2" in shown  # (1 + 2 + 3) / 3
    assert "━" in shown


def test_progress_stops_its_bar_when_the_run_fails(monkeypatch):
    monkeypatch.setattr("sys.stdout", Terminal())
    monkeypatch.setenv("TOY_FAIL", "bug:2")
    progress = Progress()
    with pytest.raises(RuntimeError):
        run(Iterations, progress, max_epochs=3)
    assert progress._bar is None


def test_progress_disabled_prints_nothing(capsys):
    progress = Progress()
    progress.disable()
    run(Iterations, progress, max_epochs=3)
    assert capsys.readouterr().out == ""

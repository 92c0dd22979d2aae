"""A detector in a trainer: what it writes, what it stops, and what is exported then."""

import json

import pytest
from lightning.pytorch import Trainer
from training_helpers import AtHook

from rlhf_lightning.callbacks.checkpoint_io import AtomicCheckpointIO
from rlhf_lightning.callbacks.checkpoints import Checkpoints
from rlhf_lightning.callbacks.detectors import Detector, RewardHacking, WarningsFile
from rlhf_lightning.callbacks.export import Export
from tests.cli_fakes import ToyBackbone, ToyData, ToyIterations, ToyTask


class From(Detector):
    """Finds something from an iteration on.

    The toy's weight is 1 + 2 + … + n after n iterations; ``eval/score`` is highest at iteration 4.
    """

    advice = "something else"

    def __init__(self, iteration: int, stop: bool = False) -> None:
        super().__init__(("objective/kl_ref_sequence",), stop=stop)
        self.iteration = iteration

    def finding(self, history):
        at = history["objective/kl_ref_sequence"].at
        return "it is late" if at and at[-1] >= self.iteration else None


class WithMonitor(ToyIterations):
    """Also reports a second opinion, best at iteration 2."""

    def publish(self, row):
        heldout = {"eval/heldout_score": -abs(row["iteration"] - 2.0)} if "eval/score" in row else {}
        super().publish({**row, **heldout})


def run(folder, *callbacks, model=ToyIterations, epochs=10, ckpt_path=None):
    task = ToyTask()
    trainer = Trainer(
        max_epochs=epochs, default_root_dir=folder, callbacks=[WarningsFile(), *callbacks], logger=False,
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, plugins=[AtomicCheckpointIO()],
        enable_checkpointing=any(isinstance(callback, Checkpoints) for callback in callbacks), limit_val_batches=0,
    )  # fmt: skip
    module = model(task, ToyBackbone())
    trainer.fit(module, ToyData(task), ckpt_path=ckpt_path)
    return module


def weight(folder, name):
    return AtomicCheckpointIO().load_checkpoint(folder / "checkpoints" / name)["state_dict"]["weight"].item()


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("rlhf_lightning")]


def exported(folder):
    return float((folder / "export" / "weight.txt").read_text())


def test_detector_warns_in_the_log_and_in_the_file(tmp_path, caplog):
    run(tmp_path, From(6))
    (line,) = (tmp_path / "warnings.jsonl").read_text().splitlines()
    assert json.loads(line) == {"iteration": 6, "detector": "From", "message": "it is late; try something else"}
    assert said(caplog) == ["From at iteration 6: it is late; try something else"]


def test_detector_without_trouble_writes_nothing(tmp_path):
    (tmp_path / "warnings.jsonl").write_text('{"iteration": 1}\n')  # of an earlier run
    run(tmp_path, From(11))
    assert not (tmp_path / "warnings.jsonl").exists()


def test_detector_that_does_not_stop_lets_the_run_go_on(tmp_path):
    module = run(tmp_path, From(6), Checkpoints(), Export())
    assert module.weight.item() == exported(tmp_path) == 55


def test_stop_exports_the_best_checkpoint(tmp_path, caplog):
    module = run(tmp_path, From(6, stop=True), Checkpoints(), Export())
    assert weight(tmp_path, "last.ckpt") == 21  # 1 + … + 6
    assert weight(tmp_path, "best.ckpt") == module.weight.item() == exported(tmp_path) == 10  # 1 + … + 4
    assert said(caplog)[0].endswith("; training stops here")
    assert said(caplog)[1].endswith("best.ckpt")


def test_stop_keeps_no_checkpoint_from_where_the_trouble_began(tmp_path):
    run(tmp_path, From(4, stop=True), Checkpoints(), Export())  # iteration 4 has the best score
    assert weight(tmp_path, "best.ckpt") == exported(tmp_path) == 3


def test_stop_without_a_best_checkpoint_exports_the_last_state(tmp_path, caplog):
    run(tmp_path, From(1, stop=True), Checkpoints(), Export())
    assert exported(tmp_path) == 1
    assert "there is no best.ckpt" in said(caplog)[1]


def test_stop_survives_an_interruption_between_the_last_checkpoint_and_the_end(tmp_path):
    def interrupt(trainer, module):
        raise RuntimeError("power failure")

    with pytest.raises(RuntimeError, match="power failure"):
        run(tmp_path, AtHook("on_train_end", interrupt), From(6, stop=True), Checkpoints(), Export())
    assert not (tmp_path / "export").exists()
    last = tmp_path / "checkpoints" / "last.ckpt"
    run(tmp_path, From(6, stop=True), Checkpoints(), Export(), ckpt_path=last)
    assert weight(tmp_path, "last.ckpt") == 21  # no further iteration
    assert exported(tmp_path) == 10
    assert len((tmp_path / "warnings.jsonl").read_text().splitlines()) == 1


def test_resumed_run_drops_the_warnings_after_its_checkpoint(tmp_path, caplog):
    run(tmp_path, From(3), Checkpoints(), epochs=4)
    file = tmp_path / "warnings.jsonl"
    before = file.read_text()
    file.write_text(before + '{"iteration": 5, "detector": "From", "message": "x"}\n{"iterat')
    run(tmp_path, From(3), Checkpoints(), ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    assert file.read_text() == before
    assert len(said(caplog)) == 1  # the resumed run knows that it has warned


def test_best_checkpoint_goes_by_the_monitor_that_a_detector_names(tmp_path):
    run(tmp_path / "with", RewardHacking(), Checkpoints(), model=WithMonitor)
    assert weight(tmp_path / "with", "best.ckpt") == 3
    run(tmp_path / "without", Checkpoints(), model=WithMonitor)
    assert weight(tmp_path / "without", "best.ckpt") == 10


def test_best_checkpoint_does_not_go_by_a_score_that_is_hacked(tmp_path):
    class Hacked(RewardHacking):
        def finding(self, history):
            return "it is hacked" if (history["objective/score"].at or [0])[-1] >= 4 else None

    run(tmp_path / "score", Hacked(), Checkpoints())
    assert weight(tmp_path / "score", "best.ckpt") == 3  # of iteration 2: 4 is better, and hacked
    run(tmp_path / "other", From(4), Checkpoints())
    assert weight(tmp_path / "other", "best.ckpt") == 10


def test_detectors_are_quiet_in_evaluations(caplog):
    task = ToyTask()
    detector = From(0)
    trainer = Trainer(callbacks=[detector], logger=False, enable_checkpointing=False, accelerator="cpu")
    module = ToyIterations(task, ToyBackbone())
    trainer.state.fn = "validate"
    detector.on_row(trainer, module, {"iteration": 5, "objective/kl_ref_sequence": 1.0})
    assert not said(caplog)
    trainer.state.fn = "fit"
    detector.on_row(trainer, module, {"iteration": 5, "objective/kl_ref_sequence": 1.0})
    assert len(said(caplog)) == 1

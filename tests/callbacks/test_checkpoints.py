import pytest
import torch
from lightning.pytorch import Trainer

from rlhf_lightning.callbacks.checkpoints import Checkpoints
from rlhf_lightning.errors import UserError
from tests.cli_fakes import ToyBackbone, ToyData, ToyHeldout, ToyIterations, ToySteps, ToyTask


def run(folder, model, checkpoints, **budget):
    task = ToyTask()
    trainer = Trainer(
        **budget, default_root_dir=folder, callbacks=[checkpoints], logger=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    data = ToyHeldout(task, length=5) if model is ToySteps else ToyData(task)
    trainer.fit(model(task, ToyBackbone()), data)
    return trainer


def weight(folder, name):
    return torch.load(folder / "checkpoints" / name, weights_only=True)["state_dict"]["weight"].item()


def test_checkpoints_last_and_best(tmp_path):
    run(tmp_path, ToyIterations, Checkpoints(), max_epochs=7)
    assert weight(tmp_path, "last.ckpt") == 28  # 1 + 2 + … + 7
    assert weight(tmp_path, "best.ckpt") == 10  # eval/score is highest at iteration 4: 1 + 2 + 3 + 4
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["best.ckpt", "last-1.ckpt", "last.ckpt"]


def test_checkpoints_saves_iterations_without_an_optimizer_step(tmp_path):
    class NoStep(ToyIterations):
        def training_step(self, batch, batch_idx):
            with torch.no_grad():
                self.weight += self.number() + 1

    trainer = run(tmp_path, NoStep, Checkpoints(), max_epochs=3)
    assert trainer.global_step == 0
    assert weight(tmp_path, "last.ckpt") == 6


@pytest.mark.parametrize("every", [1, 2, 4, 10])
def test_checkpoints_saves_every_so_often_and_at_the_end(every, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Trainer, "save_checkpoint", lambda self, path, *_: saved.append(self.current_epoch + 1))
    monkeypatch.setattr("rlhf_lightning.callbacks.checkpoints.link", lambda *_: None)
    run(tmp_path, ToyIterations, Checkpoints(every=every, monitor="none"), max_epochs=5)
    assert saved == [k for k in range(1, 6) if k % every == 0 or k == 5]


def test_checkpoints_of_steps_wait_for_the_evaluation_of_the_same_step(tmp_path):
    run(tmp_path, ToySteps, Checkpoints(every=2), max_steps=11, val_check_interval=3, check_val_every_n_epoch=None)
    assert weight(tmp_path, "last.ckpt") == 66  # 1 + 2 + … + 11
    assert weight(tmp_path, "best.ckpt") == 21  # eval/loss is lowest at step 6
    state = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["callbacks"]
    assert any(callback.get("best") == 0.0 for callback in state.values())


def test_checkpoints_minimum_of_a_given_metric(tmp_path):
    checkpoints = Checkpoints(monitor="objective/score", mode="min")
    run(tmp_path, ToyIterations, checkpoints, max_epochs=3)
    assert weight(tmp_path, "best.ckpt") == 1


def test_checkpoints_refuses_to_select_by_gold():
    with pytest.raises(UserError, match=r"best\.ckpt cannot go by eval/gold"):
        Checkpoints(monitor="eval/gold")

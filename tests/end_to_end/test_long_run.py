"""A run of 200 iterations ends with as many tensors, Python objects and open files as it had early on."""

import gc
import os
import sys
from contextlib import suppress

import torch
from lightning.pytorch import Callback
from training_helpers import ppo, quiet_trainer, run_seed_is

from rlhf_lightning.callbacks.checkpoint_io import AtomicCheckpointIO
from rlhf_lightning.callbacks.checkpoints import Checkpoints
from rlhf_lightning.callbacks.detectors import WarningsFile, default_detectors, history
from rlhf_lightning.callbacks.metrics_file import MetricsFile
from rlhf_lightning.callbacks.samples_file import SamplesFile
from rlhf_lightning.data import passes
from rlhf_lightning.data.rollouts import RolloutDataModule
from rlhf_lightning.models.tabular import TabularBackbone
from rlhf_lightning.tasks.bandit import Bandit

LOOKS = range(60, 201, 20)


class Count(Callback):
    """Counts what is alive, now and then."""

    def __init__(self):
        self.tensors, self.blocks, self.files, self.checkpoints = [], [], [], []

    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch in LOOKS:
            gc.collect()
            self.tensors.append(sum(isinstance(one, torch.Tensor) for one in gc.get_objects()))
            self.blocks.append(sys.getallocatedblocks())
            self.files.append(open_files())
            self.checkpoints.append(os.path.getsize(f"{trainer.default_root_dir}/checkpoints/last.ckpt"))


def open_files():
    count = 0
    for number in range(1024):
        with suppress(OSError):
            os.fstat(number)
            count += 1
    return count


def test_long_run_holds_on_to_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "REMEMBERED", 30)  # full before the first look
    monkeypatch.setattr(passes, "_shuffled", passes._shuffled.__wrapped__)  # which remembers at most 32 passes
    task, count = Bandit(), Count()
    module = ppo(task, backbone=TabularBackbone(), eval_every=20)
    data = RolloutDataModule(task, rollout_batch_size=8, max_new_tokens=3, eval_prompts=4)
    trainer = quiet_trainer(
        *(MetricsFile(), SamplesFile(), WarningsFile(), *default_detectors(), Checkpoints(every=20), count),
        default_root_dir=tmp_path,
        plugins=[AtomicCheckpointIO()],
        max_epochs=202,  # the last iteration evaluates, and is no look
        limit_val_batches=0,
    )
    with run_seed_is(0):
        trainer.fit(module, data)
    assert len(count.tensors) == len(LOOKS)
    assert len({*count.tensors}) == 1
    assert len({*count.files}) == 1
    assert max(count.checkpoints) - min(count.checkpoints) < 200  # numbers of iterations get longer
    # one or two an iteration are the libraries' own; rows of metrics that are kept would be tens in each
    assert max(count.blocks[-3:]) - min(count.blocks[:3]) < 5 * (LOOKS[-1] - LOOKS[0])

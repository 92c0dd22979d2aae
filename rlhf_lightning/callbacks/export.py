"""``export/``: the trained networks in the Hugging Face format."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from rlhf_lightning.lightning_seams import is_dry_run
from rlhf_lightning.records.files import writing


class Export(Callback):
    """Writes what was trained when training ends, as a whole folder or not at all.

    A detector that stops a run goes back to ``best.ckpt`` at that point: list it before.
    """

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write beside the target and rename."""
        if not trainer.is_global_zero or is_dry_run(trainer):
            return
        target = Path(trainer.default_root_dir) / "export"
        temporary = target.with_name(".export.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        with writing(target):
            temporary.mkdir(parents=True)
            cast(Any, pl_module).export(temporary)
            if target.is_symlink():
                target.unlink()  # what it points to is not ours
            shutil.rmtree(target, ignore_errors=True)
            temporary.rename(target)

"""`NumberedDataModule`: data whose loaders yield batch numbers, not the data itself."""

from __future__ import annotations

from typing import cast

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from rlhf_lightning.records.constructed import Constructed
from rlhf_lightning.tasks.task import Task


class NumberedDataModule(Constructed, LightningDataModule):
    """Data whose loaders yield batch numbers: the module that is trained asks for the data of a number itself.

    So every rank knows the whole global batch, and a resumed run continues with the batch that comes next.

    Args:
        task: where the data come from.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def steps_per_pass(self) -> int:
        """Number of training batches in an epoch."""
        return 1

    def heldout_batches(self) -> int:
        """Number of held-out batches."""
        return 1

    def train_dataloader(self) -> DataLoader[int]:
        """The numbers of the training batches."""
        return _numbers(self.steps_per_pass())

    def val_dataloader(self) -> DataLoader[int]:
        """The numbers of the held-out batches."""
        return _numbers(self.heldout_batches())

    test_dataloader = val_dataloader


def _numbers(count: int) -> DataLoader[int]:
    return DataLoader(cast("Dataset[int]", range(count)), batch_size=None)

"""What policy optimizers ask of their data: fresh trajectories every iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from rlhf_lightning.models.policy import Policy
from rlhf_lightning.records.metrics import Experience, Metric
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.types import ScoredRollout


class CollectionDataModule(LightningDataModule):
    """Trajectories of the policy that is trained, in text or in an environment.

    Args:
        task: what is to be done.
    """

    kind: ClassVar[str]
    """The kind of run that collects here, see `Description`."""
    experience: ClassVar[Experience]
    """What is collected, and which metric counts it."""
    progress: ClassVar[dict[str, str]]
    """Metrics that are shown while the run goes on, with short labels."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    @property
    def objectives(self) -> Sequence[str]:
        """Names of the objectives that the reward scores each by itself; empty where it gives one score only."""
        return ()

    def metrics(self) -> tuple[Metric, ...]:
        """What `statistics` reports and what held-out evaluations add, as figures show it."""
        raise NotImplementedError

    def collect(self, policy: Policy, iteration: int, attempt: int = 0) -> ScoredRollout:
        """The rollout of an iteration; every rank gets the whole batch.

        Args:
            iteration: counted from 0.
            attempt: for a further rollout in the same iteration.
        """
        raise NotImplementedError

    def collect_heldout(self, policy: Policy) -> ScoredRollout:
        """What the policy does where it is judged, always with the same noise."""
        raise NotImplementedError

    def statistics(self, scored: ScoredRollout) -> dict[str, float]:
        """Means to report, as ``objective/NAME`` and ``rollout/NAME``."""
        raise NotImplementedError

    def counters(self, scored: ScoredRollout, iteration: int) -> dict[str, int]:
        """How much has been collected up to and with this iteration, counted from 0."""
        raise NotImplementedError

    def finish(self, scored: ScoredRollout) -> None:
        """Called once the policy has been updated on the rollout: the time to move what was frozen during it."""

    def train_dataloader(self) -> DataLoader:
        """One entry per iteration: the module collects its rollout itself."""
        return DataLoader(range(1), batch_size=None)

    def val_dataloader(self) -> DataLoader:
        """One entry: the module evaluates everything at once."""
        return DataLoader(range(1), batch_size=None)

    def test_dataloader(self) -> DataLoader:
        """The same again."""
        return self.val_dataloader()

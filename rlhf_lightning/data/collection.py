"""`CollectionDataModule`: the interface of data that is collected anew in every iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, TypeVar

from lightning.pytorch.utilities.seed import isolate_rng

from rlhf_lightning.data.numbered import NumberedDataModule
from rlhf_lightning.distributed import failing_together
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.records.metrics import Experience, Metric
from rlhf_lightning.rollout.responses import ResponseCollector
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.types import Prompt, ScoredRollout

PolicyT = TypeVar("PolicyT", bound=Policy)


class CollectionDataModule(NumberedDataModule):
    """Trajectories of the policy that is trained, in text or in environments; one batch is an iteration."""

    kind: ClassVar[str]
    """Kind of a run that collects these data, see `Description`."""
    experience: ClassVar[Experience]
    """What is collected, and the metric that counts it."""
    progress: ClassVar[dict[str, str]]
    """Metrics that are shown during a run, with short labels."""

    rollout_batch_size: int
    """Responses, or steps in environments, per iteration, across all devices."""
    samples_per_prompt: int = 1
    """Responses to the same prompt."""

    @property
    def objectives(self) -> Sequence[str]:
        """Names of the objectives that the reward scores separately; empty for a single score."""
        return ()

    def metrics(self) -> tuple[Metric, ...]:
        """Descriptions of the metrics that `statistics` and held-out evaluations report, for figures."""
        raise NotImplementedError

    def collect(self, policy: Policy, iteration: int, attempt: int = 0) -> ScoredRollout:
        """The rollout of an iteration; every rank gets the global batch.

        Args:
            iteration: counted from 0.
            attempt: number of the rollout within the iteration, from 0.
        """
        raise NotImplementedError

    def collect_heldout(self, policy: Policy) -> ScoredRollout:
        """A rollout for evaluation, always on the same prompts or episodes and with the same noise."""
        raise NotImplementedError

    def statistics(self, scored: ScoredRollout) -> dict[str, float]:
        """Means over the rollout, as ``objective/NAME`` and ``rollout/NAME``."""
        raise NotImplementedError

    def counters(self, iteration: int) -> dict[str, int]:
        """The amount of data collected up to and including this iteration, which is counted from 0."""
        return {self.experience.counter: (iteration + 1) * self.rollout_batch_size}

    def finish(self, scored: ScoredRollout, policy: Policy) -> None:
        """Update running moments and learned weights, which are constant during an iteration.

        Called after the policy has been updated on the rollout.
        """


def try_rewards(responses: ResponseCollector, task: Task, prompts: Sequence[Prompt], count: int = 2) -> None:
    """Score two rows of the task before anything is loaded or built; random numbers go on as if it had not happened.

    The rows are held-out demonstrations or preferred responses, where the task has some, or else prompts as responses.

    Raises:
        UserError: a reward source fails.
    """
    rows: list[tuple[Prompt, str]] = []
    if "demonstrations" in task.provides:
        rows = [(one.prompt, one.response) for one in task.demonstrations("heldout")[:count]]
    elif "preferences" in task.provides:
        rows = [(one.prompt, one.chosen) for one in task.preferences("heldout")[:count]]
    invented = [(prompt, prompt if isinstance(prompt, str) else prompt[-1]["content"]) for prompt in prompts[:count]]
    with failing_together(), isolate_rng():
        responses.try_out(rows or invented, invented=not rows)


def checked_policy(policy: Policy, kind: type[PolicyT], needed: str, expected: str) -> PolicyT:
    """The policy, if it is of this kind; otherwise a `UserError` says what was ``needed``, and is ``expected``."""
    if not isinstance(policy, kind):
        raise UserError(f"{needed}, got {type(policy).__name__}; expected {expected}")
    return policy

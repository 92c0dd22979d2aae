"""Trials in a folder that several workers share, also on several machines: who works on which, and what came out.

A worker holds a lock for each trial that it works on. The system releases the locks of a process that ends, however it
ends, and the next worker that looks for work goes on with its trials.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from rlhf_lightning.errors import UserError
from rlhf_lightning.records.files import writing
from rlhf_lightning.records.locks import locked
from rlhf_lightning.sweep.search import Search

JOURNAL = "study.log"
VALUES, SCORES, REASON = "values", "scores", "reason"
"""What is kept with a trial: its values by key, the metric for each seed, and why it failed."""

_CLAIMS = ".claims"
_MOMENT = 0.05
"""Seconds between two looks at a lock that another worker holds for a moment."""


class Trials:
    """The trials of a search, and those of them that this worker has claimed.

    Args:
        folder: that the workers share.
        count: the number of trials in all.

    Raises:
        UserError: the folder cannot be written to, or has no locks.
    """

    def __init__(self, folder: Path, search: Search, count: int) -> None:
        self.search, self.count = search, count
        self._claims = folder / _CLAIMS
        with writing(folder):
            self._claims.mkdir(parents=True, exist_ok=True)
        self._held: dict[int, IO[str]] = {}
        with self._alone():
            self.study, self._storage = open_study(folder, search)

    def next(self) -> optuna.Trial | None:
        """A trial to work on: one that a worker has left, or a new one; None where there is none.

        It stays this worker's until it is told how the trial ended.
        """
        with self._alone():
            trials = self.study.get_trials(deepcopy=False)
            for trial in trials:
                if trial.state is TrialState.RUNNING and self._claim(trial.number):
                    self.study.sampler = self.search.sampler(trial.number)
                    return self._with_values(self._trial(trial.number))
            if len(trials) >= self.count:
                return None
            self.study.sampler = self.search.sampler(len(trials))
            new = self.study.ask()
            self._claim(new.number)
            return self._with_values(new)

    def tell(self, number: int, state: TrialState, value: float | None = None, **notes: Any) -> None:
        """How a trial of this worker ended.

        Args:
            notes: what to keep with it.
        """
        trial = self._trial(number)
        for name, note in notes.items():
            trial.set_user_attr(name, note)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a pruned trial's value is that which it had last
            self.study.tell(number, value, state=state)
        self._held.pop(number).close()

    def unfinished(self) -> int:
        """Number of trials that are still to come, or that other workers are running."""
        return self.count - sum(trial.state.is_finished() for trial in self.study.get_trials(deepcopy=False))

    def release(self) -> None:
        """Leave the trials of this worker to others."""
        for lock in self._held.values():
            lock.close()
        self._held.clear()

    def _trial(self, number: int) -> optuna.Trial:
        """A trial that has begun, as Optuna gave it to whoever began it."""
        study = self._storage.get_study_id_from_name(self.study.study_name)
        return optuna.Trial(self.study, self._storage.get_trial_id_from_study_id_trial_number(study, number))

    def _with_values(self, trial: optuna.Trial) -> optuna.Trial:
        """The trial, after its values have been drawn; those of a trial that goes on are the ones it had."""
        trial.set_user_attr(VALUES, self.search.space.suggest(trial))
        return trial

    def _claim(self, number: int) -> bool:
        """Whether this worker may work on a trial: no other does, and it has not begun to."""
        if number in self._held:
            return False
        try:
            self._held[number] = self._lock(f"trial-{number}")
        except UserError:
            return False
        return True

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Inside, no other worker takes a trial."""
        while True:
            try:
                lock = self._lock("all")
                break
            except _NoLocksError:
                raise
            except UserError:
                time.sleep(_MOMENT)
        try:
            yield
        finally:
            lock.close()

    def _lock(self, name: str) -> IO[str]:
        lock = locked(self._claims, name=name)
        if lock is None:
            raise _NoLocksError(f"{self._claims.parent}: the file system has no locks; choose another --runs_dir")
        return lock


class _NoLocksError(UserError):
    """Nothing can be locked."""


def open_study(folder: Path, search: Search) -> tuple[optuna.Study, JournalStorage]:
    """The study in a folder, and the file that it stands in; a new one where there is none.

    Raises:
        UserError: its file is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = folder / JOURNAL
    try:
        with writing(path):
            storage = JournalStorage(JournalFileBackend(str(path)))
            study = optuna.create_study(
                storage=storage,
                study_name="sweep",
                direction=search.goal,
                pruner=search.pruner(),
                load_if_exists=True,
            )
            return study, storage
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged: {error}; remove it, or choose another --name") from error


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """The complete trial with the best value; None where no trial is complete."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        return None
    sign = 1 if study.direction is StudyDirection.MAXIMIZE else -1
    return max(complete, key=lambda trial: sign * float(trial.value or 0.0))

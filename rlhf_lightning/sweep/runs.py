"""The runs of a sweep on this machine: the command line of each trial and seed, and what the folder was made for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.pipeline.stages import Stage
from rlhf_lightning.records.files import write_atomically
from rlhf_lightning.sweep.file import SweepFile

DECLARED = "sweep.json"
"""What a folder's trials are trials of."""

SEED = "seed_everything"
_UNLOGGED = "--trainer.logger=false"
"""Whoever runs a sweep without W&B need have no account; what the user gives comes after it."""


@dataclass(frozen=True)
class SweepRuns:
    """A sweep in a folder.

    Args:
        folder: of the sweep; each trial has a folder in it, and each of its seeds one in that, where there are several.
        seeds: number of runs of each trial, with the seeds 1, 2, …; a single run has the seed that the file gives it.
        more: options of the user's own, for all runs.

    Raises:
        UserError: the file sweeps the seed, and there are several.
    """

    file: SweepFile
    folder: Path
    seeds: int = 1
    more: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.seeds > 1 and SEED in self.file.search.space.distributions:
            raise UserError(f"{self.file.path}: parameters.{SEED}: --seeds {self.seeds} gives each trial seeds already")

    def stages(self, number: int, values: Mapping[str, Any]) -> list[Stage]:
        """The runs of a trial, one for each seed."""
        words = self._fit(values)
        name = f"trial-{number}"
        if self.seeds == 1:
            return [self._stage(name, words, self.folder / name)]
        return [
            self._stage(f"{name}-seed-{seed}", [*words, f"--{SEED}={seed}"], self.folder / name / f"seed-{seed}")
            for seed in range(1, self.seeds + 1)
        ]

    def again(self, values: Mapping[str, Any]) -> list[str]:
        """The command that trains with the values of a trial, in a run of its own."""
        plain = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
        return [*self._fit(plain), "--name", f"{self.folder.name}-best"]

    def declare(self) -> None:
        """Say what the folder's trials are trials of, or check that they are trials of this sweep.

        Raises:
            UserError: they are trials of another, or the folder holds something else.
        """
        path = self.folder / DECLARED
        if not path.is_file() and any(not entry.name.startswith(".") for entry in self.folder.glob("*")):
            raise UserError(f"{self.folder} exists and holds no sweep; choose another --name")
        own = self._declaration()
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(own, indent=1) + "\n")
            return
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
        changed = [key for key in own if not isinstance(known, dict) or known.get(key) != own[key]]
        if changed:
            raise UserError(
                f"{self.folder} holds the trials of another sweep ({', '.join(changed)} differ); choose another --name"
            )

    def _declaration(self) -> dict[str, Any]:
        search = self.file.search
        return {
            "parameters": {name: repr(one) for name, one in search.space.distributions.items()},
            "method": search.method,
            "metric": [search.metric, search.goal],
            "early_terminate": repr(search.halving),
            "seed": search.seed,
            "command": list(self.file.words),
            "options": list(self.more),
            "seeds": self.seeds,
        }

    def _fit(self, values: Mapping[str, Any]) -> list[str]:
        return self.file.command(values, [_UNLOGGED, *self.more])

    @staticmethod
    def _stage(name: str, words: list[str], directory: Path) -> Stage:
        place = ["--runs_dir", str(directory.parent), "--name", directory.name]
        return Stage(name, [*words, *place], directory, {}, directory / "export")

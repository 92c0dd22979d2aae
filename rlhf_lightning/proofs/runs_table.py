"""The table of how far apart runs end under other circumstances, measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_lightning.proofs.runs import ShortRun
from rlhf_lightning.proofs.same_run import difference, distance, outcome
from rlhf_lightning.proofs.two_ranks import TwoRanks, on_two_ranks
from rlhf_lightning.report.tables import markdown_table

ROUNDING = 1e-9
"""Largest difference that the order of sums may make in float64."""

HEADER = ("algorithm", "task", "trained by", "1 or 2 ranks", "microbatches of 1, 3, all", "killed and resumed")

TEXT = """\
Whole runs of three iterations, or of four to six steps, on the CPU in float64, seed {seed}: how far apart they end.

{table}

- Differences are the largest of any parameter or buffer and of any logged metric, those above 1 in proportion; what
  the clock says is not compared. More than {rounding:.0e} is refuted; after a death, anything but 0.
- Trained by: the largest change of a parameter from the beginning to the end.
- Killed: within the third iteration or a later step, on one rank and on two, and resumed from last.ckpt with everything
  built anew; compared with the uninterrupted run on as many ranks.
- Rows do not divide evenly: two ranks have unequal numbers of held-out prompts, and now and then one has no pair.\
"""


@dataclass(frozen=True)
class RunRow:
    """How far apart a run ends.

    Args:
        run: which.
        trained_by: the largest change of a parameter.
        ranks: difference between one rank and either of two.
        microbatches: largest difference between microbatch sizes.
        resumed: largest difference after a death, on one rank or two.
    """

    run: ShortRun
    trained_by: float
    ranks: float
    microbatches: float
    resumed: float

    @property
    def holds(self) -> bool:
        """Whether nothing but rounding differs, in a run that trains."""
        return not any("REFUTED" in cell for cell in self.cells())

    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        trains = self.trained_by > 1e3 * ROUNDING
        return (
            self.run.name,
            self.run.task,
            f"{self.trained_by:.2g}" + ("" if trains else " — REFUTED"),
            *(_cell(x, limit=ROUNDING) for x in (self.ranks, self.microbatches)),
            _cell(self.resumed, limit=0),
        )


def measure_runs(
    runs: Sequence[ShortRun], folder: Path, *, track: Callable[[Sequence[ShortRun]], Iterable[ShortRun]] = iter
) -> list[RunRow]:
    """Repeat runs on two ranks, in microbatches, and with a death in between.

    Args:
        runs: such as `all_runs`.
        folder: for what they write.
        track: shows how far the loop over the runs is.
    """
    ranks = on_two_ranks(folder / "two_ranks", runs)
    return [_measured(run, folder / str(number), ranks[number]) for number, run in enumerate(track(runs))]


def _measured(run: ShortRun, folder: Path, two: TwoRanks) -> RunRow:
    whole, killed = outcome(run, folder / "whole"), outcome(run, folder / "killed", killed=True)
    parts = [outcome(run, folder / f"microbatches_{size}", microbatch_size=size) for size in (1, 3)]
    return RunRow(
        run=run,
        trained_by=distance(whole.start, whole.end),
        ranks=max(difference(whole, one) for one in two.whole),
        microbatches=max(difference(whole, one) for one in parts),
        resumed=max(map(difference, [whole, *two.whole], [killed, *two.killed])),
    )


def runs_markdown(rows: Iterable[RunRow], *, seed: int) -> str:
    """The rows with what they are about."""
    return TEXT.format(seed=seed, table=markdown_table([HEADER, *(row.cells() for row in rows)]), rounding=ROUNDING)


def _cell(found: float, *, limit: float) -> str:
    return (f"{found:.0e}" if found else "0") + ("" if found <= limit else " — REFUTED")

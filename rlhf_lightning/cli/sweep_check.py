"""What an agent of a W&B sweep would choke on: its command lines are parsed, and nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_lightning.cli.rehearsal import FitLine, mistakes_in
from rlhf_lightning.errors import UserError
from rlhf_lightning.sweep.file import SweepFile


def check_sweep(file: SweepFile, more: Sequence[str] = ()) -> int:
    """Parse both ends of each range and each choice of a sweep, as an agent gives them; returns how many it parsed.

    Args:
        more: options for all trials.

    Raises:
        UserError: something would be refused, or no run logs the metric; the line names all of it.
    """
    lines = []
    for name, values in file.search.space.extremes():
        _, *words = file.command(values, more)
        metrics = {} if name else {file.search.metric: "metric.name"}
        lines.append(FitLine(f"parameters.{name}" if name else "", words, metrics))
    if mistakes := mistakes_in(lines):
        raise UserError(f"{file.path}: {'; '.join(mistakes)}")
    return len(lines)

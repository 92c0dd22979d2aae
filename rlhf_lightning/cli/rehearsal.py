"""Command lines of ``fit`` that somebody will run later: parsed as a run would parse them, and nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser

from rlhf_lightning.callbacks.listener import Reporting
from rlhf_lightning.cli import checks
from rlhf_lightning.cli.command_line import REFUSALS, CommandLine
from rlhf_lightning.cli.config_parser import ConfigParser, parse
from rlhf_lightning.cli.endings import Endings
from rlhf_lightning.cli.introspection import import_components
from rlhf_lightning.errors import UserError, suggestion
from rlhf_lightning.lightning_seams import attach_data
from rlhf_lightning.records.metrics import Description


@dataclass(frozen=True)
class FitLine:
    """A command line of ``fit``.

    Args:
        place: where it comes from, in front of what is wrong with it; empty where that needs no place.
        words: after ``fit``.
        metrics: that its run must log, each with the place that names it; None to parse only. Otherwise task, model and
            data are built, but no networks, so that what their classes refuse is found, too.
    """

    place: str
    words: Sequence[str]
    metrics: Mapping[str, str] | None = None


def mistakes_in(lines: Sequence[FitLine]) -> list[str]:
    """What would be refused of some command lines, each mistake once; empty where they can be run."""
    checks.quiet_libraries()
    import_components()
    mistakes: list[str] = []
    with suppress(SystemExit):
        _Rehearsal(lines, mistakes)
    return list(dict.fromkeys(mistakes))


class _Rehearsal(CommandLine):
    """Parses many command lines in the place of its own, and ends as ``--print_config`` does.

    Args:
        mistakes: where what is wrong is written to.
    """

    def __init__(self, lines: Sequence[FitLine], mistakes: list[str]) -> None:
        self.lines, self.mistakes = lines, mistakes
        super().__init__("fit", [], Endings())

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse all lines, and end."""
        assert isinstance(parser, ConfigParser)
        for line in self.lines:
            try:
                config = parse(parser, ["fit", *line.words], self.command_parser)
                checks.check_config(config["fit"], "fit")
                if line.metrics is not None:
                    _check_metrics(parser, config, line.metrics)
            except UserError as error:
                self._note(line.place, str(error))
        raise SystemExit(0)

    def _note(self, place: str, mistake: str) -> None:
        """A mistake with its place, unless another line has it, too."""
        if not any(known.endswith(mistake) for known in self.mistakes):
            self.mistakes.append(
                f"{place}: {mistake}" if place and place.rpartition(".")[2] not in mistake else mistake
            )


def _check_metrics(parser: ConfigParser, config: Namespace, metrics: Mapping[str, str]) -> None:
    """Refuse metrics that the run does not say it logs.

    Raises:
        UserError: it does not, or a class refuses its arguments.
    """
    try:
        built = parser.instantiate_classes(config)["fit"]
    except (UserError, *REFUSALS) as error:
        raise checks.as_user_error(error) from error
    description = _description(built)
    if description is None or not description.metrics:
        return
    known = [name for one in description.metrics for name in (one.heldout, one.name) if name]
    for metric, place in metrics.items():
        if metric not in known:
            evaluated = ", ".join(name for name in known if name.startswith("eval/"))
            hint = suggestion(metric, known, otherwise=f"its evaluations have {evaluated}")
            raise UserError(f"{place}: no run of {description.algorithm} logs {metric}; {hint}")


def _description(built: Namespace) -> Description | None:
    """What a model says that it logs; None where it says nothing."""
    model: LightningModule = built.model
    if not isinstance(model, Reporting):
        return None
    model.trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    attach_data(model.trainer, built.data)
    return model.describe()

"""What an agent of a W&B sweep would choke on: its command lines are parsed, and nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
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
from rlhf_lightning.sweep.file import SweepFile


def check_sweep(file: SweepFile, more: Sequence[str] = ()) -> int:
    """Parse both ends of each range and each choice of a sweep, as an agent gives them; returns how many it parsed.

    Args:
        more: options for all trials.

    Raises:
        UserError: something would be refused, or no run logs the metric; the line names all of it.
    """
    checks.quiet_libraries()
    import_components()
    lines = [(name, file.command(values, more)) for name, values in file.search.space.extremes()]
    mistakes: list[str] = []
    with suppress(SystemExit):
        _Rehearsal(file, lines, mistakes)
    if mistakes:
        raise UserError(f"{file.path}: {'; '.join(dict.fromkeys(mistakes))}")
    return len(lines)


class _Rehearsal(CommandLine):
    """Parses many command lines, builds model and data of the first one but no networks, and ends.

    Args:
        lines: the parameter that is at one of its ends, if any, with the words of each command line.
        mistakes: where what is wrong is written to.
    """

    def __init__(self, file: SweepFile, lines: Sequence[tuple[str, Sequence[str]]], mistakes: list[str]) -> None:
        self.file, self.lines, self.mistakes = file, lines, mistakes
        super().__init__("fit", [], Endings())

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse all lines, and end as ``--print_config`` does."""
        assert isinstance(parser, ConfigParser)
        for name, (_, *words) in self.lines:
            try:
                config = _parsed(parser, words, self.command_parser)
                if not name:
                    self._check_metric(parser, config)
            except UserError as error:
                self._note(name, str(error))
        raise SystemExit(0)

    def _note(self, name: str, mistake: str) -> None:
        """A mistake, with the parameter whose value it is about, unless the line of all first values has it, too."""
        if not any(known.endswith(mistake) for known in self.mistakes):
            self.mistakes.append(f"parameters.{name}: {mistake}" if name and name not in mistake else mistake)

    def _check_metric(self, parser: ConfigParser, config: Namespace) -> None:
        """Refuse a metric that the run does not say it logs.

        Raises:
            UserError: it does not, or a class refuses its arguments.
        """
        try:
            built = parser.instantiate_classes(config)["fit"]
        except (UserError, *REFUSALS) as error:
            raise checks.as_user_error(error) from error
        description = _description(built)
        metric = self.file.search.metric
        if description is None or not description.metrics:
            return
        known = [name for one in description.metrics for name in (one.heldout, one.name) if name]
        if metric not in known:
            evaluated = ", ".join(name for name in known if name.startswith("eval/"))
            hint = suggestion(metric, known, otherwise=f"its evaluations have {evaluated}")
            raise UserError(f"metric.name: no run of {description.algorithm} logs {metric}; {hint}")


def _parsed(parser: ConfigParser, words: Sequence[str], command_parser: ConfigParser) -> Namespace:
    """The configuration of a ``fit``, checked as before a run."""
    config = parse(parser, ["fit", *words], command_parser)
    checks.check_config(config["fit"], "fit")
    return config


def _description(built: Namespace) -> Description | None:
    """What a model says that it logs; None where it says nothing."""
    model: LightningModule = built.model
    if not isinstance(model, Reporting):
        return None
    model.trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    attach_data(model.trainer, built.data)
    return model.describe()

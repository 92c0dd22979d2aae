"""``report``: one page on what a run did, with its figures beside it."""

from __future__ import annotations

from pathlib import Path

from rlhf_lightning.cli.arguments import LineParser
from rlhf_lightning.commands import COMMANDS

EXAMPLE = "report runs/quickstart"


def main(argv: list[str]) -> None:
    """Run the command."""
    parser = LineParser("report", COMMANDS["report"], EXAMPLE)
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run directory, a pipeline's, or one of its stages; those that differ in the seed alone are one arm",
    )
    parser.add_argument("--out", metavar="DIR", help="where to write (default: report/ in the first run)")
    arguments = parser.parse_intermixed_args(argv)

    from rlhf_lightning.records.runs import load_run
    from rlhf_lightning.report.writing import write_report

    once = {Path(path).resolve(): Path(path) for path in arguments.runs}
    runs = [load_run(path) for path in once.values()]
    print(write_report(runs, arguments.out or runs[0].path / "report"))

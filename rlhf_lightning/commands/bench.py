"""``bench``: how fast the parts of an iteration are on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlhf_lightning.cli.arguments import LineParser, positive, track, writable
from rlhf_lightning.commands import COMMANDS

EXAMPLE = "bench --only noise --rounds 1"
_PARTS = ("decoding", "noise", "updates", "stages", "limits", "growth", "memory")


def main(argv: list[str]) -> None:
    """Run the command."""
    arguments = _parser().parse_args(argv)

    import torch

    from rlhf_lightning.bench.machine import described
    from rlhf_lightning.bench.rows import PARTS
    from rlhf_lightning.report.tables import markdown_table

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    table = [["work", "way", "median", "beside ours, or share"]]
    for part in arguments.only or _PARTS:
        for row in PARTS[part](device, arguments.rounds, track):
            table += row.cells()
            print(row.work, *(f"  {way:20} {took:>8}  {ratio}" for _, way, took, ratio in row.cells()), sep="\n")
    if arguments.out:
        text = f"{described(device)}; each way once per round, {arguments.rounds} rounds\n\n{markdown_table(table)}"
        Path(arguments.out).write_text(text, encoding="utf-8")
        print(f"wrote {arguments.out}")


def _parts(text: str) -> list[str]:
    chosen = text.split(",")
    for part in chosen:
        if part not in _PARTS:
            raise argparse.ArgumentTypeError(f"{part!r} is no part; expected some of {', '.join(_PARTS)}")
    return chosen


def _parser() -> LineParser:
    parser = LineParser("bench", COMMANDS["bench"], EXAMPLE)
    parser.add_argument("--only", type=_parts, metavar="A,B", help=f"some of {', '.join(_PARTS)} (default: all)")
    parser.add_argument("--rounds", type=positive, default=5, help="how often each way is timed (default 5)")
    parser.add_argument("--threads", type=positive, help="of the CPU (default: all)")
    parser.add_argument("--out", type=writable, metavar="FILE.md", help="write a table, with the machine")
    return parser

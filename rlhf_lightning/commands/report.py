"""``report``: one page on what a run did, with its figures beside it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from rlhf_lightning.errors import UserError


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"report: {message}")


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    arguments = _Parser(
        prog="python -m rlhf_lightning report",
        description="Write a report of one run, or of several side by side: one HTML file that needs no network, "
        "and its figures as PNG and SVG beside it.",
        allow_abbrev=False,
    )
    arguments.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run directory (runs/NAME), a pipeline's, or one of its stages"
    )
    arguments.add_argument("--out", metavar="DIR", help="where to write (default: report/ in the first run)")
    return arguments


def main(argv: list[str]) -> None:
    """Read the runs, draw, write, and print the path of the page."""
    arguments = parser().parse_args(argv)
    from rlhf_lightning.runs import load_run

    runs = [load_run(path) for path in arguments.runs]
    print(write_report(runs, Path(arguments.out) if arguments.out else runs[0].path / "report"))


def write_report(runs: Sequence, out: str | Path) -> Path:
    """Write ``report.html`` and its figures into a folder, and return the page's path.

    Args:
        runs: what `load_run` returned, one or several.
        out: the folder; made where it is missing.
    """
    from rlhf_lightning.plots.page import Picture, render
    from rlhf_lightning.plots.style import save

    out = Path(out)
    pictures = []
    try:
        for section, name, title, draw in _figures(runs):
            _, path = save(draw(), out / name)
            pictures.append(Picture(section, path, title))
        page = out / "report.html"
        page.write_text(render(runs, pictures), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}") from None
    return page


def _figures(runs: Sequence) -> list[tuple[str, str, str, Callable]]:
    """Section, file name, description and drawing function of every figure that the runs have data for."""
    from rlhf_lightning import plots
    from rlhf_lightning.plots.components import gold_components
    from rlhf_lightning.plots.dashboard import names
    from rlhf_lightning.plots.verdict import measured

    figures: list[tuple[str, str, str, Callable]] = []
    policies = [run for run in runs if (policy := run.find("policy")) and len(policy.metrics)]
    if len([run for run in policies if len(measured(run.find("policy"), "kl_ref_sequence")) > 1]) > 1:
        figures.append(
            ("overview", "frontier", "Reward against KL, by run", lambda: plots.frontier(policies))
        )
    for run, label in zip(runs, names(runs), strict=True):
        start = f"{_slug(label)}-" if len(runs) > 1 else ""
        of = f" of {label}" if len(runs) > 1 else ""
        policy, reward, sft = run.find("policy"), run.find("reward"), run.find("sft")
        wanted = (
            (
                policy and max(len(measured(policy, "score")), len(measured(policy, "gold"))) > 1,
                ("overview", "overoptimization", "Proxy and gold reward", plots.overoptimization),
            ),
            (
                policy and gold_components(policy),
                ("policy", "components", "Components of the gold reward", plots.components),
            ),
            (
                reward and len(reward.metrics),
                ("reward", "reward_model", "Training of the reward model", plots.reward_curve),
            ),
            (
                reward and (reward.reliability or {}).get("bins"),
                ("reward", "reliability", "Calibration of the reward model", plots.reliability),
            ),
            (sft and len(sft.metrics), ("sft", "sft", "Supervised fine-tuning", plots.sft_curve)),
        )
        for has, (section, name, title, draw) in wanted:
            if has:
                figures.append((section, start + name, title + of, lambda draw=draw, run=run: draw(run)))
    if policies:
        figures.append(
            ("policy", "dashboard", "Dashboard of the policy's training", lambda: plots.dashboard(policies))
        )
    return figures


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-")

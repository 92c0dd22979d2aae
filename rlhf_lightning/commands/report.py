"""``report``: one page on what a run did, with its figures beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_lightning.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rlhf_lightning.records.runs import Run


HELP = "write a report of one run, or of several side by side: one HTML file, its figures beside it as PNG and SVG"
EXAMPLE = "report runs/quickstart"


def main(argv: list[str]) -> None:
    """Run the command."""
    from rlhf_lightning.cli.parser import LineParser

    parser = LineParser("report", HELP, EXAMPLE)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run directory, a pipeline's directory, or one of its stages"
    )
    parser.add_argument("--out", metavar="DIR", help="where to write (default: report/ in the first run)")
    arguments = parser.parse(argv)

    from rlhf_lightning.records.runs import load_run

    once = {Path(path).resolve(): Path(path) for path in arguments.runs}
    runs = [load_run(path) for path in once.values()]
    print(write_report(runs, arguments.out or runs[0].path / "report"))


def write_report(runs: Sequence[Run], out: str | Path) -> Path:
    """Write ``report.html`` and its figures into a folder, and return the page's path.

    Args:
        runs: what `load_run` returned, one or several.
        out: the folder; made where it is missing.
    """
    from rlhf_lightning.plots.kit.style import save
    from rlhf_lightning.report.page import Picture, render

    out = Path(out)
    pictures = []
    try:
        for section, name, title, draw in _figures(runs):
            try:
                figure = draw()
            except UserError:
                continue  # The runs have no data for it; the page says what is missing.
            pictures.append(Picture(section, save(figure, out / name)[1], title))
        out.mkdir(parents=True, exist_ok=True)
        page = out / "report.html"
        page.write_text(render(runs, pictures), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}") from None
    return page


def _figures(runs: Sequence[Run]) -> Iterator[tuple[str, str, str, Callable[[], Figure]]]:
    """Section, file name, description and drawing function of every figure that a report may have."""
    from rlhf_lightning import plots
    from rlhf_lightning.plots.measures import families, has_proxy
    from rlhf_lightning.records.runs import names

    one_run = (
        ("proxy", "overoptimization", "Proxy and gold reward", plots.overoptimization),
        ("policy", "components", "Components of the gold reward", plots.components),
        ("reward", "reward_model", "Training of the reward model", plots.reward_curve),
        ("reward", "reward_accuracy", "Accuracy of the reward model by groups of pairs", plots.reward_accuracy),
        ("reward", "reliability", "Calibration of the reward model", plots.reliability),
        ("reward", "reward_biases", "Biases of the reward model", plots.reward_biases),
        ("reward", "annotator_agreement", "Agreement of the annotators", plots.annotator_agreement),
        ("sft", "sft", "Supervised fine-tuning", plots.sft_curve),
    )
    several = len(runs) > 1
    policies = [run.policy for run in runs if run.policy is not None]
    if several or not all(has_proxy(policy) for policy in policies):  # otherwise the proxy's figure shows both
        yield "learning", "learning_curves", "Reward against experience", partial(plots.learning_curves, runs)
        yield "learning", "frontier", "Reward against KL to the reference", partial(plots.frontier, runs)
    if axes := _objectives_to_weigh(policies):
        yield "learning", "pareto", "What the objectives cost one another", partial(plots.pareto, runs, *axes)
    if several:
        title = "Accuracy of the reward models by training pairs"
        yield "reward", "learning_curve_of_pairs", title, partial(plots.learning_curve_of_pairs, runs)
    for run, label in zip(runs, names(runs), strict=True):
        for section, name, title, draw in one_run:
            if several:
                name, title = f"{_slug(label)}-{name}", f"{title}: {label}"
            yield section, name, title, partial(draw, run)
    kinds = families(runs)
    for family in kinds:
        name = "dashboard" if len(kinds) == 1 else f"dashboard-{_slug(family)}"
        draw_family = partial(plots.dashboard, runs, family=family)
        yield "policy", name, f"Dashboard of the policy's training: {family}", draw_family


def _objectives_to_weigh(policies: Sequence[Run]) -> tuple[str, str, str | None] | None:
    """Two objectives and, where there is one, a third, if runs differ in how these are weighed."""
    from rlhf_lightning.plots.quantities import objectives

    judged = [policy for policy in policies if len(objectives([policy])) > 1]
    weights = {json.dumps(policy.setting("data.init_args.weights"), sort_keys=True) for policy in judged}
    if len(weights) < 2:
        return None
    names = objectives(judged)
    return names[0], names[1], names[2] if len(names) > 2 else None


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-")

"""Figures of runs: functions from a `Run` (or several) to a matplotlib `Figure`, and which of them reports show.

```python
from rlhf_lightning.plots import overoptimization, save
from rlhf_lightning.records.runs import load_run

save(overoptimization(load_run("runs/quickstart")), "overoptimization")  # .png and .svg
```

A new figure is a module in ``plots/figures``, imported and entered here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from matplotlib.figure import Figure

from rlhf_lightning.plots.figures.annotator_agreement import annotator_agreement
from rlhf_lightning.plots.figures.arm_dots import arm_dots as arm_dots
from rlhf_lightning.plots.figures.arm_profile import arm_profile as arm_profile
from rlhf_lightning.plots.figures.claim_intervals import claim_intervals as claim_intervals
from rlhf_lightning.plots.figures.components import components
from rlhf_lightning.plots.figures.dashboard import dashboard
from rlhf_lightning.plots.figures.frontier import frontier
from rlhf_lightning.plots.figures.learning import learning_curves
from rlhf_lightning.plots.figures.overoptimization import overoptimization
from rlhf_lightning.plots.figures.pairs_curve import learning_curve_of_pairs
from rlhf_lightning.plots.figures.pareto import pareto as pareto
from rlhf_lightning.plots.figures.pareto import pareto_of_weights
from rlhf_lightning.plots.figures.reliability import reliability
from rlhf_lightning.plots.figures.reward_accuracy import reward_accuracy
from rlhf_lightning.plots.figures.reward_biases import reward_biases
from rlhf_lightning.plots.figures.reward_curve import reward_curve
from rlhf_lightning.plots.figures.sft_curve import sft_curve
from rlhf_lightning.plots.kit.style import save as save
from rlhf_lightning.plots.measures import rewards_need_a_figure
from rlhf_lightning.records.runs import Run

Section: TypeAlias = Literal["learning", "proxy", "policy", "reward", "sft"]
"""A part of a report's page."""


@dataclass(frozen=True)
class FigureEntry:
    """A figure that reports show where the runs have its data.

    Args:
        draw: of one run (``scope`` run), of several (runs), or of several and the family to draw (family, see
            `measures.families`); raises a `UserError` where the data is missing.
        section: of the page.
        title: what the figure shows.
        name: of the file, without a suffix; that of ``draw`` by default.
        wanted: whether some runs need it at all.
    """

    draw: Callable[..., Figure]
    section: Section
    title: str
    scope: Literal["run", "runs", "family"] = "run"
    name: str = ""
    wanted: Callable[[Sequence[Run]], bool] = lambda runs: True

    @property
    def file(self) -> str:
        """Name of the file, without a suffix."""
        return self.name or self.draw.__name__


FIGURES = (
    FigureEntry(learning_curves, "learning", "Reward against experience", "runs", wanted=rewards_need_a_figure),
    FigureEntry(frontier, "learning", "Reward against KL to the reference", "runs", wanted=rewards_need_a_figure),
    FigureEntry(pareto_of_weights, "learning", "What the objectives cost one another", "runs", name="pareto"),
    FigureEntry(learning_curve_of_pairs, "reward", "Accuracy of the reward models by training pairs", "runs"),
    FigureEntry(overoptimization, "proxy", "Proxy and gold reward"),
    FigureEntry(components, "policy", "Components of the gold reward"),
    FigureEntry(reward_curve, "reward", "Training of the reward model", name="reward_model"),
    FigureEntry(reward_accuracy, "reward", "Accuracy of the reward model by groups of pairs"),
    FigureEntry(reliability, "reward", "Calibration of the reward model"),
    FigureEntry(reward_biases, "reward", "Biases of the reward model"),
    FigureEntry(annotator_agreement, "reward", "Agreement of the annotators"),
    FigureEntry(sft_curve, "sft", "Supervised fine-tuning", name="sft"),
    FigureEntry(dashboard, "policy", "Dashboard of the policy's training", "family"),
)
"""Every figure of a report, in the order of the page's sections."""

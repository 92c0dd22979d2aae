"""Figures of runs: functions from a `Run` (or several) to a matplotlib `Figure`.

```python
from rlhf_lightning.plots import overoptimization, save
from rlhf_lightning.runs import load_run

save(overoptimization(load_run("runs/quickstart")), "overoptimization")  # .png and .svg
```
"""

from rlhf_lightning.plots.figures.annotator_agreement import annotator_agreement
from rlhf_lightning.plots.figures.components import components
from rlhf_lightning.plots.figures.dashboard import dashboard
from rlhf_lightning.plots.figures.frontier import frontier
from rlhf_lightning.plots.figures.learning import learning_curves
from rlhf_lightning.plots.figures.overoptimization import overoptimization
from rlhf_lightning.plots.figures.pairs_curve import learning_curve_of_pairs
from rlhf_lightning.plots.figures.pareto import pareto
from rlhf_lightning.plots.figures.reliability import reliability
from rlhf_lightning.plots.figures.reward_accuracy import reward_accuracy
from rlhf_lightning.plots.figures.reward_biases import reward_biases
from rlhf_lightning.plots.figures.reward_curve import reward_curve
from rlhf_lightning.plots.figures.sft_curve import sft_curve
from rlhf_lightning.plots.kit.style import save

__all__ = [
    "annotator_agreement",
    "components",
    "dashboard",
    "frontier",
    "learning_curve_of_pairs",
    "learning_curves",
    "overoptimization",
    "pareto",
    "reliability",
    "reward_accuracy",
    "reward_biases",
    "reward_curve",
    "save",
    "sft_curve",
]

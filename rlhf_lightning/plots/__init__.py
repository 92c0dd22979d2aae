"""Figures of runs: functions from a `Run` (or several) to a matplotlib `Figure`.

```python
from rlhf_lightning.plots import overoptimization, save
from rlhf_lightning.runs import load_run

save(overoptimization(load_run("runs/quickstart")), "overoptimization")  # .png and .svg
```
"""

from rlhf_lightning.plots.annotator_agreement import annotator_agreement
from rlhf_lightning.plots.components import components
from rlhf_lightning.plots.dashboard import dashboard
from rlhf_lightning.plots.frontier import frontier
from rlhf_lightning.plots.learning import learning_curves
from rlhf_lightning.plots.overoptimization import overoptimization
from rlhf_lightning.plots.pairs_curve import learning_curve_of_pairs
from rlhf_lightning.plots.pareto import pareto
from rlhf_lightning.plots.reliability import reliability
from rlhf_lightning.plots.reward_accuracy import reward_accuracy
from rlhf_lightning.plots.reward_biases import reward_biases
from rlhf_lightning.plots.reward_curve import reward_curve
from rlhf_lightning.plots.sft_curve import sft_curve
from rlhf_lightning.plots.style import save

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

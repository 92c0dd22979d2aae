"""Statistics of runs: functions on tables with one row per run, which work for anybody's numbers. Imports no torch.

```python
from rlhf_lightning.experiment.claims.compared import compared
from rlhf_lightning.experiment.statistics.arms import describe
from rlhf_lightning.experiment.statistics.results_file import from_csv
from rlhf_lightning.experiment.statistics.scores import MeasureScale

table = from_csv("results.csv")  # columns arm, seed, return
describe(table, MeasureScale("return"))
compared(table, MeasureScale("return"), baseline="reinforce", margin=10)
```
"""

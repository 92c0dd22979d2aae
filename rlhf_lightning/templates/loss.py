"""MyLoss: a loss on preference pairs, at first a hinge on the difference of the log ratios.

Name here the paper and the equations that the code follows, and where it deviates from them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rlhf_lightning.algorithms.base.feedback import FeedbackAlgorithm
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.records.metrics import Metric
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.offline import Part
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import PreferencePair


class MyLoss(FeedbackAlgorithm[PreferencePair]):
    """Raises the chosen response over the rejected one, measured from the policy at the start.

    Args:
        task: what the pairs are about, and where held-out prompts come from.
        backbone: builds the policy; the model that it starts from is also the reference.
        optimization: learning rate 1e-6 for pretrained models, 1e-4 for small ones from scratch.
        beta: scale of the log ratios; the loss of a pair is 0 from a difference of 1 / beta on.
        options: held-out evaluation and further limits, see `FeedbackAlgorithm`.
    """

    # Step 1: what the metrics are called, ``GROUP/NAME`` in training and ``eval/NAME`` in evaluations.
    group = "my_loss"
    measured = ("accuracy", "margin")
    # The data of other feedback: data_class = RankingDataModule, LabelDataModule (and the type of an example above).

    # Every argument is a key of the configuration: model.init_args.beta.
    def __init__(
        self,
        task: Task,
        backbone: Backbone,
        optimization: Optimization = Optimization(),
        beta: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(task, backbone, optimization, **options)
        self.beta = beta

    # Step 2, loss_sum: summed over the examples of a part. It is divided by the number of examples in the whole batch,
    # so that microbatches and devices change nothing. A number that the loss needs of the *whole* batch, such as a
    # mean, is computed in `statistics(batch)` and read from ``part.statistics``.
    def loss_sum(self, part: Part[PreferencePair]) -> tuple[Tensor, dict[str, Tensor]]:
        """max(0, 1 − β h) summed over pairs, with h the log ratio of the chosen less that of the rejected response."""
        chosen, rejected = self.log_ratios(part.encoded).chunk(2)  # log π(y|x) − log π_ref(y|x) of whole responses
        margin = self.beta * (chosen - rejected)
        # The sums named in ``measured``; they are reported as means per example.
        return (1 - margin).relu().sum(), {
            "accuracy": ((margin.detach().sign() + 1) / 2).sum(),  # a tie is half right
            "margin": margin.detach().sum(),
        }

    # Step 3, own_metrics: which of them get a panel in reports.
    def own_metrics(self) -> tuple[Metric, ...]:
        """Of the pairs, by the reward that the policy implies."""
        return (
            Metric("Accuracy", "share of pairs ordered rightly", "my_loss/accuracy", "eval/accuracy", mark=0.5),
            Metric("Margin", "reward of chosen − rejected", "my_loss/margin", "eval/margin"),
        )

"""KTO: single responses that are labelled good or bad, judged against a reference point.

Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", eq. 7 and 8. With the log ratio
r = log π(y|x) − log π_ref(y|x) of a response and the reference point z₀, its value is

    v = λ_D σ(β (r − z₀))   if the response is desirable,
    v = λ_U σ(β (z₀ − r))   if it is undesirable,

and the loss is the mean of λ_y − v. z₀ stands for KL(π‖π_ref), the reward that responses have in general. It is
estimated from mismatched responses, each prompt with the response y' of another example:

    z₀ = max(0, mean over the batch of log π(y'ᵢ|xᵢ) − log π_ref(y'ᵢ|xᵢ)),

and no gradient flows through it. It is a number of the *global* batch: the same for all devices and microbatches.

Deviations from the paper: AdamW's schedule is the configuration's. Examples of a batch may share their prompt, as those
made of a pair do; the others are then chosen so that as few as possible do. A batch of one example has no mismatched
response; its z₀ is 0.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlhf_lightning.algorithms.base.feedback import FeedbackAlgorithm
from rlhf_lightning.algorithms.parts.claims import OTHER, Variant
from rlhf_lightning.algorithms.parts.pairs import accuracy_metric
from rlhf_lightning.data.preferences import LabelDataModule
from rlhf_lightning.distributed import failing_together, own_rows, row_slices
from rlhf_lightning.errors import UserError, check_limits
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.language.text import EncodedResponses
from rlhf_lightning.records.metrics import Metric
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.offline import Part
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import LabelledResponse


class KTO(FeedbackAlgorithm[LabelledResponse]):
    """Raises desirable responses above the reference point and sinks undesirable ones below it.

    Both labels of a pair whose responses are the same tokens once they are cut are left out and counted.

    Args:
        task: what the responses are about, and where held-out prompts come from.
        backbone: builds the policy; it should start from a supervised model, which is also the reference.
        optimization: learning rate 5e-7 to 5e-6 for pretrained models, 1e-4 for small ones from scratch.
        beta: β, how fast values saturate with the log ratio, 0.05 to 0.5.
        desirable_weight: λ_D.
        undesirable_weight: λ_U; with n_D desirable and n_U undesirable examples the paper recommends
            λ_D n_D / (λ_U n_U) from 1 to 3/2.
        options: held-out evaluation and further limits, see `FeedbackAlgorithm`.
    """

    data_class: ClassVar = LabelDataModule
    group = "kto"
    measured = ("accuracy", "reference_point", "desirable", "desirable_reward", "undesirable_reward")

    def __init__(
        self,
        task: Task,
        backbone: Backbone,
        optimization: Optimization = Optimization(),
        beta: float = 0.1,
        desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(task, backbone, optimization, **options)
        values = {"beta": beta, "desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight}
        check_limits("model.init_args", {name: (0 < x < math.inf, "above 0", x) for name, x in values.items()})
        self.beta = beta
        self.desirable_weight, self.undesirable_weight = desirable_weight, undesirable_weight

    def setup(self, stage: str) -> None:
        """Check that batches have mismatched responses.

        Raises:
            UserError: a batch holds one example only.
        """
        super().setup(stage)
        if self.fitting and self.data.batch_size < 2:
            raise UserError(
                f"data.init_args.batch_size is {self.data.batch_size}; expected at least 2, since KTO's reference "
                "point comes from the responses of other examples of the batch"
            )

    def equal(self, examples: Sequence[LabelledResponse], encoded: EncodedResponses) -> set[int]:
        """Labels from pairs of which both responses are the same token ids, and so have both labels."""
        numbers = [number for number, example in enumerate(examples) if example.compared_with is not None]
        if not numbers:
            return set()
        prompts, others = zip(*((examples[n].prompt, str(examples[n].compared_with)) for n in numbers), strict=True)
        rows, compared = encoded.rows(), self.encode_texts(prompts, others).rows()
        return {number for number, other in zip(numbers, compared, strict=True) if rows[number] == other}

    def statistics(self, batch: Sequence[LabelledResponse]) -> dict[str, float]:
        """z₀, from each prompt with a response to another prompt; labels play no part, so that none is left out."""
        count = len(batch)
        if count < 2:
            return {"reference_point": 0.0}
        rows, responses = own_rows(count).tolist(), mismatched(batch)
        with failing_together():
            encoded = [
                self.encode_texts(
                    [batch[rows[i]].prompt for i in chosen.tolist()],
                    [responses[rows[i]] for i in chosen.tolist()],
                ).to(self.device)
                for chosen in row_slices(len(rows), self.optimization.microbatch_size)
                if len(chosen)
            ]
        log_ratios = [self.log_ratios(part).double().sum() for part in encoded]
        total = sum(log_ratios, start=torch.zeros((), dtype=torch.float64, device=self.device))
        return {"reference_point": max(0.0, self.reduced({"log_ratio": total})["log_ratio"] / count)}

    def loss_sum(self, part: Part[LabelledResponse]) -> tuple[Tensor, dict[str, Tensor]]:
        """λ_y − v, summed over examples; rewards β r by label, and whether each is on its side of the reference."""
        log_ratios = self.log_ratios(part.encoded)
        desirable = torch.tensor([example.label for example in part.examples], device=log_ratios.device)
        gain = torch.where(desirable, 1.0, -1.0).to(log_ratios) * (log_ratios - part.statistics["reference_point"])
        weights = torch.where(desirable, self.desirable_weight, self.undesirable_weight).to(log_ratios)
        loss = weights * (1 - torch.sigmoid(self.beta * gain))
        rewards = self.beta * log_ratios.detach()
        return loss.sum(), {
            "accuracy": ((gain.detach().sign() + 1) / 2).sum(),
            "reference_point": self.beta * part.statistics["reference_point"] * torch.ones_like(rewards).sum(),
            "desirable": desirable.sum(),
            "desirable_reward": torch.where(desirable, rewards, 0.0).sum(),
            "undesirable_reward": torch.where(desirable, 0.0, rewards).sum(),
        }

    def reported(self, means: dict[str, float]) -> dict[str, float]:
        """The rewards as means over the examples of their label; one that the batch lacks is left out."""
        row = dict(means)
        desirable = row.pop("desirable")
        shares = {"desirable_reward": desirable, "undesirable_reward": 1 - desirable}
        for name, share in shares.items():
            total = row.pop(name)
            if share > 1e-12:
                row[name] = total / share
        return row

    def own_metrics(self) -> tuple[Metric, ...]:
        """Of the examples, by the reward that the policy implies."""
        unit = "β times the log ratio to the reference"
        return (
            accuracy_metric("kto", "share on their side of the reference point"),
            Metric("Reference point", "β z₀, to which rewards compare", "kto/reference_point", "eval/reference_point"),
            Metric("Reward of the desirable", unit, "kto/desirable_reward", "eval/desirable_reward"),
            Metric("Reward of the undesirable", unit, "kto/undesirable_reward", "eval/undesirable_reward"),
        )

    variants = (Variant("KTO", OTHER),)


def mismatched(batch: Sequence[LabelledResponse]) -> list[str]:
    """The batch's responses in another order, so that as few as possible stand beside their own prompt.

    They are shifted by as few places as that takes: by one in a shuffled batch, by two in a list of pairs.
    """
    prompts, responses = [example.prompt for example in batch], [example.response for example in batch]

    def matches(shift: int) -> int:
        return sum(map(operator.eq, prompts, prompts[shift:] + prompts[:shift]))

    shifts = range(1, len(batch))
    shift = next((shift for shift in shifts if not matches(shift)), None) or min(shifts, key=matches)
    return responses[shift:] + responses[:shift]

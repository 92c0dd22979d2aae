"""Reward modeling: a scalar score per response, fitted to preferences.

Bradley and Terry 1952; for language models Ziegler et al. 2019 and Stiennon et al. 2020. After training, scores are
centered on the mean over held-out responses, so that 0 is what the policy that wrote them gets on average.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics.functional import pearson_corrcoef
from torchmetrics.functional.classification import binary_calibration_error

from rlhf_lightning.data.preferences import PreferenceDataModule
from rlhf_lightning.distributed import gather_rows, own_rows
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.text import EncodedResponses
from rlhf_lightning.models.trunk import row_slices
from rlhf_lightning.ops.preference import bradley_terry_loss
from rlhf_lightning.optimization import Optimization
from rlhf_lightning.pass_algorithm import PassAlgorithm
from rlhf_lightning.rewards.source import checked_scores
from rlhf_lightning.synced import on_cpu
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.types import PreferencePair


class RewardModeling(PassAlgorithm[PreferencePair]):
    """Fits a reward model to preference pairs.

    Args:
        task: what the pairs are about.
        backbone: builds the model; with a checkpoint it starts from that model's trunk.
        optimization: learning rate 1e-5 for pretrained models, 1e-4 to 1e-3 for small ones.
        head_lr: learning rate of the heads, which start at 0; None for the trunk's.
        surprise: the score also reads how much the response surprises the trunk (see `models.surprise`); for
            trunks that come from a language model.
        log_every: steps between rows of metrics.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"prompts"})
    data_class = PreferenceDataModule
    measured = ("right", "margin")

    def __init__(
        self,
        task: Task,
        backbone: Backbone,
        optimization: Optimization = Optimization(lr=1e-4),
        head_lr: float | None = None,
        surprise: bool = False,
        log_every: int = 10,
    ) -> None:
        super().__init__(task, backbone, optimization, log_every)
        self.head_lr = head_lr
        self.surprise = surprise
        self._ceiling: float | None = None

    def configure_model(self) -> None:
        """Build the model, once."""
        if not hasattr(self, "reward_model"):
            with on_cpu():
                self.reward_model = self.backbone.reward_model(self.task.interface, surprise=self.surprise)

    def networks(self) -> dict[str, nn.Module]:
        """Trunk and heads."""
        return {"reward_model": self.reward_model.trunk, "head": self.reward_model.heads}

    def learning_rates(self) -> dict[str, float]:
        """The heads' own, where they have one."""
        return {} if self.head_lr is None else {"head": self.head_lr}

    def export(self, path: Path) -> None:
        """The model, centered."""
        self.reward_model.save(path)

    def encode(self, examples: Sequence[PreferencePair]) -> EncodedResponses:
        """The chosen responses, then the rejected ones, in one batch."""
        prompts = [pair.prompt for pair in examples]
        texts = [pair.chosen for pair in examples] + [pair.rejected for pair in examples]
        return self.reward_model.encode(prompts * 2, texts)

    def weight(self, examples: Sequence[PreferencePair], encoded: EncodedResponses) -> float:
        """Number of pairs."""
        return float(len(examples))

    def loss_sum(
        self, examples: Sequence[PreferencePair], encoded: EncodedResponses
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The Bradley–Terry loss, summed over pairs."""
        chosen, rejected = self._scores(encoded)
        margins = torch.tensor([pair.margin or 0.0 for pair in examples], dtype=chosen.dtype, device=self.device)
        difference = (chosen - rejected).detach()
        loss = bradley_terry_loss(chosen, rejected, margin=margins).sum()
        return loss, {"right": _rightness(difference).sum(), "margin": difference.sum()}

    def training_row(self, means: dict[str, float]) -> dict[str, float]:
        """Loss, accuracy and mean margin."""
        return {
            "reward_model/loss": means["loss"],
            "reward_model/accuracy": means["right"],
            "reward_model/margin": means["margin"],
        }

    def on_validation_epoch_start(self) -> None:
        """Start collecting scores."""
        self._heldout: list[Float[Tensor, "B 2"]] = []
        self._examined: list[PreferencePair] = []

    def validation_step(self, batch: int, batch_idx: int) -> None:
        """Scores of a batch of held-out pairs, gathered from all ranks."""
        examples = self.data.heldout_batch(int(batch))
        mine = [examples[row] for row in own_rows(len(examples)).tolist()]
        scores = self.reward_model.center.new_zeros(len(mine), 2)
        for rows in row_slices(len(mine), self.optimization.microbatch_size):
            if len(rows):
                encoded = self.encode([mine[row] for row in rows.tolist()]).to(self.device)
                scores[rows] = torch.stack(self._scores(encoded), dim=-1)
        self._heldout.append(gather_rows(scores, len(examples)))
        self._examined += examples

    def on_validation_epoch_end(self) -> None:
        """Loss, accuracy, margin, calibration, and what is known of gold."""
        if self.trainer.sanity_checking:
            return
        chosen, rejected = torch.cat(self._heldout).unbind(-1)
        if self.fitting:
            self.reward_model.center.copy_(torch.cat([chosen, rejected]).double().mean())
        if self._ceiling is None:
            self._ceiling = self.task.ceiling(self.data.train, self._examined)
        known = {"eval/correlation_gold": self._correlation_with_gold(chosen, rejected), "eval/ceiling": self._ceiling}
        self._reliability = reliability(chosen, rejected) | {"ceiling": self._ceiling}
        row = {"step": self.steps, **preference_statistics(chosen, rejected)}
        self.publish(row | {name: value for name, value in known.items() if value is not None})

    test_step = validation_step
    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

    def on_fit_end(self) -> None:
        """Write how far stated probabilities can be trusted."""
        if self.trainer.is_global_zero and hasattr(self, "_reliability") and not self.trainer.fast_dev_run:
            path = Path(self.trainer.default_root_dir) / "reliability.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self._reliability, indent=1))

    def _scores(self, encoded: EncodedResponses) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Scores of the chosen and of the rejected responses, in float32 or better."""
        scores = self.reward_model(encoded.context, encoded.actions, encoded.action_mask)
        chosen, rejected = (scores if scores.dtype == torch.float64 else scores.float()).chunk(2)
        return chosen, rejected

    def _correlation_with_gold(self, chosen: Tensor, rejected: Tensor) -> float | None:
        """Pearson's, over all held-out responses; None without gold and where either side is constant."""
        gold = self.task.gold()
        if gold is None:
            return None
        prompts = [pair.prompt for pair in self._examined] * 2
        texts = [pair.chosen for pair in self._examined] + [pair.rejected for pair in self._examined]
        true = checked_scores(gold, prompts, texts).double().to(chosen.device)
        scores = torch.cat([chosen, rejected]).double()
        if scores.std() == 0 or true.std() == 0:
            return None
        return pearson_corrcoef(scores, true).item()


def preference_statistics(chosen: Float[Tensor, " B"], rejected: Float[Tensor, " B"]) -> dict[str, float]:
    """Loss, accuracy, mean margin and expected calibration error on held-out pairs; a tie is half right."""
    difference = (chosen - rejected).float()
    return {
        "eval/loss": bradley_terry_loss(chosen, rejected, margin=0.0).mean().item(),
        "eval/accuracy": _rightness(difference).mean().item(),
        "eval/margin": difference.mean().item(),
        "eval/calibration_error": _calibration_error(difference),
    }


def reliability(chosen: Float[Tensor, " B"], rejected: Float[Tensor, " B"], bins: int = 10) -> dict[str, Any]:
    """Share of pairs predicted rightly, by stated probability σ(|r_w − r_l|) in bins over [0.5, 1]."""
    difference = (chosen - rejected).float()
    confidence, right = difference.abs().sigmoid(), _rightness(difference)
    edges = torch.linspace(0.5, 1.0, bins + 1, device=confidence.device)
    place = torch.bucketize(confidence, edges[1:-1], right=True)
    rows = []
    for number in range(bins):
        inside = place == number
        if inside.any():
            rows.append(
                {
                    "confidence": confidence[inside].mean().item(),
                    "accuracy": right[inside].mean().item(),
                    "count": int(inside.sum()),
                }
            )
    return {
        "accuracy": right.mean().item(),
        "calibration_error": _calibration_error(difference),
        "bins": rows,
    }


def _rightness(difference: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """1 where the chosen response scores higher, 0 where the rejected one does, ½ where neither."""
    return ((difference > 0).float() + (difference >= 0).float()) / 2


def _calibration_error(difference: Float[Tensor, " B"]) -> float:
    # twice, so that a tie counts once as right and once as wrong
    confidence = difference.abs().sigmoid().repeat(2)
    right = torch.cat([difference > 0, difference >= 0]).long()
    return binary_calibration_error(confidence, right, n_bins=15, norm="l1").item()

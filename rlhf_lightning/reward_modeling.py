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
from rlhf_lightning.ops.preference import bradley_terry_loss
from rlhf_lightning.optimization import Optimization
from rlhf_lightning.pass_algorithm import PassAlgorithm
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
            self.reward_model = self.backbone.reward_model(self.task.tokenizer, surprise=self.surprise)

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
        return loss, {"right": ties_half(difference).sum(), "margin": difference.sum()}

    def training_row(self, means: dict[str, float]) -> dict[str, float]:
        """Loss, accuracy and mean margin."""
        return {
            "reward_model/loss": means["loss"],
            "reward_model/accuracy": means["right"],
            "reward_model/margin": means["margin"],
        }

    def on_validation_epoch_start(self) -> None:
        """Start collecting scores."""
        self._heldout: list[tuple[Tensor, Tensor]] = []

    def validation_step(self, batch: int, batch_idx: int) -> None:
        """Scores of a batch of held-out pairs, gathered from all ranks."""
        examples = self.data.heldout_batch(int(batch))
        mine = [examples[row] for row in own_rows(len(examples)).tolist()]
        nothing = torch.zeros(0, dtype=self.reward_model.model.dtype, device=self.device)
        scores = self._scores(self.encode(mine).to(self.device)) if mine else (nothing, nothing)
        self._heldout.append((gather_rows(scores[0], len(examples)), gather_rows(scores[1], len(examples))))

    def on_validation_epoch_end(self) -> None:
        """Loss, accuracy, margin, calibration, and correlation with gold where there is one."""
        chosen, rejected = (torch.cat(column) for column in zip(*self._heldout, strict=True))
        self.reward_model.center.copy_(torch.cat([chosen, rejected]).mean())
        row = {"step": float(self.global_step)} | preference_statistics(chosen, rejected)
        gold = self.task.gold()
        if gold is not None:
            row["eval/correlation_gold"] = self._correlation(gold, chosen, rejected)
        if self._ceiling is None:
            self._ceiling = self.task.ceiling(self.data.train, self.data.heldout)
        if self._ceiling is not None:
            row["eval/ceiling"] = self._ceiling
        self._reliability = reliability(chosen, rejected) | {"ceiling": self._ceiling}
        self.publish(row)

    test_step = validation_step
    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

    def on_fit_end(self) -> None:
        """Write how far stated probabilities can be trusted."""
        if self.trainer.is_global_zero and hasattr(self, "_reliability"):
            path = Path(self.trainer.default_root_dir) / "reliability.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self._reliability, indent=1))

    def _scores(self, encoded: EncodedResponses) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Scores of the chosen and of the rejected responses."""
        chosen, rejected = self.reward_model(encoded.context, encoded.actions, encoded.action_mask).chunk(2)
        return chosen, rejected

    def _correlation(self, gold: Any, chosen: Tensor, rejected: Tensor) -> float:
        heldout = self.data.heldout
        prompts = [pair.prompt for pair in heldout] * 2
        texts = [pair.chosen for pair in heldout] + [pair.rejected for pair in heldout]
        true = gold.score(prompts, texts).float().to(chosen.device)
        return pearson_corrcoef(torch.cat([chosen, rejected]).float(), true).item()


def preference_statistics(chosen: Float[Tensor, " B"], rejected: Float[Tensor, " B"]) -> dict[str, float]:
    """Loss, accuracy, mean margin and expected calibration error on held-out pairs."""
    difference = (chosen - rejected).float()
    confidence, right = _confidence(difference)
    return {
        "eval/loss": bradley_terry_loss(chosen, rejected, margin=0.0).mean().item(),
        "eval/accuracy": ties_half(difference).mean().item(),
        "eval/margin": difference.mean().item(),
        "eval/calibration_error": _calibration_error(confidence, right),
    }


def ties_half(difference: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """1 where the preferred response scores higher, 0 where it scores lower, one half where both score the same."""
    return (difference.sign() + 1) / 2


def reliability(chosen: Float[Tensor, " B"], rejected: Float[Tensor, " B"], bins: int = 10) -> dict[str, Any]:
    """Share of pairs predicted rightly, by stated probability σ(|r_w − r_l|) in bins over [0.5, 1]."""
    confidence, right = _confidence((chosen - rejected).float())
    edges = torch.linspace(0.5, 1.0, bins + 1, device=confidence.device)
    place = torch.bucketize(confidence, edges[1:-1], right=True)
    rows = []
    for number in range(bins):
        inside = place == number
        if inside.any():
            rows.append(
                {
                    "confidence": confidence[inside].mean().item(),
                    "accuracy": right[inside].float().mean().item(),
                    "count": int(inside.sum()),
                }
            )
    return {
        "accuracy": right.float().mean().item(),
        "calibration_error": _calibration_error(confidence, right),
        "bins": rows,
    }


def _confidence(difference: Float[Tensor, " B"]) -> tuple[Tensor, Tensor]:
    """Probability that the model gives to its own choice, and whether that choice is right."""
    return difference.abs().sigmoid(), difference > 0


def _calibration_error(confidence: Tensor, right: Tensor) -> float:
    return binary_calibration_error(confidence, right.long(), n_bins=15, norm="l1").item()

"""A trained reward model as a reward source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.scorers import LanguageRewardModel
from rlhf_lightning.rewards.source import RewardSource
from rlhf_lightning.types import Prompt


class LearnedReward(RewardSource):
    """Scores from a reward model on disk, centered on the policy that it was trained beside.

    Args:
        path: folder in the Hugging Face format, as a reward-modeling run exports it.
        batch_size: responses scored at one time.
    """

    def __init__(self, path: str, batch_size: int = 256) -> None:
        super().__init__()
        if not Path(path).is_dir():
            raise UserError(
                f"reward model {path} does not exist; the reward stage makes it: python -m rlhf_lightning fit "
                "--config TASK.yaml --config configs/algorithms/reward.yaml --name NAME writes runs/NAME/export"
            )
        self.path = path
        self.batch_size = batch_size
        try:
            model = AutoModelForSequenceClassification.from_pretrained(path)
            tokenizer = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"reward model {path} cannot be loaded: {reason}") from error
        self.model = LanguageRewardModel(model, tokenizer).requires_grad_(False)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, " B"]:
        """Centered scores."""
        return self.model.score(prompts, responses, batch_size=self.batch_size)

"""A trained reward model as a reward source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.check import check_scorer
from rlhf_lightning.models.checkpoints import STAGES, load_model, load_tokenizer
from rlhf_lightning.models.scorers import LanguageRewardModel
from rlhf_lightning.models.surprise import SurpriseHead
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
        if batch_size < 1:
            raise UserError(f"reward.init_args.batch_size must be at least 1, got {batch_size}")
        if not Path(path).is_dir():
            raise UserError(f"reward model {path} does not exist; {STAGES['reward model']}")
        self.path = path
        self.batch_size = batch_size
        tokenizer = load_tokenizer(path, kind="reward model")
        model = load_model(AutoModelForSequenceClassification, path, kind="reward model")
        surprise = SurpriseHead.load(Path(path), model)
        self.model = LanguageRewardModel(model, tokenizer, surprise).requires_grad_(False)
        check_scorer(self.model.model)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, " B"]:
        """Centered scores."""
        return self.model.score(prompts, responses, batch_size=self.batch_size)

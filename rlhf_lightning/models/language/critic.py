"""Critics of responses: a network of their own, or a value head on the policy's trunk."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_lightning.models.critic import TextCritic
from rlhf_lightning.models.language.lora import save_merged
from rlhf_lightning.models.language.states import hidden_before
from rlhf_lightning.models.language.trunk import score_layer, trainable
from rlhf_lightning.models.state import save_weights
from rlhf_lightning.types import Trajectories


class LanguageCritic(TextCritic):
    """A transformer of its own with a value head, read before each action.

    Args:
        model: a sequence-classification model with a label for each value, so that a reward model can be the starting
            point; the center of a reward model's scores is subtracted from the values.
    """

    def __init__(self, model: PreTrainedModel, outputs: int | None = None) -> None:
        super().__init__()
        self.model = trainable(model)
        self.outputs = outputs
        self.center = float(getattr(model.config, "score_center", 0.0))

    def values(self, part: Trajectories, trunk: Float[Tensor, "B T H"] | None = None) -> Float[Tensor, "B T *O"]:
        """Expected return before each action; ``trunk`` is not used."""
        hidden = hidden_before(self.model, part.context, part.actions, part.action_mask)
        return self._unstacked(score_layer(self.model)(hidden)) - self.center

    def save(self, path: Path) -> None:
        """Write the model in the Hugging Face format."""
        save_merged(self.model, path)


class SharedTrunkCritic(TextCritic):
    """A value head on the policy's own hidden states: half the memory, and both losses train the trunk.

    Args:
        width: size of the policy's hidden states.
    """

    def __init__(self, width: int, outputs: int | None = None) -> None:
        super().__init__()
        self.outputs = outputs
        self.score = nn.Linear(width, outputs or 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def values(self, part: Trajectories, trunk: Float[Tensor, "B T H"] | None = None) -> Float[Tensor, "B T *O"]:
        """Expected return before each action, from the policy's hidden states ``trunk``."""
        if trunk is None:
            raise ValueError("a critic on a shared trunk needs the policy's hidden states")
        return self._unstacked(self.score(trunk))

    def save(self, path: Path) -> None:
        """Write the head."""
        save_weights(self, path / "value_head.safetensors")

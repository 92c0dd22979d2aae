"""Critics of responses: a network of their own, or a value head on the policy's trunk."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_lightning.models.critic import TextCritic
from rlhf_lightning.models.language.lora import save_merged
from rlhf_lightning.models.language.trunk import hidden_states, trainable
from rlhf_lightning.types import TokenContext


class LanguageCritic(TextCritic):
    """A network of its own with a value head, read before each action.

    Args:
        model: a sequence-classification model with one label, so that a reward model can be its start; values are
            centered where its scores are.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = trainable(model)
        self.center = float(getattr(model.config, "score_center", 0.0))
        self.outputs: int | None = None

    def split(self, outputs: int) -> None:
        """Take a head with one value for each of several objectives, all 0 at first, in place of the one."""
        old = self.model.score
        self.model.score = nn.Linear(old.in_features, outputs, bias=False).to(old.weight)
        nn.init.zeros_(self.model.score.weight)
        self.model.config.num_labels = self.model.num_labels = self.outputs = outputs

    def values(
        self,
        context: TokenContext,
        actions: Int[Tensor, "B T"],
        action_mask: Bool[Tensor, "B T"],
        trunk: Float[Tensor, "B T H"] | None = None,
    ) -> Float[Tensor, "B T *O"]:
        """Expected return before each action; ``trunk`` (the policy's hidden states) is not used."""
        hidden = hidden_states(self.model, context, actions, action_mask)
        start = context.input_ids.shape[1] - 1
        return _columns(self.model.score(hidden[:, start : start + actions.shape[1]]), self.outputs) - self.center

    def save(self, path: Path) -> None:
        """Write the model in the Hugging Face format."""
        save_merged(self.model, path)


class SharedTrunkCritic(TextCritic):
    """A value head on the policy's own hidden states: half the memory, and the two losses share the trunk.

    Args:
        width: size of the policy's hidden states.
        outputs: number of objectives that get a value each; None for one value in all.
    """

    def __init__(self, width: int, outputs: int | None = None) -> None:
        super().__init__()
        self.outputs = outputs
        self.score = nn.Linear(width, outputs or 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def values(
        self,
        context: TokenContext,
        actions: Int[Tensor, "B T"],
        action_mask: Bool[Tensor, "B T"],
        trunk: Float[Tensor, "B T H"] | None = None,
    ) -> Float[Tensor, "B T *O"]:
        """Expected return before each action, from the policy's hidden states ``trunk``."""
        if trunk is None:
            raise ValueError("a critic on a shared trunk needs the policy's hidden states")
        return _columns(self.score(trunk), self.outputs)

    def save(self, path: Path) -> None:
        """Write the head."""
        from safetensors.torch import save_file

        path.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), path / "value_head.safetensors")


def _columns(values: Float[Tensor, "B T O"], outputs: int | None) -> Float[Tensor, "B T *O"]:
    """What a head gives; without the last axis where there is one value in all."""
    return values.squeeze(-1) if outputs is None else values

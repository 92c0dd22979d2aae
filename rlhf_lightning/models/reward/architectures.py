"""How a reward model reads a prompt and a response."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.language.backbone import LanguageBackbone
from rlhf_lightning.models.reward.networks import RewardNetwork, classifier_network
from rlhf_lightning.models.reward.separate_network import Interaction, SeparateNetwork
from rlhf_lightning.models.reward.surprise import new_surprise_head
from rlhf_lightning.models.state import seeded


@dataclass(frozen=True)
class Architecture(ABC):
    """Builds a reward network on a backbone."""

    @abstractmethod
    def build(
        self, backbone: Backbone, interface: Callable[[], object], *, outputs: int, seed: int | None
    ) -> RewardNetwork:
        """A network at its starting point.

        Args:
            backbone: a `LanguageBackbone`; others build no reward model.
            interface: the task's tokenizer, for a backbone without a checkpoint.
            outputs: number of scores of a response.
            seed: of the random initialization; None for the seed of the run, with scores that start at 0.
        """


@dataclass(frozen=True)
class JointEncoder(Architecture):
    """One transformer over prompt and response: a decoder is read at the last token, an encoder in its own way.

    Args:
        surprise: the score also depends on how much the response surprises the trunk (see `models.reward.surprise`);
            for trunks of language models.
    """

    surprise: bool = False

    def build(
        self, backbone: Backbone, interface: Callable[[], object], *, outputs: int, seed: int | None
    ) -> RewardNetwork:
        """A sequence-classification model, with a head on its surprise if there should be one."""
        backbone = _language(backbone)
        tokenizer = backbone.tokenizer(interface)
        model, new = backbone.classifier(tokenizer, outputs=outputs, seed=seed)
        if self.surprise and not hasattr(model, "score"):
            raise UserError(f"architecture.init_args.surprise needs a language model; {type(model).__name__} is none")
        head = new_surprise_head(backbone.policy(interface).model, outputs) if self.surprise else None
        network = classifier_network(model, tokenizer, head, given_head=not new)
        if new:  # only now: scores of 0 would pass any check
            _initialize(_scoring_layer(model), seed)
        return network


@dataclass(frozen=True)
class SeparateEncoders(Architecture):
    """An encoder for prompts, one for responses, and a head on both (see `models.reward.separate_network`)."""

    def build(
        self, backbone: Backbone, interface: Callable[[], object], *, outputs: int, seed: int | None
    ) -> RewardNetwork:
        """Two trunks of the backbone and a randomly initialized head."""
        backbone = _language(backbone)
        tokenizer = backbone.tokenizer(interface)
        prompts, responses = (backbone.trunk(tokenizer, seed=seed) for _ in range(2))
        with seeded(seed):
            interaction = Interaction(prompts.config.get_text_config().hidden_size, outputs)
        network = SeparateNetwork(prompts, responses, interaction, tokenizer)
        network.check()
        _initialize(interaction.score, seed)
        return network


def _language(backbone: Backbone) -> LanguageBackbone:
    if not isinstance(backbone, LanguageBackbone):
        raise UserError(f"backbone {type(backbone).__name__} builds no reward model; expected LanguageBackbone")
    return backbone


def _scoring_layer(model: PreTrainedModel) -> nn.Linear:
    """The last layer of a classifier."""
    heads = [child for child in model.children() if child is not model.base_model]
    return [layer for head in heads for layer in head.modules() if isinstance(layer, nn.Linear)][-1]


def _initialize(score: nn.Linear, seed: int | None) -> None:
    """Let scores start at 0, or with a seed at small random values, so that the members of an ensemble differ.

    Zero, because comparisons never train the part of a score that all responses to a prompt have in common.
    """
    nn.init.zeros_(score.weight)
    if score.bias is not None:
        nn.init.zeros_(score.bias)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(score.weight, std=0.1 * score.in_features**-0.5, generator=generator)

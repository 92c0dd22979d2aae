"""How a reward model reads a prompt and a response."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from rlhf_lightning.distributed import run_seed
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.language.backbone import LanguageBackbone
from rlhf_lightning.models.reward.networks import RewardNetwork, network_of
from rlhf_lightning.models.reward.separate_network import Interaction, SeparateNetwork
from rlhf_lightning.models.reward.surprise import surprise_head_of


@dataclass(frozen=True)
class Architecture(ABC):
    """Builds a reward network on a backbone."""

    @abstractmethod
    def build(
        self, backbone: Backbone, interface: Callable[[], Any], *, columns: int, seed: int | None
    ) -> RewardNetwork:
        """A network at its starting point.

        Args:
            backbone: a `LanguageBackbone`; others build no reward model.
            interface: the task's tokenizer, for a backbone without a checkpoint.
            columns: number of scores of a response.
            seed: of whatever starts at random; None for the run's own, with scores that start at 0.
        """


@dataclass(frozen=True)
class JointEncoder(Architecture):
    """One encoder over prompt and response: a decoder is read at the last token, an encoder in its own way.

    Args:
        surprise: the score also reads how much the response surprises the trunk (see `models.surprise`); for
            trunks that come from a language model.
    """

    surprise: bool = False

    def build(
        self, backbone: Backbone, interface: Callable[[], Any], *, columns: int, seed: int | None
    ) -> RewardNetwork:
        """A sequence-classification model, with a head for its surprise where asked for."""
        backbone = _language(backbone)
        words = backbone.tokenizer(interface)
        model, new = backbone.classifier(words, columns=columns, seed=seed)
        if self.surprise and not hasattr(model, "score"):
            raise UserError(f"architecture.init_args.surprise needs a language model; {type(model).__name__} is none")
        head = surprise_head_of(backbone.policy(interface, temperature=1.0).model, columns) if self.surprise else None
        if backbone.lora is not None and head is not None and head.projection is not None:
            head.projection.requires_grad_(False)  # it comes with the trunk
        if new:
            _start(_scoring_layer(model), seed)
        return network_of(model, words, head)


@dataclass(frozen=True)
class SeparateEncoders(Architecture):
    """An encoder for prompts, one for responses, and a head on both (see `models.separate_network`)."""

    def build(
        self, backbone: Backbone, interface: Callable[[], Any], *, columns: int, seed: int | None
    ) -> RewardNetwork:
        """Two trunks of the backbone's and a head at random."""
        backbone = _language(backbone)
        words = backbone.tokenizer(interface)
        encoders = [backbone.trunk(words, seed=seed) for _ in range(2)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_number(seed))
            interaction = Interaction(encoders[0].config.get_text_config().hidden_size, columns)
        _start(interaction.score, seed)
        return SeparateNetwork(*encoders, interaction, words)


def _language(backbone: Backbone) -> LanguageBackbone:
    if not isinstance(backbone, LanguageBackbone):
        raise UserError(f"backbone {type(backbone).__name__} builds no reward model; expected LanguageBackbone")
    return backbone


def _scoring_layer(model: PreTrainedModel) -> nn.Linear:
    """The last layer of a classifier."""
    own = [child for child in model.children() if child is not model.base_model]
    return [layer for child in own for layer in child.modules() if isinstance(layer, nn.Linear)][-1]


def _start(score: nn.Linear, seed: int | None) -> None:
    """Scores that start at 0; those of a member of an ensemble near it, at random, so that members differ.

    Comparisons do not move what all responses to a prompt have in common: it stays as it starts.
    """
    nn.init.zeros_(score.weight)
    if score.bias is not None:
        nn.init.zeros_(score.bias)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(score.weight, std=0.1 * score.in_features**-0.5, generator=generator)


def _number(seed: int | None) -> int:
    return run_seed() if seed is None else seed

"""How much of what the machine can do an update and a rollout use."""

from __future__ import annotations

from torch import Tensor, nn

from rlhf_lightning.bench.models import Shape
from rlhf_lightning.models.language.policy import LanguagePolicy
from rlhf_lightning.models.language.trunk import input_embedding


def update_operations(policy: LanguagePolicy, shape: Shape) -> float:
    """Floating-point operations of a gradient's products with weights: two per weight and token, three times.

    Those of attention are not counted. A prompt's tokens count once for all of its responses, and need no logits.
    """
    response_tokens = shape.responses * shape.length
    return 6.0 * (_weights(policy) * (_prompt_tokens(shape) + response_tokens) + _head(policy) * response_tokens)


def step_bytes(policy: LanguagePolicy, shape: Shape) -> float:
    """Bytes that a step of decoding reads at least: all weights once, and keys and values of half of a response.

    Keys and values of a prompt are read once for all of its responses.
    """
    config = policy.model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = config.hidden_size // config.num_attention_heads * heads
    tokens = _prompt_tokens(shape) + shape.responses * shape.length / 2
    numbers = _weights(policy) + _head(policy) + 2 * config.num_hidden_layers * width * tokens
    return numbers * input_embedding(policy.model).weight.element_size()


def _prompt_tokens(shape: Shape) -> float:
    """Of all prompts: on average three quarters of the longest."""
    return shape.prompts * 3 * shape.prompt_length / 4


def _head(policy: LanguagePolicy) -> int:
    """Weights of the head."""
    return policy.vocabulary * input_embedding(policy.model).embedding_dim


def _weights(policy: LanguagePolicy) -> int:
    """Weights of the layers, without embeddings and head."""
    embeddings = {id(module.weight) for module in policy.model.modules() if isinstance(module, nn.Embedding)}
    matrices: list[Tensor] = [p for p in policy.model.parameters() if p.ndim == 2 and id(p) not in embeddings]
    return sum(matrix.numel() for matrix in matrices)
